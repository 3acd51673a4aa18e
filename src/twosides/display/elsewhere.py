"""What other software and papers call things, for suggestions where a name is not known here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

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
"""Words for things whose names here are not near; in small letters, with hyphens."""


OPTIONS = (
    "sampler", "steps", "schedule", "seed", "indices", "init", "noise", "dtype", "device",
    "trajectory", "differentiable", "progress", "edit", "particles", "method", "output", "adaptive",
)  # fmt: skip
"""Options of `sample`, `encode`, `log_likelihood` and others that pass all else to the network."""


def note_misspelt(error: TypeError, conditioning: Iterable[str]) -> None:
    """Add a note to a network's error if the name of its conditioning is a misspelt option.

    error: what the network raised.
    conditioning: the names of what it was told.
    """
    for name in conditioning:
        near = difflib.get_close_matches(name, OPTIONS, 1, 0.7)
        if near and name in str(error):
            error.add_note(f"{name!r} was told to the network; was the option {near[0]!r} meant?")


def meant(name: str, names: Sequence[str]) -> str:
    """The one of the names that is probably meant, "" if none is near.

    "DPM++ 2M Karras", "dpmpp_2m" and "DPMSolverMultistepScheduler" are near to "dpmpp-2m" when they
    are written alike.
    """
    plain = name.strip().lower().replace("++", "pp").replace("_", "-").replace(" ", "-")
    plain = re.sub(r"(discrete|multistep)?scheduler$|-karras$|-exponential$", "", plain)
    for there in (plain, MEANT.get(plain, "")):
        if there in names:
            return there
    for written in (plain, name):
        if near := difflib.get_close_matches(written, names, n=1, cutoff=0.5):
            return near[0]
    return ""
