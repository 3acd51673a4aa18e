"""The reference has every public name, and nothing that is not there."""

import importlib
import inspect
import re
from pathlib import Path

import twosides as ts

PAGE = (Path(__file__).parents[2] / "docs/api.md").read_text(encoding="utf-8")
MODULES = re.findall(r"^\.\. automodule:: (\S+)$", PAGE, flags=re.M)


def described(module):
    """What autodoc shows of a module: its `__all__`, or what is made in it."""
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", None)
    if names is None:
        names = [n for n in vars(loaded) if getattr(vars(loaded)[n], "__module__", "") == module]
    return [getattr(loaded, name) for name in names]


def test_each_module_is_named_once_and_headed():
    assert len(MODULES) == len(set(MODULES)) > 30
    assert re.findall(r"^### `(\S+)`$", PAGE, flags=re.M) == MODULES


def test_every_public_name_is_described():
    shown = {id(thing) for module in MODULES for thing in described(module)}
    for name in ts._HOME:
        thing = getattr(ts, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert id(thing) in shown, f"{name}, of {thing.__module__}"
