"""The desk of the Ray engine; its process loads this file, and with it nothing of weight."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any


class Desk:
    """Where processes hear the driver's answers: Tune brings it their messages, and takes nothing back."""

    def __init__(self) -> None:
        self._answers: defaultdict[str, asyncio.Queue[Any]] = defaultdict(asyncio.Queue)

    async def say(self, name: str, answer: Any) -> None:
        self._answers[name].put_nowait(answer)

    async def hear(self, name: str) -> Any:
        return await self._answers[name].get()
