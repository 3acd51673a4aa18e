"""Web pages of one file: no network, no script, legible in light and dark and on a phone."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

Chart = Any  # matplotlib's Figure, which is imported where one is drawn
WIDE, TALL = 7.0, 2.9  # inches


def page(title: str, template: str, parts: Mapping[str, str]) -> str:
    """Make a page of a template.

    title: the page's, as text.
    template: the file in this package that is the page's body, with names in double braces.
    parts: the HTML in place of each name; KeyError for a name without one.
    """
    body = _fill(_read(template), parts)
    return _fill(_read("display/page.html"), {"title": html.escape(title), "body": body})


def _read(name: str) -> str:
    return resources.files("twosides").joinpath(name).read_text(encoding="utf-8")


def _fill(template: str, parts: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def image(png: bytes, alt: str) -> str:
    """A picture, within the page."""
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def table(rows: Sequence[Sequence[str]], *, escape: bool = True) -> str:
    """A table that scrolls sideways where it is too wide; first row and first column are heads."""
    mark = html.escape if escape else str
    lines: list[str] = []
    for number, (first, *rest) in enumerate(rows):
        scope, kind = ("col", "th scope=col") if number == 0 else ("row", "td")
        cells = "".join(f"<{kind}>{mark(cell)}</{kind.split()[0]}>" for cell in rest)
        lines.append(f"<tr><th scope={scope}>{mark(first)}</th>{cells}</tr>")
    head, body = lines[0], "\n".join(lines[1:])
    made = f"<table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody></table>"
    return f'<div class="scroll">{made}</div>'


def axes(**options: Any) -> tuple[Chart, Any]:
    """An empty chart and its axes; options are matplotlib's for axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDE, TALL), layout="constrained")
    FigureCanvasAgg(figure)
    made = figure.add_subplot(**options)
    made.grid(alpha=0.3, linewidth=0.5)
    return figure, made


def chart(figure: Chart, alt: str) -> str:
    """A matplotlib figure as inline SVG, its black ink in the colour of the page's text."""
    import matplotlib

    buffer = io.StringIO()
    figure.patch.set_alpha(0)
    for panel in figure.axes:
        panel.patch.set_alpha(0)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "twosides"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace("#000000", "currentColor")
    # Within HTML namespaces are known, and the picture's own metadata say nothing.
    svg = re.sub(r'<metadata>.*?</metadata>| xmlns(:\w+)?="[^"]*"', "", svg, flags=re.S)
    described = f'<svg role="img" aria-label="{html.escape(alt)}" class="chart"'
    return f'<div class="scroll">{svg.replace("<svg", described, 1)}</div>'
