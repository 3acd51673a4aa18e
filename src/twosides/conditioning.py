"""Conditioning: what a network is told beside z and time, and the null value it is told instead.

Networks take dictionaries in dictionaries; files and options name every leaf of them, with dots:

    {"encoder_hidden_states": a, "added_cond_kwargs": {"time_ids": b}}      nested
    {"encoder_hidden_states": a, "added_cond_kwargs.time_ids": b}           flat

>>> flat({"a": 1, "b": {"c": 2}})
{'a': 1, 'b.c': 2}
>>> nested({"a": 1, "b.c": 2})
{'a': 1, 'b': {'c': 2}}
>>> flat({"a": {}})
{'a': {}}

A *null value* stands for "not told". Training puts it in the place of some samples' conditioning
(dropout), and classifier-free guidance asks with it and steers away from the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a nested dictionary, each under the names on the way to it."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        inner = flat(value) if isinstance(value, Mapping) and value else None
        leaves |= {name: value} if inner is None else {f"{name}.{k}": v for k, v in inner.items()}
    return leaves


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`; ValueError for "a" beside "a.b"."""
    tree: dict[str, Any] = {}
    for name, value in leaves.items():
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
    """The same nested dictionary with its tensors on a device."""
    there = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in flat(tree).items()}
    return nested(there)


def nullified(
    conditioning: Mapping[str, Any], null: Mapping[str, Any], drop: Tensor | None = None
) -> dict[str, Any]:
    """The conditioning with some of it replaced by its null value, for all samples or for some.

    >>> nullified({"label": torch.tensor([3, 4]), "size": 64}, {"label": 9})
    {'label': tensor([9, 9]), 'size': 64}
    >>> nullified({"label": torch.tensor([3, 4])}, {"label": 9}, torch.tensor([True, False]))
    {'label': tensor([9, 4])}

    conditioning: nested, tensors of B rows (or anything, where no sample is kept).
    null: nested or flat; the entries to replace and their null values. A number fills a tensor, one
        row is that of every sample.
    drop: (B,) booleans, the samples that lose these entries; all of them by default.
    """
    given, values = flat(conditioning), flat(null)
    missing = sorted(values.keys() - given.keys())
    if missing:
        raise ValueError(
            f"{', '.join(missing)} is to be replaced by its null value, but there is no such "
            f"conditioning (there is: {', '.join(sorted(given)) or 'none'})"
        )
    for name, value in values.items():
        filled, told = _filled(value, given[name]), given[name]
        if drop is not None:
            gone = drop.to(told.device).reshape(-1, *[1] * (told.ndim - 1))
            filled = torch.where(gone, filled, told)
        given[name] = filled
    return nested(given)


def _filled(null: Any, like: Any) -> Any:
    """A null value in the form of the conditioning it replaces."""
    if not isinstance(like, Tensor):
        return null
    if isinstance(null, int | float):
        return torch.full_like(like, null)
    if not isinstance(null, Tensor):
        return null
    null = null.to(like.device, like.dtype)
    if null.ndim == 0:
        return null.expand_as(like)
    return null.expand(len(like), *null.shape[1:]) if len(null) == 1 and like.ndim else null
