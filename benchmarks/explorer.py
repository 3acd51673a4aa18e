"""How fast the explorer answers: a slider, a flood, many visitors, and its memory over time.

    python benchmarks/explorer.py [--seconds 600]

Timed from the client, on the machine's own loopback, with a real server in another process; and
in Chromium, from a slider's move to the painted figure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import shutil
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

SLIDERS = {
    "two-sides": ("eta", [0.05 * i for i in range(30)]),
    "scaling": ("k", [0.02 * i + 0.01 for i in range(30)]),
    "straightness": ("variance", [0.03 * i + 0.02 for i in range(30)]),
    "weightings": ("std", [0.1 + 0.05 * i for i in range(30)]),
    "churn": ("c", [0.015 * i + 0.005 for i in range(30)]),
    "reversed": ("t", [0.025 * i for i in range(30)]),
}


@contextlib.contextmanager
def visit(port: int, token: str) -> Iterator[Any]:
    """A WebSocket that is ready."""
    origin = f"http://127.0.0.1:{port}"
    with connect(f"ws://127.0.0.1:{port}/ws", origin=origin, proxy=None) as link:
        link.send(json.dumps({"token": token}))
        link.recv(60)  # hello
        link.recv(60)  # ready
        yield link


def ask(link: Any, number: int, figure: str, params: dict[str, Any]) -> None:
    """Send a request."""
    link.send(json.dumps({"req": number, "figure": figure, "params": params}))


def number_of(message: str | bytes) -> int:
    """The request that a message answers."""
    if isinstance(message, str):
        return json.loads(message)["req"]
    (length,) = struct.unpack_from("<I", message)
    return json.loads(message[4 : 4 + length])["req"]


def sliders(port: int, token: str) -> None:
    """Median and p90 from a slider's move to the reply, each value new."""
    with visit(port, token) as link:
        for figure, (control, values) in SLIDERS.items():
            ask(link, 0, figure, {})
            link.recv(60)
            taken = []
            for value in values:
                start = time.perf_counter()
                ask(link, 1, figure, {control: round(value, 6)})
                link.recv(60)
                taken.append((time.perf_counter() - start) * 1e3)
            p90 = statistics.quantiles(taken, n=10)[-1]
            print(
                f"{figure:12} slider to reply: {statistics.median(taken):6.1f} ms, p90 {p90:6.1f}"
            )


def flood(port: int, token: str, count: int = 500) -> None:
    """Many moves at 500 Hz: how many were computed, and when the last came after the last move."""
    with visit(port, token) as link:
        for number in range(1, count + 1):
            ask(link, number, "churn", {"c": round(0.9 * number / count, 6)})
            time.sleep(0.002)
        last, frames = time.perf_counter(), 1
        while number_of(link.recv(60)) != count:
            frames += 1
        delay = (time.perf_counter() - last) * 1e3
        print(f"flood of {count}: {frames} computed, the last {delay:.1f} ms after the last move")


def crowd(port: int, token: str, count: int = 200) -> None:
    """Many visitors at once: answered, told busy or 503, and how long it took."""
    found: list[tuple[str, float]] = []

    def one(number: int) -> None:
        start = time.perf_counter()
        try:
            with visit(port, token) as link:
                ask(link, number, "scaling", {"k": round(number / count, 6)})
                kind = "busy" if isinstance(link.recv(60), str) else "answered"
        except InvalidStatus as error:
            kind = str(error.response.status_code)
        found.append((kind, time.perf_counter() - start))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kinds = {kind: sum(k == kind for k, _ in found) for kind, _ in found}
    print(f"{count} visitors at once: {kinds}, the slowest {max(s for _, s in found):.2f} s")


MOVE = """async ([name, positions]) => {
  const panels = document.getElementById("panels");
  const slider = document.querySelector(`[data-control="${name}"] input[type=range]`);
  const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  const shown = () => new Promise((done) => {
    const watch = new MutationObserver(() => {
      if (panels.getAttribute("aria-busy") === "true") return;
      watch.disconnect();
      done();
    });
    watch.observe(panels, { attributes: true, attributeFilter: ["aria-busy"] });
  });
  const taken = [];
  for (const position of positions) {
    await painted();
    const start = performance.now();
    const drawn = shown();
    slider.value = Number(slider.min) + position * (slider.max - slider.min);
    slider.dispatchEvent(new Event("input", { bubbles: true }));
    await drawn;
    await painted();
    taken.push(performance.now() - start);
  }
  return taken;
}"""
"""Moves a slider and returns the milliseconds from each move to the frame after its drawing."""


def pixels(port: int, token: str) -> None:
    """Median and p90 from a slider's move to the painted figure, in a headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"http://127.0.0.1:{port}/#{token}")
        for figure, (control, _) in SLIDERS.items():
            page.click(f'nav a[data-figure="{figure}"]')
            page.wait_for_selector(f'#panels[data-shown="{figure}"][aria-busy="false"]')
            # One position is the default's, which moves nothing: 0.37 steps are beside all of them.
            positions = [(0.37 * i) % 1 for i in range(1, 42)]
            taken = page.evaluate(MOVE, [control, positions])[1:]
            p90 = statistics.quantiles(taken, n=10)[-1]
            print(
                f"{figure:12} slider to pixels: {statistics.median(taken):5.1f} ms, p90 {p90:6.1f}"
            )
        browser.close()


def soak(port: int, token: str, pid: int, seconds: float, count: int = 200) -> None:
    """Visitors who come, move sliders and go for some time; and the server's memory meanwhile."""
    process, end, found = psutil.Process(pid), time.monotonic() + seconds, Counter[str]()

    def one(number: int) -> None:
        choice = random.Random(number)
        while time.monotonic() < end:
            try:
                with visit(port, token) as link:
                    for _ in range(choice.randrange(1, 20)):
                        figure, (control, values) = choice.choice(list(SLIDERS.items()))
                        value = round(choice.uniform(values[0], values[-1]), 6)
                        ask(link, 1, figure, {control: value})
                        found["busy" if isinstance(link.recv(60), str) else "answered"] += 1
                        time.sleep(choice.uniform(0, 1))
            except InvalidStatus as error:
                found[str(error.response.status_code)] += 1
                time.sleep(choice.uniform(0, 2))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    sizes = []
    while time.monotonic() < end:
        time.sleep(1)
        sizes.append(process.memory_info().rss / 1e6)
    for thread in threads:
        thread.join()
    tenth = max(1, len(sizes) // 10)
    means = [statistics.mean(sizes[i : i + tenth]) for i in range(0, tenth * 10, tenth)]
    print(f"{count} visitors for {seconds:.0f} s: {dict(found)}, {sum(found.values())} in all")
    print(f"memory in MB, tenth by tenth: {' '.join(f'{mean:.0f}' for mean in means)}")


def main() -> None:
    """Start a server and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.0, help="of 200 visitors who stay")
    seconds = parser.parse_args().seconds
    command = [sys.executable, "-m", "twosides.cli", "explore", "--no-browser"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.fullmatch(r"http://127.0.0.1:(\d+)/#(\S+)", process.stdout.readline().strip())
        assert found is not None
        port, token = int(found[1]), found[2]
        print(f"the address is printed after {time.perf_counter() - start:.2f} s")
        with visit(port, token):
            pass
        print(f"figures can be computed after {time.perf_counter() - start:.2f} s")
        sliders(port, token)
        flood(port, token)
        crowd(port, token)
        pixels(port, token)
        if seconds:
            soak(port, token, process.pid, seconds)
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
