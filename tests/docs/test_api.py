"""The reference has every public name once, and nothing that is not there."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import twosides as ts

PAGES = Path(__file__).parents[2] / "docs/api"
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in sorted(PAGES.glob("*.md")))
MODULES = re.findall(r"^\.\. automodule:: (\S+)$", TEXT, flags=re.M)
ENTRIES = re.findall(r"^\.\. (?:auto(?:class|function)|py:data):: (\S+)$", TEXT, flags=re.M)


def module(name):
    """The module of an entry, which may be a public room under its public name."""
    short = name.removeprefix("twosides.")
    return getattr(ts, short) if short in ts._HOME else importlib.import_module(name)


def described(name):
    """What autodoc shows of a module: its `__all__`, or what is made in it."""
    loaded = module(name)
    names = getattr(loaded, "__all__", None)
    if names is None:
        names = [n for n in vars(loaded) if getattr(vars(loaded)[n], "__module__", "") == name]
    return [getattr(loaded, name) for name in names]


def test_each_entry_stands_once():
    assert len(MODULES) == len(set(MODULES)) > 40
    assert len(ENTRIES) == len(set(ENTRIES))


@pytest.mark.parametrize("name", sorted(ts._HOME))
def test_a_public_name_has_an_entry(name):
    """To mend it: `.. autofunction:: twosides.NAME` in an eval-rst block of docs/api/*.md."""
    thing = getattr(ts, name)
    if inspect.ismodule(thing) and name in ("integrations", "losses", "ode", "training", "data"):
        assert any(module.startswith(f"twosides.{name}.") for module in MODULES)
    elif inspect.ismodule(thing):
        assert f"twosides.{name}" in MODULES
    else:
        assert f"twosides.{name}" in ENTRIES


@pytest.mark.parametrize("name", [n for n in ts._HOME if inspect.ismodule(getattr(ts, n))])
def test_what_a_public_room_exports_has_an_entry(name):
    room = getattr(ts, name)
    shown = {id(thing) for module in MODULES for thing in described(module)}
    shown |= {id(getattr(ts, entry.removeprefix("twosides."))) for entry in ENTRIES}
    for inner in getattr(room, "__all__", []):
        thing = getattr(room, inner)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert id(thing) in shown, f"{name}.{inner}"


def test_every_entry_is_there():
    for entry in ENTRIES:
        assert entry.removeprefix("twosides.") in ts._HOME
    for name in MODULES:
        assert inspect.ismodule(module(name)) and described(name)


def test_every_page_is_in_the_list():
    index = (PAGES / "index.md").read_text(encoding="utf-8")
    listed = index.split("```{toctree}")[1].split("```")[0].split("\n")
    assert {f"{line}.md" for line in listed if line} - {":hidden:.md"} | {"index.md"} == {
        page.name for page in PAGES.glob("*.md")
    }
