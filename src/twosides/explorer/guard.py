"""The guard of the explorer, which admits only this machine's browser, on this page.

A server on 127.0.0.1 can be reached by every web page that the user visits. These are kept out by

    Host     must name this server: a foreign name that resolves here (DNS rebinding) is refused
    Origin   must be this page's, where it is stated, "null" included; WebSockets must state it
    Sec-Fetch-Site   cross-site requests are refused, but for following a link to the page
    CSP      the page runs its own script and connects to this server only
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket


class Guard:
    """An ASGI application around another, for one port of this machine."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        """Guard an application.

        app: the application.
        port: the port. The hosts are 127.0.0.1 and localhost with it, the origins the same over
            http.
        """
        self.app = app
        self.hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
        if port == 80:
            self.hosts |= {"127.0.0.1", "localhost"}
        self.origins = {f"http://{host}" for host in self.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on with the security headers added to the answer."""
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        refusal = self.refusal(headers, websocket=scope["type"] == "websocket")
        answer = self._safe(send, headers.get("host", ""))
        if refusal is None:
            return await self.app(scope, receive, answer)
        status, message = refusal
        response = PlainTextResponse(message, status)
        if scope["type"] == "websocket":
            socket = WebSocket(scope, receive, answer)
            await socket.receive()  # the request for a connection
            return await socket.send_denial_response(response)
        await response(scope, receive, answer)

    def refusal(self, headers: Headers, *, websocket: bool) -> tuple[int, str] | None:
        """The status and the reason of a refusal, or None for requests that may pass."""
        if headers.getlist("host") not in [[host] for host in self.hosts]:
            return 400, "this server answers to its own name only"
        origins = headers.getlist("origin")
        own = len(origins) == 1 and origins[0] in self.origins
        if not own and (origins or websocket):
            return 403, "requests from other pages are refused"
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode")
        if site not in ("same-origin", "none") and (websocket or mode != "navigate"):
            return 403, "requests from other sites are refused"
        return None

    def _safe(self, send: Send, host: str) -> Callable[[Message], Awaitable[None]]:
        starts = ("http.response.start", "websocket.http.response.start")

        async def send_safely(message: MutableMapping[str, Any]) -> None:
            if message["type"] in starts:
                headers = MutableHeaders(scope=message)
                for name, value in security_headers(host if host in self.hosts else "").items():
                    headers[name] = value
            await send(message)

        return send_safely


def security_headers(host: str) -> dict[str, str]:
    """The headers of every answer that restrict what the browser does with it."""
    reach = f"'self' ws://{host}" if host else "'self'"
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; "
        f"img-src 'self' data: blob:; connect-src {reach}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
