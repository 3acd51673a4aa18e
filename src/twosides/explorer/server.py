"""The explorer's server: the page, and a WebSocket on which figures are requested.

It is bound to 127.0.0.1. There is no upload, no path, and no state that a request could change: a
visitor sends a figure's name and the values of its controls, each of which is checked against its
range.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from twosides import __version__
from twosides.explorer import page as pages
from twosides.explorer import wire
from twosides.explorer.connections import Patient
from twosides.explorer.desk import Busy, Desk, Slot, measure_time
from twosides.explorer.figure import Figure, Invalid
from twosides.explorer.guard import Guard
from twosides.explorer.page import Page

MOST_CLIENTS = 128  # the WebSockets at a time; further ones are answered 503
PATIENCE = 5.0  # the seconds after which the token must have come
WRONG_TOKEN = 4401


def warm_up() -> None:
    """Import the modules that figures need, in the thread that computes."""
    import twosides as ts

    ts.plan("ddim", "cosine", 2)


class Explorer:
    """The routes of one running explorer, and their common state."""

    def __init__(self, figures: Sequence[Figure], page: Page, token: str) -> None:
        """Prepare to serve.

        figures: the figures.
        page: the files of the page.
        token: the secret that the page must send first on its WebSocket.
        """
        self.figures = {figure.name: figure for figure in figures}
        self.page, self.token = page, token
        self.desk, self.ready = Desk(), asyncio.Event()
        self.clients = 0
        self._warming: asyncio.Task[None] | None = None

    def app(self, port: int) -> Guard:
        """The ASGI application for a port of this machine."""
        routes = [
            Route("/", self.index),
            Route("/healthz", self.health),
            Route("/assets/{name}", self.asset),
            WebSocketRoute("/ws", self.websocket),
        ]
        return Guard(Starlette(routes=routes), port)

    # ------------------------------------------------------------------ pages

    async def index(self, request: Request) -> Response:
        """The page."""
        self.start_warming()
        return HTMLResponse(self.page.index, headers={"Cache-Control": "no-store"})

    async def health(self, request: Request) -> Response:
        """The answer "ok"."""
        return PlainTextResponse("ok", headers={"Cache-Control": "no-store"})

    async def asset(self, request: Request) -> Response:
        """A file of the page, by its exact name."""
        name = f"assets/{request.path_params['name']}"
        content = self.page.assets.get(name)
        if content is None:
            return PlainTextResponse("there is no such file", 404)
        kind = pages.TYPES["." + name.rpartition(".")[2]]
        forever = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(content, media_type=kind, headers=forever)

    # ------------------------------------------------------------------ figures

    def start_warming(self) -> None:
        """Begin to import, once, after the page has been requested."""
        if self._warming is None:
            self._warming = asyncio.create_task(self._warm())

    async def _warm(self) -> None:
        await self.desk.compute(lambda: warm_up)
        self.ready.set()

    async def websocket(self, client: WebSocket) -> None:
        """Serve one visitor, from the token to the end of the connection."""
        if self.clients >= MOST_CLIENTS:
            busy = PlainTextResponse("too many visitors", 503, headers={"Retry-After": "5"})
            return await client.send_denial_response(busy)
        self.clients += 1
        try:
            await client.accept()
            await self._visit(client)
        except (WebSocketDisconnect, RuntimeError):
            pass  # the visitor has gone, which starlette reports to a sender as RuntimeError
        finally:
            self.clients -= 1

    async def _visit(self, client: WebSocket) -> None:
        if not await self._knows_token(client):
            return await client.close(WRONG_TOKEN)
        self.start_warming()
        specs = [figure.spec() for figure in self.figures.values()]
        hello = {"version": __version__, "figures": specs, "ready": self.ready.is_set()}
        await client.send_json({"hello": hello})
        wishes: Slot = Slot()
        tasks = [
            asyncio.create_task(self._tell_ready(client)),
            asyncio.create_task(self._answer(client, wishes)),
        ]
        try:
            await self._listen(client, wishes)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _knows_token(self, client: WebSocket) -> bool:
        with contextlib.suppress(TimeoutError, KeyError, Invalid):
            text = await asyncio.wait_for(client.receive_text(), PATIENCE)
            content = wire.parse(text)
            given = content.get("token") if isinstance(content, dict) else None
            known = self.token.encode()
            return isinstance(given, str) and hmac.compare_digest(_bytes(given), known)
        return False

    async def _tell_ready(self, client: WebSocket) -> None:
        await self.ready.wait()
        await client.send_json({"ready": True})

    async def _listen(self, client: WebSocket, wishes: Slot) -> None:
        """Receive requests; those that are refused are answered at once."""
        while True:
            message = await client.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            try:
                if not isinstance(text, str):
                    raise Invalid("requests are text")
                wishes.put(wire.request(text, self.figures))
            except Invalid as error:
                number = None
                with contextlib.suppress(Invalid):
                    number = wire.number_of(wire.parse(text or ""))
                await client.send_text(wire.error(number, str(error), "invalid", error.control))

    async def _answer(self, client: WebSocket, wishes: Slot) -> None:
        """Compute the newest request, again and again."""
        while True:
            await wishes.wait()
            try:
                answer = await self.desk.compute(lambda: partial(compute_reply, *wishes.take()))
            except Busy as error:
                number, *_ = wishes.take()
                answer = wire.error(number, str(error), "busy")
            if isinstance(answer, str):
                await client.send_text(answer)
            else:
                await client.send_bytes(answer)


def compute_reply(number: int, figure: Figure, params: dict[str, Any]) -> bytes | str:
    """The reply to a request; the library's refusals are shown, and other errors are bugs."""
    try:
        view, milliseconds = measure_time(lambda: figure.view(params))
        return wire.reply(number, figure.name, milliseconds, view)
    except (ValueError, TypeError) as error:
        return wire.error(number, str(error), "invalid", getattr(error, "control", None))
    except Exception as error:
        print(f"twosides: {figure.name}{params}: {error!r}", file=sys.stderr)
        return wire.error(number, f"this figure failed: {type(error).__name__}", "internal")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


# ---------------------------------------------------------------------------- running


def listen(port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1; OSError with the port if it is taken."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", port))
        made.listen(256)
    except (OSError, OverflowError) as error:
        made.close()
        raise OSError(f"port {port} of 127.0.0.1 cannot be used ({error}); try --port 0") from error
    return made


def _is_problem(record: logging.LogRecord) -> bool:
    # uvicorn reports this of every WebSocket that was rightly refused.
    return "without completing handshake" not in record.getMessage()


def make_server(explorer: Explorer, port: int) -> uvicorn.Server:
    """The web server of an explorer: one process, a log of errors only, and no large messages."""
    logging.getLogger("uvicorn.error").addFilter(_is_problem)
    config = uvicorn.Config(
        explorer.app(port),
        ws="websockets-sansio",
        ws_max_size=wire.LONGEST,
        ws_per_message_deflate=False,
        http=Patient,
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=2 * MOST_CLIENTS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def explore(
    figures: Sequence[Figure],
    *,
    port: int = 0,
    browser: bool = True,
    tell: Callable[[str], object] = print,
) -> None:
    """Serve figures on 127.0.0.1 until Ctrl-C.

    figures: the figures.
    port: the port, 0 for a free one.
    browser: whether to open the page in the browser.
    tell: a function that is called with the address once the server answers.
    """
    page, token, made = pages.load(), secrets.token_urlsafe(32), listen(port)
    port = made.getsockname()[1]
    address = f"http://127.0.0.1:{port}/#{token}"
    server = make_server(Explorer(figures, page, token), port)
    tell(address)
    if browser:
        # A browser in the terminal would keep the server waiting.
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    with made, contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[made])
