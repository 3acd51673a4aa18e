"""Names as people type them: "cosine", "cosine(-15, 15)", "churn(0.3)"; helpful when wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

Thing = TypeVar("Thing")


class Table(dict[str, Thing]):
    """A dictionary of named things that says what there is when asked for what there is not."""

    def __init__(self, kind: str, things: Mapping[str, Thing]) -> None:
        """`kind` is what its things are called."""
        super().__init__(things)
        self.kind = kind

    def __missing__(self, name: str) -> Thing:
        """KeyError with the nearest name."""
        raise KeyError(str(unknown(self.kind, name, self)))


def unknown(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a name that does not exist, with the nearest one.

    >>> unknown("sampler", "dimm", ["ddim", "ddpm", "heun"])
    ValueError("unknown sampler 'dimm'; did you mean 'ddim'? There are: ddim, ddpm, heun")
    """
    from twosides.display.elsewhere import meant

    names = sorted(known)
    guess = f"did you mean {near!r}? " if (near := meant(str(name), names)) else ""
    return ValueError(f"unknown {kind} {name!r}; {guess}There are: {', '.join(names)}")


def split_call(text: str) -> tuple[str, list[float]]:
    """A name and its numbers.

    >>> split_call("cosine(-15, 15)")
    ('cosine', [-15.0, 15.0])
    """
    match = re.fullmatch(r"\s*([^()\s]+)\s*(?:\((.+)\))?\s*", text)
    if match is None:
        raise ValueError(
            f"{text!r} is not a name, or a name with numbers such as 'cosine(-15, 15)'"
        )
    name, numbers = match[1], match[2]
    try:
        return name, [float(part) for part in numbers.split(",")] if numbers else []
    except ValueError:
        raise ValueError(f"{text!r}: what stands in brackets must be numbers") from None


def named(kind: str, text: Any, known: Mapping[str, Any]) -> Any:
    """`known[text]`, or an instance of its class with the numbers that follow in brackets."""
    name, numbers = split_call(str(text))
    if name not in known:
        raise unknown(kind, name, known)
    found = known[name]
    if not numbers:
        return found() if isinstance(found, type) else found
    maker = found if isinstance(found, type) else type(found)
    try:
        return maker(*numbers)
    except TypeError as error:
        raise ValueError(f"{kind} {text!r}: {error}") from None
