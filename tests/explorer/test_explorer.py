"""The server: who may talk to it, what it accepts, and that it stays up."""

import base64
import contextlib
import gzip
import http.client
import json
import os
import re
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import stand_in_page
from stand_in_page import PAGE, TOKEN
from twosides import __version__
from twosides.explorer import connections, export, server, wire
from twosides.explorer import page as pages
from twosides.explorer.desk import Desk
from twosides.explorer.figure import (
    Axis,
    Choice,
    Figure,
    Invalid,
    Many,
    Mark,
    Number,
    Panel,
    Range,
    Switch,
    Text,
    View,
)
from twosides.explorer.figures import FIGURES

STARTED, RELEASED = threading.Event(), threading.Event()
COMPUTED: list[float] = []


def squares(x: float, kind: str, many: tuple[str, ...], on: bool, text: str, count: int) -> View:
    """A figure for tests; "slow" holds the thread until it is released, "bug" fails."""
    COMPUTED.append(x)
    if kind == "slow":
        STARTED.set()
        assert RELEASED.wait(20)
    if kind == "bug":
        raise KeyError("secret")
    if kind == "refused":
        raise ValueError("nothing is known at zero SNR")
    values = np.array([[x, np.nan], [np.inf, 1e300]])
    mark = Mark("heat", "m", None, {"v": values, "w": np.arange(3)}, {"rows": (1, np.inf)})
    panel = Panel("heat", "a", Axis("x", 0, None), None, (mark,))
    return View((panel,), (Number("square", "s", x**2), Number("nan", "n", np.nan)), "pass", "cli")


TEST_FIGURE = Figure(
    "squares", "Squares", "text",
    (
        Range("x", "x", -1.0, 1e6, 0.1, 0.5),
        Choice("kind", "kind", tuple((k, k) for k in ("fast", "slow", "bug", "refused")), "fast"),
        Many("many", "many", (("a", "A"), ("b", "B"), ("c", "C")), ("a",), most=2),
        Switch("on", "on", True),
        Text("text", "text", "t", 10),
        Range("count", "count", 1, 9, 1, 1, integer=True),
    ),
    "test_explorer:squares",
    frames={"x": (0.0, 1.0), "on": (True, False)},
)  # fmt: skip


class Running:
    """A server in a thread of this process, and its port."""

    def __init__(self, figures=(TEST_FIGURE,), page=PAGE):
        self.socket = server.listen(0)
        self.port = self.socket.getsockname()[1]
        self.explorer = server.Explorer(figures, page, TOKEN)
        self.server = server.make_server(self.explorer, self.port)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})
        self.thread.start()

    def stop(self):
        RELEASED.set()
        self.server.should_exit = True
        self.thread.join(20)
        self.socket.close()
        assert not self.thread.is_alive()

    def get(self, path="/", method="GET", **headers):
        """(status, headers, body); a header of value None is left out, Host included."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        host = headers.pop("Host", f"127.0.0.1:{self.port}")
        link.putrequest(method, path, skip_host=True)
        for name, value in [("Host", host), *headers.items()]:
            if value is not None:
                link.putheader(name, value)
        link.endheaders()
        with contextlib.closing(link):
            answer = link.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def connect(self, origin="own", host=None):
        """A WebSocket that has not said the token."""
        origin = f"http://127.0.0.1:{self.port}" if origin == "own" else origin
        address = f"ws://{host or f'127.0.0.1:{self.port}'}/ws"
        made = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        return connect(address, sock=made, origin=origin, proxy=None, open_timeout=10)

    @contextlib.contextmanager
    def visit(self):
        """A WebSocket after hello and ready."""
        with self.connect() as link:
            link.send(json.dumps({"token": TOKEN}))
            hello = json.loads(link.recv(10))["hello"]
            assert hello["version"] == __version__
            assert json.loads(link.recv(30)) == {"ready": True}
            yield link


@pytest.fixture(scope="module")
def running():
    made = Running()
    yield made
    made.stop()


def ask(link, number=1, figure="squares", **params):
    link.send(json.dumps({"req": number, "figure": figure, "params": params}))


def answer(link):
    """An error's content, or the header of a reply with its arrays in place."""
    message = link.recv(20)
    if isinstance(message, str):
        return json.loads(message)
    return decoded(message)


def decoded(message):
    (length,) = struct.unpack_from("<I", message)
    assert (4 + length) % 4 == 0
    header = json.loads(message[4 : 4 + length])
    data = np.frombuffer(message, "<f4", offset=4 + length)
    for panel in header["view"]["panels"]:
        for mark in panel["marks"]:
            for name, at in mark["arrays"].items():
                size = int(np.prod(at["shape"]))
                part = data[at["offset"] : at["offset"] + size]
                mark["arrays"][name] = part.reshape(at["shape"])
    return header


# ---------------------------------------------------------------------------- who may talk to it


@pytest.mark.parametrize(
    ("host", "origin", "site", "expected"),
    [
        ("own", None, None, 200),
        ("localhost", None, None, 200),
        ("own", "own", "same-origin", 200),
        ("own", None, "none", 200),
        ("evil.com", None, None, 400),
        ("evil.com", "own", None, 400),
        ("127.0.0.1", None, None, 400),
        ("127.0.0.1:1", None, None, 400),
        ("127.0.0.1.evil.com", None, None, 400),
        ("", None, None, 400),
        (None, None, None, 400),
        ("own", "http://evil.com", None, 403),
        ("own", "null", None, 403),
        ("own", "http://127.0.0.1:1", None, 403),
        ("own", "https", None, 403),
        ("own", "", None, 403),
        ("own", None, "cross-site", 403),
        ("own", None, "same-site", 403),
    ],
)
def test_hosts_and_origins_over_http(running, host, origin, site, expected):
    names = {"own": f"127.0.0.1:{running.port}", "localhost": f"localhost:{running.port}"}
    origins = {
        "own": f"http://127.0.0.1:{running.port}",
        "https": f"https://127.0.0.1:{running.port}",
    }
    for path in ("/", "/healthz", "/assets/app-2.js"):
        status, headers, body = running.get(
            path,
            Host=names.get(host, host),
            Origin=origins.get(origin, origin),
            Sec_Fetch_Site=site,
        )
        assert status == expected
        if host is not None:  # without a Host h11 itself refuses
            assert "default-src 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers
        assert (body in (b"ok", PAGE.index.encode(), PAGE.assets["assets/app-2.js"])) == (
            status == 200
        )


def test_a_link_from_another_site_leads_to_the_page(running):
    headers = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert running.get("/?figure=churn", **headers)[0] == 200


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        (None, "http://evil.com", 403),
        (None, "null", 403),
        (None, None, 403),
        (None, "http://127.0.0.1:1", 403),
        ("evil.com", "own", 400),
        ("evil.com", "http://evil.com", 400),
    ],
)
def test_hosts_and_origins_of_websockets(running, host, origin, expected):
    with pytest.raises(InvalidStatus) as refused, running.connect(origin, host):
        pass
    assert refused.value.response.status_code == expected


@pytest.mark.parametrize(
    "first",
    ['{"token": "wrong"}', "{}", "[]", "not json", "null", '{"token": 1}', '{"token": "\\ud800"}',
     '{"token": ""}', "[" * 5000, b"bytes"],
)  # fmt: skip
def test_without_the_token_nothing_is_said(running, first):
    with running.connect() as link:
        link.send(first)
        with pytest.raises(ConnectionClosed) as closed:
            link.recv(10)
        assert closed.value.rcvd.code == server.WRONG_TOKEN


def test_who_says_nothing_is_let_go(running, monkeypatch):
    monkeypatch.setattr(server, "PATIENCE", 0.05)
    with running.connect() as link, pytest.raises(ConnectionClosed) as closed:
        link.recv(10)
    assert closed.value.rcvd.code == server.WRONG_TOKEN


def test_headers_and_exact_files(running):
    status, headers, body = running.get("/")
    assert status == 200 and body.decode() == PAGE.index
    policy = headers["content-security-policy"]
    assert "unsafe" not in policy and "*" not in policy and "frame-ancestors 'none'" in policy
    assert f"connect-src 'self' ws://127.0.0.1:{running.port};" in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    status, headers, body = running.get("/assets/app-1.css")
    assert body == PAGE.assets["assets/app-1.css"] and headers["content-type"].startswith(
        "text/css"
    )
    for path in ("/assets/app.js", "/assets/../server.py", "/assets/%2e%2e/server.py", "/server.py",
                 "/assets/..%2fserver.py", "//assets/app-1.css", "/assets/", "/etc/passwd"):  # fmt: skip
        assert running.get(path)[0] == 404, path
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert running.get("/", method)[0] == 405


def test_a_page_that_is_not_built_is_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"page is not built: .*manifest.json"):
        pages.load(tmp_path)


def test_a_taken_port_is_a_clear_error():
    with server.listen(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 cannot be used"):
            server.listen(port)
    with pytest.raises(OSError, match="cannot be used"):
        server.listen(99999)


# ---------------------------------------------------------------------------- what it accepts


def test_hello_and_a_reply(running):
    with running.connect() as link:
        link.send(json.dumps({"token": TOKEN}))
        hello = json.loads(link.recv(10))["hello"]
        assert [f["name"] for f in hello["figures"]] == ["squares"]
        kinds = [c["kind"] for c in hello["figures"][0]["controls"]]
        assert kinds == ["range", "choice", "many", "switch", "text", "range"]
        assert hello["figures"][0]["controls"][1]["options"][0] == ["fast", "fast"]
    with running.visit() as link:
        ask(link, 7, x=3)
        reply = answer(link)
    assert reply["req"] == 7 and reply["figure"] == "squares" and reply["ms"] >= 0
    view = reply["view"]
    assert view["numbers"][0] == {"name": "square", "label": "s", "value": 9.0, "format": ".3g"}
    assert view["numbers"][1]["value"] == "nan"
    assert (view["python"], view["cli"], view["notes"]) == ("pass", "cli", [])
    (mark,) = view["panels"][0]["marks"]
    assert mark["style"] == {"rows": [1, "inf"]} and mark["group"] is None
    np.testing.assert_array_equal(mark["arrays"]["v"], np.float32([[3, np.nan], [np.inf, np.inf]]))
    np.testing.assert_array_equal(mark["arrays"]["w"], [0, 1, 2])
    assert view["panels"][0]["x"] == {
        "label": "x",
        "low": 0,
        "high": None,
        "log": False,
        "reverse": False,
    }


WRONG = [
    ({"x": float("nan")}, "x"), ({"x": float("inf")}, "x"), ({"x": -2}, "x"), ({"x": 10**400}, "x"),
    ({"x": "1"}, "x"), ({"x": True}, "x"), ({"x": None}, "x"), ({"x": [1]}, "x"),
    ({"count": 1.5}, "count"), ({"count": 10**9}, "count"), ({"count": 0}, "count"),
    ({"kind": "other"}, "kind"), ({"kind": ["fast"]}, "kind"), ({"kind": {}}, "kind"),
    ({"many": []}, "many"), ({"many": ["a", "b", "c"]}, "many"), ({"many": "a"}, "many"),
    ({"many": ["d"]}, "many"), ({"many": [["a"]]}, "many"), ({"on": 1}, "on"), ({"on": "true"}, "on"),
    ({"text": "x" * 11}, "text"), ({"text": "\n"}, "text"), ({"text": 3}, "text"),
    ({"other": 1}, None), ({"x": 1, "__class__": 1}, None), ([], None), (None, None), ("x", None),
]  # fmt: skip


def test_wrong_parameters_are_refused_at_once(running):
    before = len(COMPUTED)
    with running.visit() as link:
        for number, (params, control) in enumerate(WRONG):
            link.send(json.dumps({"req": number, "figure": "squares", "params": params}))
            error = answer(link)
            assert error["req"] == number and error["error"]["code"] == "invalid", params
            assert error["error"]["control"] == control and len(error["error"]["message"]) < 200
        for text in (
            "not json", "", "[]", "1", "null", "[" * 9000, '{"req": 1}', '{"req": 1, "figure": "squares"}',
            '{"req": -1, "figure": "squares", "params": {}}', '{"req": true, "figure": "squares", "params": {}}',
            '{"req": 1e0, "figure": "squares", "params": {}}', '{"req": 1, "figure": "none", "params": {}}',
            '{"req": 1, "figure": ["squares"], "params": {}}', '{"req": 1, "figure": "squares", "params": {}, "z": 1}',
            '{"req": ' + "9" * 5000 + ', "figure": "squares", "params": {}}', b"bytes", b"",
        ):  # fmt: skip
            link.send(text)
            error = answer(link)["error"]
            assert error["code"] == "invalid" and error["control"] is None
        ask(link, 99, x=2)
        assert answer(link)["view"]["numbers"][0]["value"] == 4
    assert len(COMPUTED) == before + 1


def test_a_long_message_closes_the_connection(running):
    with running.visit() as link:
        link.send(" " * (wire.LONGEST + 1))
        with pytest.raises(ConnectionClosed) as closed:
            link.recv(10)
    assert closed.value.rcvd.code == 1009
    assert running.get("/healthz")[2] == b"ok"


def test_refusals_of_the_library_are_told_and_bugs_are_not(running, capsys):
    with running.visit() as link:
        ask(link, 1, kind="refused")
        assert answer(link)["error"] == {
            "message": "nothing is known at zero SNR", "control": None, "code": "invalid",
        }  # fmt: skip
        ask(link, 2, kind="bug")
        error = answer(link)["error"]
    assert error["code"] == "internal" and "secret" not in error["message"]
    assert "KeyError('secret')" in capsys.readouterr().err


# ---------------------------------------------------------------------------- many at once


def test_a_flood_ends_on_the_last_value(running):
    STARTED.clear(), RELEASED.clear()
    with running.visit() as link:
        ask(link, 0, kind="slow", x=-1)
        assert STARTED.wait(10)
        before = len(COMPUTED)
        for number in range(1, 501):
            ask(link, number, x=number)
        link.ping().wait(10)  # the server has read all of them
        RELEASED.set()
        assert answer(link)["req"] == 0
        last = answer(link)
        assert last["req"] == 500 and last["view"]["numbers"][0]["value"] == 250_000
        assert COMPUTED[before:] == [500]


def test_a_full_queue_says_so_and_everybody_is_answered(running):
    STARTED.clear(), RELEASED.clear()
    running.explorer.desk._longest = 3
    try:
        with contextlib.ExitStack() as stack:
            links = [stack.enter_context(running.visit()) for _ in range(6)]
            ask(links[0], 0, kind="slow")
            assert STARTED.wait(10)
            for number, link in enumerate(links[1:], 1):
                ask(link, number, x=number)
                link.ping().wait(10)
            codes = [answer(link)["error"]["code"] for link in links[4:]]
            assert codes == ["busy", "busy"]
            RELEASED.set()
            assert [answer(link)["req"] for link in links[:4]] == [0, 1, 2, 3]
    finally:
        running.explorer.desk._longest = 48


def test_who_leaves_during_a_computation_leaves_nothing_behind(running):
    STARTED.clear(), RELEASED.clear()
    with running.visit() as link:
        ask(link, 0, kind="slow")
        assert STARTED.wait(10)
        ask(link, 1, x=123)
    RELEASED.set()
    with running.visit() as link:
        ask(link, 2, x=5)
        assert answer(link)["req"] == 2
    assert 123 not in COMPUTED
    deadline = time.monotonic() + 10
    while running.explorer.clients and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running.explorer.clients == 0


def test_two_hundred_clients_are_answered_or_told_503(running, monkeypatch):
    monkeypatch.setattr(server, "MOST_CLIENTS", 20)
    answered = refused = 0
    with contextlib.ExitStack() as stack:
        for number in range(40):
            try:
                link = stack.enter_context(running.visit())
            except InvalidStatus as error:
                assert error.response.status_code == 503
                assert error.response.headers["retry-after"]
                refused += 1
            else:
                ask(link, number, x=1)
                answered += answer(link)["req"] == number
    assert (answered, refused) == (20, 20)
    assert running.get("/healthz")[0] == 200


HALF = {
    "nothing": b"",
    "half a request": b"GET / HTTP/1.1\r\nHost: 127.0.0.1",
    "half a handshake": b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
}


@pytest.mark.parametrize("said", HALF)
def test_five_hundred_half_open_connections_keep_nobody_waiting(monkeypatch, said):
    """Neither files nor memory are left when their time is over."""
    monkeypatch.setattr(connections, "PATIENCE", 3.0)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    running, half = Running(), []
    try:
        assert running.get()[0] == 200
        files, memory = len(os.listdir("/proc/self/fd")), resident()
        for _ in range(500):
            half.append(socket.create_connection(("127.0.0.1", running.port), timeout=10))
            half[-1].sendall(HALF[said])
        began = time.process_time()  # the server's, too; others may be at work on this machine
        assert running.get()[0] == 200
        assert time.process_time() - began < 2
        with running.visit():
            pass
        assert len(running.server.server_state.connections) <= connections.MOST_SILENT + 1
        until(lambda: not running.server.server_state.connections, 10)
        assert running.get()[0] == 200
        for each in half:
            with contextlib.suppress(ConnectionError):
                assert each.recv(1) == b""
            each.close()
        until(lambda: len(os.listdir("/proc/self/fd")) <= files + 1, 10)
        assert resident() - memory < 50 << 20
    finally:
        running.stop()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for each in half:
            each.close()


def test_a_slow_answer_and_a_quiet_visitor_are_not_let_go(monkeypatch):
    monkeypatch.setattr(connections, "PATIENCE", 0.5)
    running = Running()
    try:
        RELEASED.clear()
        with running.visit() as link:
            time.sleep(1.0)
            ask(link, kind="fast")
            assert answer(link)["req"] == 1
    finally:
        running.stop()


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def until(happened, seconds):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_nothing_is_computed_or_imported_before_it_is_asked_for():
    """Torch comes after the page, in the thread that computes."""
    code = """
import sys, threading, urllib.request
from twosides.explorer import server
from twosides.explorer.figures import FIGURES
from stand_in_page import PAGE, TOKEN
made = server.listen(0)
port = made.getsockname()[1]
explorer = server.Explorer(FIGURES, PAGE, TOKEN)
started = server.make_server(explorer, port)
seen = []
server.warm_up = lambda: seen.append(threading.current_thread().name)
thread = threading.Thread(target=started.run, kwargs={"sockets": [made]}, daemon=True)
thread.start()
urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz").read()
assert not seen
urllib.request.urlopen(f"http://127.0.0.1:{port}/").read()
[figure.spec() for figure in FIGURES]
assert not {"torch", "lightning", "diffusers"} & set(sys.modules)
started.should_exit = True
thread.join()
assert seen and seen[0].startswith("twosides-explorer"), seen
"""
    search = os.pathsep.join([str(Path(stand_in_page.__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": search},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_command_prints_an_address_that_works_and_ends_cleanly():
    import signal

    process = subprocess.Popen(
        [sys.executable, "-m", "twosides.cli", "explore", "--no-browser"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        address = process.stdout.readline().strip()
        match = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/#(\S{40,})", address)
        assert match, address
        port, token = int(match[1]), match[2]
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        link.request("GET", "/")
        assert link.getresponse().status == 200
        link.close()
        with connect(
            f"ws://127.0.0.1:{port}/ws", origin=f"http://127.0.0.1:{port}", proxy=None
        ) as ws:
            ws.send(json.dumps({"token": token}))
            hello = json.loads(ws.recv(20))["hello"]
            assert [f["name"] for f in hello["figures"]] == [f.name for f in FIGURES]
            process.send_signal(signal.SIGINT)
            with pytest.raises(ConnectionClosed):
                while True:
                    ws.recv(20)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        process.kill()


# ---------------------------------------------------------------------------- the file


def test_the_export_holds_every_frame(tmp_path):
    content = export.frames([TEST_FIGURE])
    assert content["version"] == __version__
    frames = content["frames"]["squares"]
    assert frames["params"] == ["x", "on"] and frames["grid"] == {
        "x": [0.0, 1.0],
        "on": [True, False],
    }
    packed = gzip.decompress(base64.b64decode(frames["data"]))
    (count,), at, found = struct.unpack_from("<I", packed), 4, []
    for _ in range(count):
        (length,) = struct.unpack_from("<I", packed, at)
        found.append(decoded(packed[at + 4 : at + 4 + length]))
        at += 4 + length
    assert at == len(packed)
    assert [f["view"]["numbers"][0]["value"] for f in found] == [0, 0, 1, 1]
    text = export.document(PAGE, content)
    assert "/assets/" not in text and "http" not in text.replace("https", "")
    assert (
        "<style>@font-face{src:url(data:font/woff2;base64,Zm9udA==) format('woff2')}</style>"
        in text
    )
    assert "const end = '<\\/script>';</script>" in text
    (block,) = re.findall(
        r'<script type="application/json" id="twosides-frames">(.*?)</script>', text
    )
    assert json.loads(block) == json.loads(json.dumps(content))


def test_exported_numbers_keep_twelve_bits():
    values = np.array([1 / 3, -1e-30, 3e38, 0.0, np.inf, -np.inf, np.nan, 1.0], dtype="<f4")
    message = wire.reply(1, "f", 0.0, View((Panel("plot", "", marks=(Mark("line", arrays={"x": values}),)),), (), ""))  # fmt: skip
    (kept,) = decoded(export.round_numbers(message))["view"]["panels"][0]["marks"][0][
        "arrays"
    ].values()
    np.testing.assert_allclose(kept, values, rtol=2.0**-13)
    assert (kept.view("<u4")[:4] & 0x7FF == 0).all()


def test_the_export_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"as a \.html file"):
        export.write(tmp_path / "page.txt", [TEST_FIGURE])
    with pytest.raises(ValueError, match="names assets/app-1.css 0 times"):
        export.document(replace(PAGE, index="<head></head>"), {})


def test_a_control_says_what_it_wanted():
    with pytest.raises(Invalid, match=r"x is a number in \[-1, 1e\+06\], got a huge number"):
        TEST_FIGURE.check({"x": 10**400})
    assert TEST_FIGURE.check({"many": ["b", "a", "b"][:2], "count": 3.0})["count"] == 3


def test_the_desk_holds_one_at_a_time():
    import asyncio

    async def race():
        desk, active, most = Desk(), 0, 0

        def work():
            nonlocal active, most
            active += 1
            most = max(most, active)
            time.sleep(0.001)
            active -= 1

        await asyncio.gather(*(desk.compute(lambda: work) for _ in range(20)))
        desk.close()
        return most

    assert asyncio.run(race()) == 1
