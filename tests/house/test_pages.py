"""The pages about the house say what the tests hold, and texts name modules that are there."""

import ast
import functools
import re
from pathlib import Path

from test_layers import ORDER, ROOT

import twosides

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/design.md").read_text(encoding="utf-8")
FORMATS = {"twosides.plan", "twosides.model", "twosides.sampler"}  # of files
STALE = {  # to be put right in docstrings
    "twosides.commands",
    "twosides.training.adaptive",
    "twosides.schedules.schedule.Cosine",
    "twosides.schedules.schedule.FlowMatching",
}


def test_the_rooms_of_the_page_are_in_the_order_that_is_held():
    section = PAGE.split("## The rooms")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    told = [set(re.findall(r"`(\w+)`", row)) for row in reversed(rows)]
    there = {path.stem for path in ROOT.iterdir()}
    assert told == [rooms & there for rooms in ORDER]


def test_what_is_written_by_hand_is_there():
    section = PAGE.split("## What is written by hand")[1].split("\n## ")[0]
    for row in section.splitlines():
        if row.startswith("|") and "`" in (piece := row.split("|")[1]):
            folder = ""
            for name in re.findall(r"`([\w/.]+)`", piece):
                folder = name.rpartition("/")[0] or folder
                assert (ROOT / folder / Path(name).name).exists(), name


@functools.cache
def bound(file):
    """The names that a module binds: what it defines and imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def resolves(path):
    """Whether a dotted path is a module, or a name that one binds; nothing is imported."""
    names = path.split(".")[1:]
    for length in range(len(names), 0, -1):
        module = ROOT.joinpath(*names[:length])
        for file in (module.with_suffix(".py"), module / "__init__.py"):
            if file.exists():
                return set(names[length : length + 1]) <= bound(file)
    return set(names[:1]) <= bound(ROOT / "__init__.py") | set(twosides._HOME)


def test_modules_that_texts_name_are_there():
    """In code, docstrings, examples and pages: `twosides.room.module.name`, `room.module`."""
    rooms = "|".join(path.stem for path in ROOT.iterdir() if (path / "__init__.py").exists())
    full, short = r"\btwosides(?:\.[A-Za-z_]\w*)+", rf"`((?:{rooms})(?:\.[a-z_]\w*)+)`"
    texts = [
        *ROOT.rglob("*.py"),
        *REPOSITORY.glob("benchmarks/*.py"),
        *REPOSITORY.glob("docs/*.md"),
    ]
    named = set()
    for path in (*texts, REPOSITORY / "README.md"):
        text = path.read_text(encoding="utf-8")
        named |= set(re.findall(full, text))
        named |= {f"twosides.{name}" for name in re.findall(short, text)}
        for module, names in re.findall(r"from (twosides[\w.]*) import (\w+(?:, \w+)*)", text):
            named |= {f"{module}.{name}" for name in names.split(", ")}
    assert len(named) > 300
    assert {name for name in named if not resolves(name)} - FORMATS <= STALE
