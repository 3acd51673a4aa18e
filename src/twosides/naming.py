"""Names as people type them: "cosine", "cosine(-15, 15)", "churn(0.3)"; helpful when wrong."""

from __future__ import annotations

import difflib
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


# What other software and papers call things whose names here are not near.
MEANT = {
    "fid": "frechet",
    "fd": "frechet",
    "fvd": "frechet",
    "swd": "sliced-w2",
    "wasserstein": "sliced-w2",
    "euler": "ddim",
    "eulerancestral": "euler-ancestral",
    "flowmatcheuler": "flow-euler",
    "dpmsolver": "dpmpp-2m",
    "k-euler": "edm-euler",
    "rectified-flow": "flow-matching",
    "rf": "flow-matching",
    "linear": "vp-linear",
    "squaredcos-cap-v2": "cosine",
    "epsilon": "eps",
    "noise": "eps",
    "sample": "x",
    "v-prediction": "v",
}


def unknown(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for a name that does not exist, with the nearest one.

    >>> unknown("sampler", "dimm", ["ddim", "ddpm", "heun"])
    ValueError("unknown sampler 'dimm'; did you mean 'ddim'? There are: ddim, ddpm, heun")
    """
    names = sorted(known)
    # "DPM++ 2M" and "dpmpp_2m" are near to "dpmpp-2m" when they are written alike.
    plain = str(name).strip().lower().replace("++", "pp").replace("_", "-").replace(" ", "-")
    plain = re.sub(r"(discrete|multistep)?scheduler$|-karras$|-exponential$", "", plain)
    meant = [each for each in (plain, MEANT.get(plain)) if each in names]
    near = meant or difflib.get_close_matches(plain, names, n=1, cutoff=0.5)
    near = near or difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]!r}? " if near else ""
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
