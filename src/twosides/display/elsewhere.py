"""What other software and papers call things, for suggestions where a name is not known here."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

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
