"""The explorer's page in a browser: against a stand-in for the server, against the server, and exported."""

import csv
import hashlib
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect, sync_playwright

import twosides as ts
import twosides.explorer
from twosides.explorer import wire
from twosides.explorer.export import write
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
    table,
)
from twosides.explorer.figures import FIGURES, model
from twosides.storage import models
from twosides.storage.networks import MLP

PAGE = Path(twosides.explorer.__file__).parent / "page"
WEB = Path(__file__).parents[2] / "web"
CHROMIUM = [
    "--no-sandbox",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
STAND_IN = "http://127.0.0.1:9"  # nobody listens: the tests answer
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self' ws://127.0.0.1:9"
)
WIDTHS = (390, 768, 1280)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
        yield browser
        browser.close()


@contextmanager
def opened(browser, **options):
    """A page of its own that must neither complain nor ask for anything beyond this machine."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], **options)
    page = context.new_page()
    complaints, addresses = [], []
    page.on("console", lambda m: complaints.append(m.text) if m.type in LOUD else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: addresses.append(request.url))
    page.on("websocket", lambda socket: addresses.append(socket.url))
    page.set_default_timeout(20_000)
    yield page
    context.close()
    assert not complaints
    local = ("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:", "file:")
    assert addresses and all(address.startswith(local) for address in addresses)


LOUD = ("error", "warning")


# ---------------------------------------------------------------------------- the stand-in


def everything(c, steps, schedule, samplers, truth, f):
    """A view with every kind of panel and mark."""
    if "q" in f:
        raise Invalid("There is no q in a drift", "f")
    t = np.linspace(0.0, 1.0, 31)
    k = np.arange(1, steps + 1)
    walks = np.cumsum(np.full((5, 31), 0.1), 1) * np.arange(1, 6)[:, None]
    plot = (
        Mark("line", r"$\alpha_t$", 0, {"x": t, "y": 1 - t}),
        Mark("line", r"$\sigma_t$", 1, {"x": t, "y": t ** (1 + c)}, {"dash": True, "dots": True}),
        Mark("area", "band", 2, {"x": t, "y0": t / 4, "y1": t / 2}),
        Mark("text", "here", None, {}, {"x": 0.5, "y": 0.5}),
    )
    plane = (
        Mark("field", "density", None, {"v": np.outer(t, t)}, {"extent": [-3, 3, -3, 3]}),
        Mark("paths", "paths", 3, {"x": walks, "y": -walks}),
        Mark("points", "points", None, {"x": [0.0, 1.0], "y": [1.0, math.nan]}, {"side": "flow"}),
    )
    heat = Mark("heat", "", None, {"v": np.tril(np.ones((4, 4)))}, {"diverging": True})
    pictures = {"v": np.linspace(0, 1, 6 * 8 * 8).reshape(6, 8, 8)}
    panels = (
        Panel("plot", r"Curves of $\alpha_t$", Axis("time $t$", 0, 1), Axis("", 0, 1), plot),
        Panel("plot", "A plane", Axis("$x_1$", -3, 3), Axis("$x_2$", -3, 3, reverse=True), plane),
        Panel(
            "plot", "Stems", Axis("step"), Axis("w"), (Mark("stems", "w", 4, {"x": k, "y": c / k}),)
        ),
        Panel(
            "plot",
            "Error",
            Axis("calls", log=True),
            Axis("error", log=True),
            (Mark("line", "ddim", 5, {"x": k, "y": 1e-3 / k**2}),),
        ),
        Panel("heat", "Matrix", Axis("prediction"), Axis("state"), (heat,)),
        Panel("images", "Pictures", marks=(Mark("images", "", None, pictures, {"columns": 3}),)),
        table("Rows", ["name", "$p$"], [["a, b", 0.25], ["`c`", 1e-9]]),
    )
    numbers = (
        Number("gap", r"max $|\Delta|$", 2.220446049250313e-16, ".2g"),
        Number("c", "churn", c, ".3f"),
        Number("kl", "divergence", math.inf),
        Number("equal", "equal to", schedule),
    )
    python = f"import twosides as ts\nprint({c!r}, {samplers!r})"
    return View(panels, numbers, python, "twosides demo", (r"A note with $\eta$.",))


CONTROLS = (
    Range("c", "Churn $c$", 0.0, 0.5, 0.01, 0.3, help="with help"),
    Range("steps", "Steps", 1, 1000, 1, 20, integer=True, log=True),
    Choice("schedule", "Schedule", (("flow", "Flow"), ("cosine", "Cosine")), "flow"),
    Many("samplers", "Samplers", (("a", "A"), ("b", "B"), ("d", "D")), ("a",), most=2),
    Switch("truth", "Truth", True),
    Text("f", "Drift $f(t)$", "-t", when={"truth": (True,)}),
)
TEXT = "First *words* of $x$ and `code`, <b>not bold</b>.\n\nMore:\n\n$$z_s = \\alpha_s \\hat x$$\n\nEnd."
PRACTICE = (
    Figure("everything", "Everything at once", TEXT, CONTROLS, f"{__name__}:everything"),
    Figure("again", "The same again", TEXT, CONTROLS, f"{__name__}:everything"),
)


class StandIn:
    """What the server does, one message at a time and under the test's control."""

    def __init__(self, page, ready=True, hold=False):
        self.ready, self.hold = ready, hold
        self.sockets, self.requests, self.held = [], [], []
        page.route(f"{STAND_IN}/**", self.file)
        page.route_web_socket("ws://127.0.0.1:9/ws", self.open)

    def file(self, route):
        name = route.request.url.removeprefix(STAND_IN).split("?")[0].strip("/") or "index.html"
        route.fulfill(path=PAGE / name, headers={"Content-Security-Policy": POLICY, **TYPES(name)})

    def open(self, socket):
        self.sockets.append(socket)
        socket.on_message(lambda message: self.receive(socket, message))

    def receive(self, socket, message):
        content = json.loads(message)
        if "token" in content:
            specs = [figure.spec() for figure in PRACTICE]
            hello = {"version": "9.9", "figures": specs, "ready": self.ready}
            if content["token"] == "key":
                socket.send(json.dumps({"hello": hello}))
            else:
                socket.close(code=4401)
            return
        self.requests.append(content)
        if self.hold:
            self.held.append(content["req"])
        else:
            self.answer(socket, message)

    def answer(self, socket, message):
        number = json.loads(message)["req"]
        try:
            number, figure, params = wire.request(message, {f.name: f for f in PRACTICE})
            socket.send(wire.reply(number, figure.name, 1.0, everything(**params)))
        except Invalid as error:
            socket.send(wire.error(number, str(error), "invalid", error.control))

    def release(self):
        """Answer what was held back."""
        number = self.held.pop()
        message = next(request for request in self.requests if request["req"] == number)
        self.answer(self.sockets[-1], json.dumps(message))


def TYPES(name):
    ends = {"html": "text/html", "js": "text/javascript", "css": "text/css", "woff2": "font/woff2"}
    return {"Content-Type": ends[name.rsplit(".", 1)[1]]}


@pytest.fixture
def page(browser):
    with opened(browser) as page:
        yield page


def shown(page, name="everything"):
    page.locator(f'#panels[data-shown="{name}"]').wait_for(state="attached")


def until(page, condition):
    """Wait for something on the stand-in's side."""
    for _ in range(400):
        if condition():
            return
        page.wait_for_timeout(25)
    raise AssertionError("waited in vain")


def readout(page, name):
    return page.locator(f'[data-number="{name}"]').get_attribute("value")


# ---------------------------------------------------------------------------- drawings, controls


def test_every_kind_of_panel_and_mark_is_drawn(page):
    StandIn(page)
    page.goto(f"{STAND_IN}/#key")
    shown(page)
    panels = page.locator(".panel")
    assert panels.count() == 7
    for i, least in enumerate([4, 3, 1, 1]):  # the paths with a stroke, at least
        plot = panels.nth(i)
        assert plot.locator(".stroke").count() >= least
        for d in plot.locator(".stroke, .area").evaluate_all(
            "all => all.map(a => a.getAttribute('d'))"
        ):
            assert d and "NaN" not in d
        assert plot.locator(".axis .tick").count() >= 4
        assert plot.locator("svg").get_attribute("aria-label")
    assert panels.nth(1).locator("image").count() == 1
    assert panels.nth(4).locator(".cell").count() == 10  # zeros are left out
    assert panels.nth(5).locator("image").count() == 6
    assert panels.nth(6).locator("td data").nth(1).get_attribute("value") == "1e-9"
    assert "<b>not bold</b>" in page.locator("#lead").inner_text()
    assert page.locator(".katex").count() > 5 and page.locator(".katex-error").count() == 0


def test_places_in_a_drawing_are_the_data(page):
    StandIn(page)
    page.goto(f"{STAND_IN}/#key")
    shown(page)
    d = page.locator(".panel").nth(0).locator(".stroke:not([stroke-dasharray])").nth(-2)
    d = d.get_attribute("d")
    corner = [float(word) for word in re.findall(r"-?[\d.]+", d)]
    (x0, y0), (x1, y1) = corner[:2], corner[-2:]
    ticks = "all => all.map(a => [a.textContent, a.transform.baseVal[0].matrix.e, a.transform.baseVal[0].matrix.f])"
    places = page.locator(".panel").nth(0).locator(".axis .tick").evaluate_all(ticks)
    across = {float(text): x for text, x, y in places if y == 0}
    up = {float(text): y for text, x, y in places if x == 0}
    assert np.allclose([x0, x1], [across[0.0], across[1.0]], atol=0.6)
    assert np.allclose([y0, y1], [up[1.0], up[0.0]], atol=0.6)


def test_readouts_say_the_number_to_the_last_digit(page):
    StandIn(page)
    page.goto(f"{STAND_IN}/#key")
    shown(page)
    assert float(readout(page, "gap")) == 2.220446049250313e-16
    texts = page.locator("#numbers dd").all_inner_texts()
    assert texts == ["2.2 \N{MULTIPLICATION SIGN} 10⁻¹⁶", "0.300", "∞", "flow"]
    expect(page.locator("#aloud")).to_contain_text("churn: 0.300")


def test_the_first_stop_skips_to_the_figure(page):
    """It moves the focus alone: what is behind the # would be taken for a token."""
    StandIn(page)
    page.goto(f"{STAND_IN}/#key")
    shown(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "title"
    token = "localStorage.getItem('twosides-token')"
    assert page.evaluate(token) == "key" and "#" not in page.url
    page.goto(f"{page.url}#title")
    page.reload()
    shown(page)
    assert page.evaluate(token) == "key"


def test_a_link_opens_in_another_tab(page):
    StandIn(page)
    page.goto(f"{STAND_IN}/#key")
    shown(page)
    other = page.context.new_page()
    StandIn(other)
    other.goto(page.url)
    shown(other)
    other.close()


def test_the_keyboard_alone_is_enough(page):
    StandIn(page)
    page.goto(f"{STAND_IN}/#key")
    shown(page)
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.type || document.activeElement.tagName"))
        if seen[-1] == "range":
            break
    assert seen[0] == "A" and seen[-1] == "range"  # first of all the way past the list
    page.keyboard.press("ArrowRight")
    expect(page.locator('[data-number="c"]')).to_have_attribute("value", "0.31")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('role')") == "switch":
            break
    page.keyboard.press("Space")
    expect(page.locator('[data-control="f"]')).to_be_hidden()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_every_control_acts_and_the_link_brings_it_back(browser, page):
    server = StandIn(page)
    page.goto(f"{STAND_IN}/#key")
    shown(page)
    page.get_by_label("Churn c, as a number").fill("0.125")
    page.locator('[data-control="steps"] input[type=range]').fill("240")
    page.locator("select").select_option("cosine")
    page.get_by_label("D", exact=True).check()
    assert page.get_by_label("B", exact=True).is_disabled()  # two of them are the most
    page.get_by_label("Drift f(t)").fill("-2*t")
    page.get_by_role("switch").uncheck()
    expect(page.locator('[data-number="equal"]')).to_have_attribute("value", "cosine")
    wanted = {
        "c": 0.125,
        "steps": 1000,
        "schedule": "cosine",
        "samplers": ["a", "d"],
        "truth": False,
        "f": "-2*t",
    }
    until(page, lambda: server.requests[-1]["params"] == wanted)
    page.wait_for_url(re.compile("truth=false&f=-2"))
    page.locator("#permalink").click()
    link = page.evaluate("navigator.clipboard.readText()")
    assert "key" not in link and link == page.url
    with opened(browser) as other:
        again = StandIn(other)
        other.goto(f"{link}#key")
        shown(other)
        assert again.requests[-1]["params"] == wanted
        assert other.get_by_label("Churn c, as a number").input_value() == "0.125"
        other.locator("#reset").click()
        expect(other.locator('[data-number="c"]')).to_have_attribute("value", "0.3")


def test_the_token_leaves_the_address_and_lasts_for_the_tab(page):
    StandIn(page)
    page.goto(f"{STAND_IN}/?figure=again#key")
    shown(page, "again")
    assert "#" not in page.url
    page.reload()
    shown(page, "again")


def test_an_error_stands_beside_its_control_until_it_is_repaired(page):
    StandIn(page)
    page.goto(f"{STAND_IN}/#key")
    shown(page)
    number = page.get_by_label("Churn c, as a number")
    number.fill("7")
    error = page.locator('[data-control="c"] .error')
    expect(error).to_have_text("Churn c is a number in [0, 0.5], got 7")
    assert number.get_attribute("aria-invalid") == "true"
    assert error.get_attribute("id") in number.get_attribute("aria-describedby")
    number.fill("0.5")
    expect(error).to_be_hidden()
    assert number.get_attribute("aria-invalid") == "false"


def test_figures_are_turned_like_pages(page):
    StandIn(page)
    page.goto(f"{STAND_IN}/#key")
    shown(page)
    page.get_by_label("Churn c, as a number").fill("0.2")
    page.locator("#figures a").nth(1).click()
    shown(page, "again")
    assert page.title() == "The same again · twosides" and "figure=again" in page.url
    assert page.locator("[aria-current]").inner_text() == "The same again"
    page.go_back()
    shown(page, "everything")
    expect(page.locator('[data-number="c"]')).to_have_attribute("value", "0.2")
    page.goto(f"{STAND_IN}/?figure=no-such")
    shown(page, "everything")


# ---------------------------------------------------------------------------- transport


def test_figures_are_listed_before_the_engine_has_started(page):
    server = StandIn(page, ready=False)
    page.goto(f"{STAND_IN}/#key")
    expect(page.locator("#status")).to_have_text("Starting the computation engine …")
    assert page.locator("#figures a").count() == 2
    assert page.locator("h1").inner_text() == "Everything at once"
    assert page.locator(".skeleton").is_visible() and not server.requests
    server.sockets[0].send('{"ready": true}')
    shown(page)
    assert page.locator("#status").is_hidden() and page.locator(".skeleton").count() == 0


def test_of_many_wishes_one_is_on_the_way_and_the_newest_waits(page):
    server = StandIn(page, hold=True)
    page.goto(f"{STAND_IN}/#key")
    slider = page.locator('[data-control="c"] input[type=range]')
    slider.wait_for()
    for value in np.linspace(0, 0.5, 51):
        slider.fill(f"{value:.2f}")
    page.wait_for_timeout(50)
    assert len(server.requests) == 1
    server.release()
    until(page, lambda: server.held)
    server.release()
    expect(page.locator('[data-number="c"]')).to_have_attribute("value", "0.5")
    assert [request["params"]["c"] for request in server.requests] == [0.3, 0.5]


def test_stale_and_foreign_replies_are_dropped(page):
    server = StandIn(page, hold=True)
    page.goto(f"{STAND_IN}/#key")
    page.locator("#figures a").nth(1).click()  # while the first figure is still on its way
    until(page, lambda: server.held)
    socket = server.sockets[-1]
    params = PRACTICE[0].check({"c": 0.44})
    socket.send(wire.reply(77, "everything", 1.0, everything(**params)))
    server.release()
    until(page, lambda: server.held)
    assert page.locator("#panels").get_attribute("data-shown") is None
    server.release()
    shown(page, "again")
    socket.send(wire.reply(1, "again", 1.0, everything(**params)))
    page.wait_for_timeout(50)
    assert readout(page, "c") == "0.3"


def test_a_lost_connection_is_said_and_mended(page):
    server = StandIn(page)
    page.goto(f"{STAND_IN}/#key")
    shown(page)
    server.sockets[-1].close(code=1011)
    expect(page.locator("#status")).to_contain_text("The connection to twosides is lost")
    page.get_by_label("Churn c, as a number").fill("0.07")
    expect(page.locator('[data-number="c"]')).to_have_attribute("value", "0.07")
    assert len(server.sockets) == 2 and page.locator("#status").is_hidden()


def test_without_the_token_it_says_what_to_open(page):
    StandIn(page)
    page.goto(f"{STAND_IN}/#wrong")
    expect(page.locator("#status")).to_contain_text(
        "Open the address that “twosides explore” printed"
    )


# ---------------------------------------------------------------------------- to take home


def saved(page, button):
    with page.expect_download() as download:
        page.locator(f"#{button}").click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def test_what_is_shown_can_be_taken_home(page):
    StandIn(page)
    page.goto(f"{STAND_IN}/#key")
    shown(page)
    view = everything(**PRACTICE[0].check({}))
    for button, text in (("copy-python", view.python), ("copy-cli", view.cli)):
        page.locator(f"#{button}").click()
        expect(page.locator(f"#{button}")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == text
    name, data = saved(page, "save-svg")
    drawing = ElementTree.fromstring(data)
    assert name == "twosides-everything.svg" and b"var(" not in data and b"class=" not in data
    assert len([each for each in drawing.iter() if each.tag.endswith("}image")]) == 1 + 2 + 6
    name, data = saved(page, "save-png")
    with Image.open(io.BytesIO(data)) as picture:
        colours = picture.convert("RGB").getcolors(1 << 24)
        assert name == "twosides-everything.png" and len(colours) > 100
        assert picture.width == 2 * float(drawing.get("width"))
    name, data = saved(page, "save-csv")
    rows = list(csv.reader(io.StringIO(data.decode())))
    alpha = [row for row in rows if row[2:3] == [r"$\alpha_t$"]]
    x, y = np.array([row[6:8] for row in alpha], dtype=float).T
    assert np.allclose(x, np.linspace(0, 1, 31)) and np.allclose(y, 1 - x, atol=1e-7)
    assert name == "twosides-everything.csv" and ["a, b", "0.25"] in rows


# ---------------------------------------------------------------------------- for everybody


def overflow(page):
    return page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )


def violations(page):
    """Serious and critical ones of axe-core's."""
    if not page.evaluate("'axe' in window"):
        page.evaluate((WEB / "node_modules/axe-core/axe.min.js").read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        (one["id"], [node["html"] for node in one["nodes"]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_and_use_it(browser, scheme):
    with opened(browser, color_scheme=scheme, reduced_motion="reduce") as page:
        server = StandIn(page, ready=False)
        page.goto(f"{STAND_IN}/#key")
        page.locator("#figures a").first.wait_for()
        assert page.evaluate("document.getAnimations().length") == 0
        server.sockets[0].send('{"ready": true}')
        shown(page)
        page.get_by_label("Churn c, as a number").fill("7")
        page.locator('[data-control="c"] .error').wait_for()
        page.locator("summary").click()
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            page.wait_for_timeout(120)
            assert overflow(page) == 0
            assert all(
                box["x"] >= 0 and box["x"] + box["width"] <= width
                for box in map(lambda one: one.bounding_box(), page.locator(".stage svg").all())
            )
            assert violations(page) == []


def luminance(colour):
    channels = [int(word) / 255 for word in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one, other):
    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_far_enough_from_the_page(browser, scheme):
    with opened(browser, color_scheme=scheme) as page:
        StandIn(page)
        page.goto(f"{STAND_IN}/#key")
        shown(page)
        colour = {
            name: page.evaluate(
                """name => { const probe = document.createElement("i");
                probe.style.color = `var(--${name})`; document.body.append(probe);
                const value = getComputedStyle(probe).color; probe.remove(); return value }""",
                name,
            )
            for name in ["ink", "soft", "accent", "wrong", "page", "card", "wash", "edge"]
            + ["neutral", "flow", "diffusion"]
            + [f"group-{i}" for i in range(8)]
        }
    for text in ("ink", "soft", "accent", "wrong"):
        assert all(contrast(colour[text], colour[behind]) >= 4.5 for behind in ("page", "card"))
    for ground in ("page", "card", "wash"):
        assert contrast(colour["ink"], colour[ground]) >= 7
    drawn = ["edge", "neutral", "flow", "diffusion", *(f"group-{i}" for i in range(8))]
    assert all(contrast(colour[name], colour["card"]) >= 3 for name in drawn)


def test_the_theme_can_be_chosen_and_is_kept(page):
    StandIn(page)
    page.emulate_media(color_scheme="light")
    page.goto(f"{STAND_IN}/#key")
    shown(page)
    ground = "luminance => getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.locator("#theme").click()
    page.locator("#theme").click()
    assert page.locator("#theme").inner_text() == "Theme: dark" and page.evaluate(ground) != light
    page.reload()
    assert page.locator("#theme").inner_text() == "Theme: dark" and page.evaluate(ground) != light


# ---------------------------------------------------------------------------- the figures themselves


@contextmanager
def serving(*options):
    """The address that `twosides explore` prints."""
    words = [sys.executable, "-c", "from twosides.cli import main; main()"]
    words += ["explore", "--no-browser", *options]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            yield re.search(r"http://127\.0\.0\.1:\d+/#\S+", process.stdout.readline())[0]
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def server():
    """The server with the figures alone."""
    with serving() as address:
        yield address


# In a process of its own, where the tests' type checks do not make it slow.
VIEWS = """
import json
from twosides.explorer import wire
from twosides.explorer.figures import FIGURES
views = {figure.name: figure.view(figure.check({})) for figure in FIGURES}
print(json.dumps({name: {
    "numbers": {each.name: wire._plain(each.value) for each in view.numbers},
    "python": view.python,
    "panels": [[panel.kind, len([m for m in panel.marks if m.kind != "text"]),
                sum(len(m.style.get("rows", ())) for m in panel.marks)] for panel in view.panels],
} for name, view in views.items()}))
"""


@pytest.fixture(scope="module")
def views():
    """What the functions of the figures give for their defaults."""
    done = subprocess.run([sys.executable, "-c", VIEWS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def number(value):
    """A readout's number, or its words."""
    try:
        return float(value)
    except ValueError:
        return value


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_a_figure_shows_what_python_computes_to_everybody(browser, server, views, figure):
    view = views[figure.name]
    with opened(browser, color_scheme="light", viewport={"width": 1280, "height": 900}) as page:
        page.goto(server.replace("#", f"?figure={figure.name}#"))
        shown(page, figure.name)
        said = page.locator("#numbers data").evaluate_all(
            "all => Object.fromEntries(all.map(one => [one.dataset.number, one.value]))"
        )
        assert set(said) == set(view["numbers"])
        for name, value in view["numbers"].items():
            wanted = pytest.approx(number(value), rel=1e-6, abs=1e-12, nan_ok=True)
            assert number(said[name]) == (wanted if isinstance(number(value), float) else value)
        page.locator("#copy-python").click()
        expect(page.locator("#copy-python")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == view["python"]
        drawn(page, view["panels"])
        assert violations(page) == []
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(100)
            assert overflow(page) == 0
        page.emulate_media(color_scheme="dark")
        page.wait_for_timeout(250)  # colours fade
        assert violations(page) == []


def test_a_model_of_the_visitors_own_is_sampled(browser, tmp_path):
    with torch.random.fork_rng(devices=[]):
        models.save(ts.Denoiser(MLP(2), "v", "cosine"), tmp_path / "m", shape=[2])
    figure = model.of(tmp_path / "m")
    with (
        serving("--model", str(tmp_path / "m")) as address,
        opened(browser, viewport={"width": 1280, "height": 900}) as page,
    ):
        page.goto(address.replace("#", "?figure=model#"))
        shown(page, "model")
        assert page.locator("h1").inner_text() == "Your model"
        for params in ({}, {"count": 9}):
            for name, value in params.items():
                page.locator(f'[data-control="{name}"] input:not([type=range])').fill(str(value))
                page.keyboard.press("Enter")
            view = figure.view(figure.check(params))
            expect(page.locator("#code code").first).to_have_text(view.python)
            assert len(view.numbers) == 2
            for each in view.numbers:
                assert float(readout(page, each.name)) == pytest.approx(each.value, rel=1e-5)
            drawn(page, [("plot", 1, 0)] * 4)
        assert violations(page) == [] and overflow(page) == 0


def drawn(page, panels):
    """Every panel is there, with as many marks as it should have, and labels that do not overlap."""
    assert page.locator(".panel").count() == len(panels) > 0
    for i, (kind, marks, rows) in enumerate(panels):
        one = page.locator(".panel").nth(i)
        if kind == "table":
            assert one.locator("tbody tr").count() == rows > 0
            continue
        for axis in one.locator(".axis").all():
            texts = axis.locator(".tick text").all_text_contents()
            assert len([text for text in texts if text]) >= 2
            assert not overlapping(axis.locator(".tick text"))
        assert not overlapping(one.locator(".label:not(.cell)"))
        assert one.locator("svg").locator(".stroke, .area, image").count() >= marks
        assert "NaN" not in one.locator("svg").inner_html()


def overlapping(texts):
    """Pairs of texts whose boxes share more than a sliver."""
    boxes = texts.evaluate_all(
        "all => all.map(a => a.getBoundingClientRect()).map(a => [a.left, a.top, a.right, a.bottom])"
    )
    return [
        (one, other)
        for one, other in itertools.combinations(boxes, 2)
        if min(one[2], other[2]) - max(one[0], other[0]) > 1
        and min(one[3], other[3]) - max(one[1], other[1]) > 3
    ]


# ---------------------------------------------------------------------------- without a server


def test_an_exported_page_works_from_a_file(browser, tmp_path):
    churn = next(figure for figure in FIGURES if figure.name == "churn")
    figures = (
        replace(churn, frames={"c": (0.0, 0.3, 0.5), "steps": (5, 10)}),
        replace(PRACTICE[0], frames={"c": (0.1, 0.4), "schedule": ("flow", "cosine")}),
    )
    path = tmp_path / "page.html"
    write(path, figures)
    with opened(browser, offline=True) as page:
        page.goto(path.as_uri())
        shown(page, "churn")
        assert page.locator("#version").inner_text().startswith("precomputed by twosides")
        assert page.get_by_label("Sampler", exact=True).is_disabled()
        slider = page.locator('[data-control="c"] input[type=range]')
        for position, c in enumerate((0.0, 0.3, 0.5)):
            slider.fill(str(position))
            view = churn.view(churn.check({"c": c, "steps": 10}))
            expect(page.locator("#code code").first).to_have_text(view.python)
            for each in view.numbers:
                assert float(readout(page, each.name)) == pytest.approx(each.value, rel=1e-6)
        page.locator("#figures a").nth(1).click()
        shown(page, "everything")
        page.locator("select").select_option("cosine")
        expect(page.locator('[data-number="equal"]')).to_have_attribute("value", "cosine")
        assert readout(page, "c") == "0.4"  # the frame nearest to the default, never one between
        assert page.get_by_label("Churn c, as a number").input_value() == "0.4"
        assert saved(page, "save-png")[1].startswith(b"\x89PNG")
        page.locator("#permalink").click()
        link = page.evaluate("navigator.clipboard.readText()")
        other = page.context.new_page()
        other.goto(link)
        shown(other, "everything")
        assert readout(other, "equal") == "cosine"
        assert violations(page) == [] and overflow(page) == 0


# ---------------------------------------------------------------------------- the bundle


def test_the_bundle_is_whole_small_and_evaluates_no_text():
    manifest = json.loads((PAGE / "manifest.json").read_text())
    listed = {manifest["js"], manifest["css"], *manifest["fonts"]}
    found = {path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file()}
    assert found == listed | {"index.html", "manifest.json", "LICENSES.txt"}
    for name in (manifest["js"], manifest["css"]):
        digest = hashlib.sha256((PAGE / name).read_bytes()).hexdigest()[:10]
        assert digest in name and f'"/{name}"' in (PAGE / "index.html").read_text()
    script, style = ((PAGE / manifest[kind]).read_text() for kind in ("js", "css"))
    assert not re.search(r"\beval\b|\bFunction\(|document\.write", script)
    sources = [path.read_text() for path in sorted((WEB / "src").rglob("*.ts"))]
    assert len(sources) > 15 and not any("innerHTML" in source for source in sources)
    assert "</script" not in script.lower()
    inline = re.findall(
        r"<style|\sstyle=|\son\w+=|<script(?! src=)", (PAGE / "index.html").read_text()
    )
    assert not inline
    fonts = set(re.findall(r"url\(\"?\./([^)\"]+)", style))
    assert {f"assets/{name}" for name in fonts} == set(manifest["fonts"])
    assert not re.search(r"https?://", style)


def test_every_package_in_the_bundle_has_its_licence_beside_it():
    text = (PAGE / "LICENSES.txt").read_text()
    wanted = json.loads((WEB / "package.json").read_text())["dependencies"]
    for name, version in wanted.items():
        assert f"{name} {version} (" in text
    assert text.count("Permission") >= len(wanted)
