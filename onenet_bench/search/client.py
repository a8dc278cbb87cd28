"""The Ray engine from outside its cluster, through the door of Ray's client (``ray://HOST:PORT``).

Tune has to be a process of the cluster, and the core has to be where the ledger is. So Tune runs in a task over there,
and what it asks its driver travels to this process and back through a mailbox, an actor of the cluster's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from onenet_bench.errors import RecipeError

PATIENCE_S = 5.0
"""How long a look into the mailbox waits for a question."""


class _Mailbox:
    """Questions from Tune, as (number, method, arguments), and the driver's answers."""

    def __init__(self) -> None:
        self._questions: asyncio.Queue[tuple[int, str, tuple[Any, ...]]] = asyncio.Queue()
        self._answers: dict[int, asyncio.Future[tuple[bool, Any]]] = {}
        self._number = 0

    async def ask(self, method: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
        """Whether the driver could answer, and its answer."""
        self._number += 1
        number = self._number
        answer: asyncio.Future[tuple[bool, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        self._questions.put_nowait((number, method, arguments))
        return await answer

    async def next(self) -> tuple[int, str, tuple[Any, ...]] | None:
        """The oldest question; None where there was none for a while."""
        with suppress(TimeoutError, asyncio.TimeoutError):
            return await asyncio.wait_for(self._questions.get(), PATIENCE_S)
        return None

    async def answer(self, number: int, fine: bool, said: Any) -> None:
        self._answers.pop(number).set_result((fine, said))


class Absent:
    """The driver, as Tune sees it over there."""

    error: BaseException | None = None  # that of the driver stays with the driver

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as that of a driver

    def _asked(self, method: str, *arguments: Any) -> Any:
        import ray

        fine, said = ray.get(self._mailbox.ask.remote(method, arguments))
        if not fine:
            raise RuntimeError(said)
        return said

    def ask(self, name: str) -> Any:
        return self._asked("ask", name)

    def hear(self, name: str, kind: str, content: Any, files: Mapping[str, bytes]) -> Any:
        return self._asked("hear", name, kind, content, files)

    def lost(self, name: str, said: str) -> None:
        self._asked("lost", name, said)


def run(driver: Any, tune: Callable[..., None], *arguments: Any) -> None:
    """Have ``tune(driver, *arguments)`` run on the cluster, and answer what it asks ``driver`` until it ends."""
    import ray

    mailbox = ray.remote(_Mailbox).options(num_cpus=0, max_concurrency=10_000).remote()
    task = ray.remote(_away).options(num_cpus=0, max_retries=0).remote(mailbox, tune, *arguments)
    try:
        letter = mailbox.next.remote()
        while ray.util.client.ray.is_connected() and ray.wait([letter, task])[0] == [letter]:
            question = ray.get(letter)
            letter = mailbox.next.remote()
            if question is not None:
                number, method, asked = question
                try:
                    fine, said = True, getattr(driver, method)(*asked)
                except Exception as error:  # noqa: BLE001  which the driver has noted
                    fine, said = False, f"{type(error).__name__}: {error}"
                mailbox.answer.remote(number, fine, said)
        if not ray.util.client.ray.is_connected():
            raise ConnectionError("Ray's client was cut off")
        ray.get(task)
    except Exception as error:
        if driver.error is None:
            if ray.util.client.ray.is_connected() and not isinstance(error, ray.exceptions.RayError):
                raise
            words = " ".join(str(error).split())
            raise RecipeError(f"the cluster has ended the run, go on with --resume ({words[-300:]})") from error
    finally:
        if ray.util.client.ray.is_connected():  # else Ray would start one of its own
            with suppress(ConnectionError):
                ray.cancel(task, force=True)
    if driver.error is not None:
        raise driver.error


def _away(mailbox: Any, tune: Callable[..., None], *arguments: Any) -> None:
    """On the cluster."""
    tune(Absent(mailbox), *arguments)
