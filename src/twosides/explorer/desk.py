"""The thread that computes figures, and a bounded queue in front of it.

More threads would not compute faster, and with an unbounded queue everybody would wait long. A
client is in the queue at most once, and when its turn comes its last request is computed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Busy(RuntimeError):
    """The error of a full queue."""


class Desk:
    """The thread, for which at most `longest` clients wait."""

    def __init__(self, longest: int = 48) -> None:
        """Start nothing before the first use."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="twosides-explorer")
        self._turn = asyncio.Lock()
        self._longest, self._waiting = longest, 0

    async def compute(self, take: Callable[[], Callable[[], T]]) -> T:
        """Wait for the turn, `take()` the newest request, and compute it; Busy if too many wait."""
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
        """Forget the requests that wait; one that is being computed ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class Slot:
    """A place for one value, of which a new one replaces the old."""

    def __init__(self) -> None:
        """Begin empty."""
        self._filled, self._newest = asyncio.Event(), None

    def put(self, thing: Any) -> None:
        """Put a value in, in place of the old one."""
        self._newest = thing
        self._filled.set()

    async def wait(self) -> None:
        """Wait until there is a value."""
        await self._filled.wait()

    def take(self) -> Any:
        """Take the value out."""
        self._filled.clear()
        return self._newest


def measure_time(function: Callable[[], T]) -> tuple[T, float]:
    """The value of a function, and the milliseconds that it took."""
    start = time.perf_counter()
    value = function()
    return value, (time.perf_counter() - start) * 1e3
