"""The explorer as one file: the page with frames that were computed in advance.

The file works from disk without a network or Python. Each figure has the replies for a grid of a
few of its controls, exactly as the server sends them but with their float32 numbers rounded to 12
bits, so that they compress. A figure's frames are `uint32 count`, then for each (row-major over
`params`) `uint32 length` and the reply; gzipped, in base64.
"""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twosides import __version__
from twosides.explorer import page as pages
from twosides.explorer import wire
from twosides.explorer.figure import Figure
from twosides.explorer.page import Page

BITS = 12  # the bits of a float32's mantissa that are kept; it has 23


def write(
    path: Path, figures: Sequence[Figure], tell: Callable[[int, int], object] | None = None
) -> int:
    """Write the page and return its size in bytes.

    path: the .html file.
    figures: the figures.
    tell: a function that is called with (done, total) frames.
    """
    if path.suffix != ".html":
        raise ValueError(f"{path}: the explorer is exported as a .html file")
    from twosides.storage.files import write_file

    page, total = pages.load(), sum(len(list(points(figure))) for figure in figures)
    done = itertools.count(1)

    def tick() -> None:
        if tell is not None:
            tell(next(done), total)

    content = document(page, frames(figures, tick)).encode()
    write_file(path, content)
    return len(content)


def points(figure: Figure) -> Iterable[dict[str, Any]]:
    """The parameters of a figure's frames, row-major over its `frames`."""
    names = list(figure.frames)
    for values in itertools.product(*figure.frames.values()):
        yield figure.check(dict(zip(names, values, strict=True)))


def frames(figures: Sequence[Figure], tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The figures' specs and frames as JSON-able data."""
    made: dict[str, Any] = {}
    for figure in figures:
        replies = []
        for number, params in enumerate(points(figure)):
            view = figure.view(params)
            replies.append(round_numbers(wire.reply(number, figure.name, 0.0, view)))
            tick()
        packed = struct.pack("<I", len(replies)) + b"".join(
            struct.pack("<I", len(each)) + each for each in replies
        )
        data = base64.b64encode(gzip.compress(packed, 9, mtime=0)).decode()
        grid = {name: list(values) for name, values in figure.frames.items()}
        made[figure.name] = {"grid": grid, "params": list(grid), "data": data}
    specs = [figure.spec() for figure in figures]
    return {"version": __version__, "figures": specs, "frames": made}


def round_numbers(reply: bytes) -> bytes:
    """The reply with every number rounded to BITS bits; infinities and NaN stay."""
    start = 4 + struct.unpack_from("<I", reply)[0]
    values = np.frombuffer(reply, "<u4", offset=start).astype(np.uint64)
    spare = 23 - BITS
    kept = ((values + (1 << (spare - 1))) >> spare) << spare
    special = (values & 0x7F800000) == 0x7F800000
    return reply[:start] + np.where(special, values, kept).astype("<u4").tobytes()


def document(page: Page, content: dict[str, Any]) -> str:
    """The index.html with its script, style sheet and fonts inside, and the frames."""
    sheet = page.assets[page.sheet].decode()
    for font in page.fonts:
        data = base64.b64encode(page.assets[font]).decode()
        name = re.escape(font.rpartition("/")[2])
        sheet = re.sub(
            rf"url\([\"']?[^\"')]*{name}[\"']?\)", f"url(data:font/woff2;base64,{data})", sheet
        )
    script = page.assets[page.script].decode().replace("</script", "<\\/script")
    # A "<" is always inside of a string of the JSON; escaped, it cannot end the element.
    text = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    index = _replace(page.index, "link", page.sheet, f"<style>{sheet}</style>")
    index = _replace(index, "script", page.script, f'<script type="module">{script}</script>')
    block = f'<script type="application/json" id="twosides-frames">{text}</script>'
    return index.replace("</head>", f"{block}</head>", 1)


def _replace(index: str, tag: str, asset: str, content: str) -> str:
    """The page with an element that loads an asset replaced by its content."""
    end = r"\s*</script>" if tag == "script" else ""
    pattern = rf"<{tag}\b[^>]*{re.escape(asset)}[^>]*>{end}"
    found = re.findall(pattern, index)
    if len(found) != 1:
        raise ValueError(f"the page's index.html names {asset} {len(found)} times, not once")
    return index.replace(found[0], content)
