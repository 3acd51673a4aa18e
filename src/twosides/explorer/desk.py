"""Where figures are computed: one thread, and a bounded queue in front of it.

More threads would not compute faster, and an unbounded queue answers everybody late. A client
stands in the queue at most once, and what it asks last is what is computed when its turn comes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Busy(RuntimeError):
    """The queue is full."""


class Desk:
    """One thread; at most `longest` clients wait for it."""

    def __init__(self, longest: int = 48) -> None:
        """Nothing is started before the first use."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="twosides-explorer")
        self._turn = asyncio.Lock()
        self._longest, self._waiting = longest, 0

    async def compute(self, take: Callable[[], Callable[[], T]]) -> T:
        """Wait for the turn, `take()` the newest wish, and compute it; Busy if too many wait."""
        if self._waiting >= self._longest:
            raise Busy("too many figures are waiting to be computed; try again")
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, take())
        finally:
            self._turn.release()

    def close(self) -> None:
        """Forget what waits; what is being computed ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class Slot:
    """The newest of the things put in, once."""

    def __init__(self) -> None:
        """Empty."""
        self._filled, self._newest = asyncio.Event(), None

    def put(self, thing: Any) -> None:
        """Replace what was there."""
        self._newest = thing
        self._filled.set()

    async def filled(self) -> None:
        """Wait until there is something."""
        await self._filled.wait()

    def take(self) -> Any:
        """What is there; the slot is empty afterwards."""
        self._filled.clear()
        return self._newest


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """The value, and how many milliseconds it took."""
    start = time.perf_counter()
    value = function()
    return value, (time.perf_counter() - start) * 1e3
