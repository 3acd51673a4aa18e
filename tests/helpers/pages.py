"""The code blocks of a page of the documentation, run as a reader would type them."""

import contextlib
import io
import itertools
import os
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.S | re.M)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def blocks(page):
    """[(code, what the page says that it prints, or None)] of the Python of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found, made = list(BLOCK.finditer(text)), []
    for block, after in itertools.pairwise([*found, None]):
        near = after and not after[1] and not text[block.end() : after.start()].strip()
        if block[1] == "python":
            made.append((block[2], after[2] if near and after else None))
    return made


def run(page, folder, **names):
    """Run a page's Python in one namespace, inside a folder; outputs that are shown must be so."""
    namespace = {"__name__": page.stem, **names}
    with contextlib.chdir(folder), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for number, (code, said) in enumerate(blocks(page), 1):
            told = io.StringIO()
            with contextlib.redirect_stdout(told):
                exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)
            if said is not None:
                same(told.getvalue(), said, f"{page.name}, block {number}")
    return namespace


def same(printed, said, where):
    """The same words, and numbers within 3 % or 2 of the last digit; rounding is any rounding."""
    assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", said).split(), f"{where}: {printed}"
    for a, b in zip(NUMBER.findall(printed), NUMBER.findall(said), strict=True):
        if max(abs(float(a)), abs(float(b))) > 1e-9:
            digits = len(b.partition(".")[2]) if "e" not in b else 0
            last = 2 * 10.0**-digits if digits else 0.0
            assert float(a) == pytest.approx(float(b), rel=0.03, abs=last), f"{where}: {printed}"


def pages():
    """The pages that have Python, README first."""
    found = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    return [page for page in found if blocks(page)]


os.environ.setdefault("MPLBACKEND", "Agg")
