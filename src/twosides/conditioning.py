"""Dictionaries in dictionaries, and the same flat, with a name of its own for each leaf.

    {"encoder_hidden_states": a, "added_cond_kwargs": {"time_ids": b}}      nested, as networks take
    {"encoder_hidden_states": a, "added_cond_kwargs.time_ids": b}           flat, as files hold it

>>> flat({"a": 1, "b": {"c": 2}})
{'a': 1, 'b.c': 2}
>>> nested({"a": 1, "b.c": 2})
{'a': 1, 'b': {'c': 2}}
>>> flat({"a": {}})
{'a': {}}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What is in dictionaries within, under their names with "." between."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        inner = flat(value) if isinstance(value, Mapping) and value else None
        found |= {name: value} if inner is None else {f"{name}.{k}": v for k, v in inner.items()}
    return found


def nested(given: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`; ValueError for "a" beside "a.b"."""
    tree: dict[str, Any] = {}
    for name, value in given.items():
        *path, last = name.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ValueError(f"{name} is inside of {part}, which is a value itself")
        if last in place:
            raise ValueError(f"{name} is a value and a dictionary")
        place[last] = value
    return tree


def moved(tree: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """A nested one with its tensors on a device."""
    there = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in flat(tree).items()}
    return nested(there)
