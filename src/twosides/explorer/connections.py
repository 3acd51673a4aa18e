"""Limits on connections without a request: each is closed after some seconds, and few may be open.

A program on this machine may open hundreds of connections and send half a request on each. Every
one costs a file and memory, and together they would count as the server's load, so that the page's
own requests are refused.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE = 5.0  # the seconds after which a request must be complete
MOST_SILENT = 64  # the connections without a request; beyond, the oldest is closed


class Patient(H11Protocol):
    """The protocol of uvicorn for HTTP/1.1 that waits PATIENCE seconds for each complete request.

    A connection is silent until its first request is complete, and again after each answer.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        """Take the arguments of uvicorn."""
        super().__init__(*args, **options)
        self.since = self.loop.time()
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def silent(self) -> bool:
        """Whether the connection waits for a request."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait; if too many connections are silent, close the one that is so longest."""
        super().connection_made(transport)
        self._wait()
        silent = [each for each in self.connections if isinstance(each, Patient) and each.silent]
        if len(silent) > MOST_SILENT:
            oldest = min(silent, key=lambda each: each.since)
            oldest.transport.abort()
            self.connections.discard(oldest)  # hundreds may be accepted before it is lost

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._wait()
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: Any) -> None:
        """Leave the connection to the WebSocket, which waits for its token itself."""
        self._stop()
        super().handle_websocket_upgrade(event)

    def _wait(self) -> None:
        self._stop()
        self.since = self.loop.time()
        self._deadline = self.loop.call_later(PATIENCE, self._close_if_silent)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def _close_if_silent(self) -> None:
        if self.silent:
            self.transport.abort()
