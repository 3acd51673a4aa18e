"""`make docs` builds these pages with Sphinx; they are written to be read as files, too."""

import re
from typing import Any

project = "twosides"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "twosides"
html_extra_path = ["../build/extra"]  # the explorer's exported page, which explorer.md embeds
myst_heading_anchors = 3
autodoc_member_order = "bysource"


def inline(text: str) -> str:
    """A paragraph as reStructuredText: what is in backticks as code, the rest as it is."""
    parts = re.split(r"`([^`]+)`", " ".join(text.split()))
    escaped = [re.sub(r"([*|_\\`])", r"\\\1", part) for part in parts[::2]]
    # A backslash and a space are nothing, but end the code before a letter, as in `frame`s.
    code = [f"\\ ``{part}``\\ " for part in parts[1::2]]
    return "".join(a + b for a, b in zip(escaped, [*code, ""], strict=True))


def rewrite(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings, which are made for a terminal, for Sphinx.

    Paragraphs stay; `name: meaning` lines become a list; formulas, tables and examples, which are
    indented or begin with "|" or ">>>", are shown as they stand.
    """
    made: list[str] = []
    for block in re.split(r"\n\s*\n", "\n".join(lines).rstrip()):
        items = re.split(r"\n(?=\S)", block)
        described = [re.fullmatch(r"(\w[\w, ]*): (.*)", item, flags=re.S) for item in items]
        if re.match(r"\s|\||>>>", block):
            made += ["::", "", *(f"   {row}" for row in block.split("\n"))]
        elif all(described):
            made += [f"- ``{found[1]}``: {inline(found[2])}" for found in described if found]
        else:
            made += [inline(block)]
        made += [""]
    lines[:] = made


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", rewrite)
