"""Some hundred mutated files, of every kind that is read: see `fuzz`. `make attacks` tries 1,500."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from fuzz import cases  # noqa: E402
from kinds import KINDS  # noqa: E402

COUNT = 300


@pytest.fixture(scope="module")
def told():
    done = subprocess.run(
        [sys.executable, "-P", str(HERE / "fuzz.py"), "--count", str(COUNT)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr[-3000:]
    return lines


def test_files_are_read_as_before_or_refused_by_name(told):
    *failures, counts = told
    assert not failures
    assert counts["cases"] == COUNT
    # It would also pass if all were refused, or nothing were mutated.
    assert counts["refused"] > COUNT / 2
    assert counts["read as before"] > COUNT / 50


def test_every_kind_is_among_them():
    assert {kind for kind, *_ in cases(COUNT, 0)} == KINDS.keys()


def test_a_mutation_that_passes_unseen_would_be_told(tmp_path):
    """Of a file without a checksum that claims to have one, a flipped bit is found."""
    from dataclasses import replace

    import fuzz

    kind = "samples to measure"
    known = KINDS[kind]
    KINDS[kind] = replace(known, checked=True)
    try:
        bench = fuzz.Bench(tmp_path)
        endings = [
            fuzz.outcome(bench, (kind, "a.npy", "a_bit_flipped", number), 0) for number in range(20)
        ]
    finally:
        KINDS[kind] = known
    assert ("read", "changed without a word") in endings
