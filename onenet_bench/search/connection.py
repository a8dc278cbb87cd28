"""The connection to Ray: found at an address or started for one run, quiet, and ended with the block."""

from __future__ import annotations

import math
import os
import re
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onenet_bench.errors import RecipeError
from onenet_bench.search.trial import environment

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # silences a warning
    "RAY_AIR_NEW_OUTPUT": "0",  # no tables
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the sweep's
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # Tune's own state is never read
}
"""The driver's environment while Tune runs."""

ATTEMPTS = 4
"""How often Ray's client is let in by a door: the door starts a process for it, which now and then dies at birth (of a
fork in the midst of gRPC's threads)."""


@dataclass(slots=True)
class Interrupts:
    """Whether Ctrl-C came, and whether it is held back: while Ray begins or ends it would leave Ray in a state in which
    this process dies of it."""

    came: bool = False
    held: bool = False

    def check(self) -> None:
        """Raise the KeyboardInterrupt that was held back, or that was swallowed on its way, as in a destructor."""
        if self.came:
            raise KeyboardInterrupt


@contextmanager
def _interrupts() -> Iterator[Interrupts]:
    """Ctrl-C inside is a KeyboardInterrupt, at the end of the block at the latest. A handler of another's stays."""
    found = Interrupts()

    def heard(number: int, frame: object) -> None:
        found.came = True
        if not found.held:
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    is_usual = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if is_usual:
        signal.signal(signal.SIGINT, heard)
    try:
        yield found
    except Exception:
        found.check()  # what Ctrl-C broke is told as Ctrl-C
        raise
    finally:
        if is_usual:
            signal.signal(signal.SIGINT, before)
    found.check()


@contextmanager
def scratch() -> Iterator[Path]:
    """A private folder for Ray's sockets and logs, whose path is short, since that of a socket has to be."""
    home = os.environ.get("RAY_TMPDIR", "/tmp")
    with tempfile.TemporaryDirectory(dir=home, prefix="onenet-ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def to(address: str | None, *, cpus: float, variables: Mapping[str, str], folder: Path) -> Iterator[Interrupts]:
    """Ray until the block ends: found at ``address``, or started with so many ``cpus`` where that is None, its files
    in ``folder``.

    Its workers' environment has ``variables``. Raises RecipeError where it cannot be reached.
    """
    own = address is None
    with environment(_own(folder) if own else {}), _interrupts() as found:
        import ray
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        Config.initialize("")  # Ray reads its environment on import, and its secret once; both may have been another's
        AuthenticationTokenLoader.instance().reset_cache()
        asked: dict[str, Any] = {"address": address}
        if own:
            asked = {
                "address": "local", "num_cpus": max(1, math.ceil(cpus)), "include_dashboard": False,
                "_temp_dir": str(folder),
            }  # fmt: skip
        asked |= {"log_to_driver": False, "configure_logging": False, "runtime_env": {"env_vars": dict(variables)}}
        try:
            try:
                _ask(address)
                found.held = own  # another's may keep us waiting
                _init(asked)
                found.held = False
            except (ConnectionError, ray.exceptions.RayError, RuntimeError, ValueError) as error:
                raise _unreachable(address, error) from error
            found.check()
            yield found
        finally:
            found.held = True
            ray.shutdown()


def check(address: str | None) -> None:
    """Raise RecipeError where nobody listens at HOST:PORT or ray://HOST:PORT."""
    try:
        _ask(address and address.removeprefix("ray://"))
    except ConnectionError as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str | None, error: Exception) -> RecipeError:
    where = "on this machine" if address is None else f"at {address}"
    said = " ".join(str(error).split())[:300]
    return RecipeError(
        f"the Ray engine needs a Ray {where}, but it cannot be reached ({type(error).__name__}: {said}); "
        "see that it runs and that RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH are its own, or leave out --address"
    )


def _ask(address: str | None) -> None:
    """Raise ConnectionError where nobody listens at HOST:PORT, which Ray itself would ask for minutes."""
    if address is not None and re.fullmatch(r"[^/]+:\d+", address):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(str(error)) from error


def _init(asked: Mapping[str, Any]) -> None:
    import ray

    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(**asked)
            return
        except ConnectionAbortedError:  # of a door alone
            if attempt == ATTEMPTS:
                raise


def _own(folder: Path) -> dict[str, str]:
    """The environment of a Ray of our own: its ports are open to the network, so that it wants a throwaway secret of
    who talks to it; and its workers are as important to the system as others' processes, not least of all."""
    path = folder / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path), "RAY_worker_niceness": "0"}


def capacity(takes: Mapping[str, float]) -> int:
    """How many trials that take so much run at once. Raises RecipeError where none does."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    asked = {name: amount for name, amount in takes.items() if amount}
    most = sum(
        min((int(node.get(name, 0) / amount + 1e-9) for name, amount in asked.items()), default=1) for node in nodes
    )
    if not most:
        has = ", ".join(f"{max((node.get(name, 0) for node in nodes), default=0):g} {name}s" for name in asked)
        raise RecipeError(
            f"a trial must fit on a node, but it takes {', '.join(f'{a:g} {n}s' for n, a in asked.items())}, and the "
            f"largest has {has}; ask for less with --cpus-per-trial, --gpus-per-trial or --threads"
        )
    return most
