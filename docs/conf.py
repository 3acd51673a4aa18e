"""`make docs` builds these pages with Sphinx; they are written to be read as files, too."""

import re
import sys
from typing import Any

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

import twosides as ts

project = "twosides"
author = "the authors of twosides"
copyright = "2026, the authors of twosides"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "sphinx_design",
]
html_theme = "furo"
html_title = "twosides"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_extra_path = ["../build/extra"]  # the explorer's exported page, which the pages embed
html_math_renderer = "mathml"  # of this file: no script, no font and no network are needed
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # what an override does is said where it is first defined
maximum_signature_line_length = 90

# The public rooms under their public names: `twosides.grids` is `twosides.sampling.grids`.
for _name in ts._HOME:
    _thing = getattr(ts, _name)
    if type(_thing) is type(sys):
        sys.modules.setdefault(f"twosides.{_name}", _thing)
PUBLIC = {id(getattr(ts, name)) for name in ts._HOME}


def inline(text: str) -> str:
    """A paragraph as reStructuredText: what is in backticks as code, the rest as it is."""
    parts = re.split(r"`([^`]+)`", " ".join(text.split()))
    escaped = [re.sub(r"([*|_\\`])", r"\\\1", part) for part in parts[::2]]
    # A backslash and a space are nothing, but end the code before a letter, as in `frame`s.
    code = [f"\\ ``{part}``\\ " for part in parts[1::2]]
    return "".join(a + b for a, b in zip(escaped, [*code, ""], strict=True))


def shown(block: str) -> list[str]:
    """A formula, a table in columns of text or an example, as it stands."""
    example = block.lstrip().startswith(">>>")
    return [
        f".. code-block:: {'pycon' if example else 'text'}",
        "",
        *(f"   {row}" for row in block.split("\n")),
    ]


def table(block: str) -> list[str]:
    """A Markdown table."""
    head, _, *rows = block.split("\n")
    made = [".. list-table::", "   :header-rows: 1", ""]
    for row in (head, *rows):
        first, *others = (inline(cell) for cell in row.strip().strip("|").split("|"))
        made += [f"   * - {first}", *(f"     - {cell}" for cell in others)]
    return made


def rewrite(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings, which are made for a terminal, for Sphinx.

    Paragraphs stay; `name: meaning` lines become a list; formulas and examples, which are indented
    or begin with ">>>", are shown as they stand, and tables become tables.
    """
    made: list[str] = []
    for number, block in enumerate(re.split(r"\n\s*\n", "\n".join(lines).rstrip())):
        items = re.split(r"\n(?=\S)", block)
        described = [re.fullmatch(r"(\w[\w, ]*): (.*)", item, flags=re.S) for item in items]
        if re.match(r"\|.*\n\|[-| ]+\|\n", block):
            made += table(block)
        elif re.match(r"\s|\||>>>", block):
            made += shown(block)
        elif number and all(described):
            made += [f"- ``{found[1]}``: {inline(found[2])}" for found in described if found]
        else:
            made += [inline(block)]
        made += [""]
    lines[:] = made


def leave_out(app: Any, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Whether a member is left out: it has an entry under a shorter name, or says nothing."""
    once = what == "module" and id(thing) in PUBLIC
    return True if once or str(thing.__doc__).startswith("Alias for field number") else None


def math(self: Any, node: Any) -> None:
    """An equation as MathML, which browsers set themselves."""
    block = node.tagname == "math_block"
    markup = tex2mathml(node.astext(), as_block=block)
    self.body.append(f'<div class="equation">{markup}</div>' if block else markup)
    raise SkipNode


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", rewrite)
    app.connect("autodoc-skip-member", leave_out)
    app.add_html_math_renderer("mathml", (math, None), (math, None))
