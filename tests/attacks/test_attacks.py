"""Hostile files are refused by errors that say what is wrong, and in modest memory.

All are read by one child process, whose memory is limited and measured: see `corpus` and `child`.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from corpus import ATTACKS  # noqa: E402

MEGABYTES = 150  # that refusing may take; what the files ask for begins at 200


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    root, paths = tmp_path_factory.mktemp("attacks"), {}
    for number, (name, attack) in enumerate(ATTACKS.items()):
        folder = root / str(number)
        folder.mkdir()
        paths[name] = str(attack.make(folder))
    done = subprocess.run(
        [sys.executable, str(HERE / "child.py")],
        input=json.dumps(paths),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    assert len(lines) == len(ATTACKS), done.stderr[-3000:]
    return root, {line.pop("name"): line for line in lines}


@pytest.mark.parametrize("name", ATTACKS)
def test_it_is_refused(outcomes, name):
    _, found = outcomes
    outcome = found[name]
    assert {"ValueError", "TypeError", "OSError"} & set(outcome["kinds"]), outcome
    assert re.search(ATTACKS[name].words, outcome["said"], re.DOTALL), outcome
    assert outcome["megabytes"] < MEGABYTES, outcome


def test_no_code_was_run(outcomes):
    root, _ = outcomes
    assert not list(root.rglob("PWNED"))


def test_the_gadget_would_be_seen(tmp_path):
    import pickle

    from corpus import pickled

    pickle.loads(pickled(tmp_path)).close()
    assert (tmp_path / "PWNED").exists()


def test_what_is_not_hostile_is_read(tmp_path):
    """The readers of the corpus accept the honest file that the attacks are made from."""
    from corpus import END, decode, entry, header, load_tars, load_tensors, pax, png, put, tensors

    body = header(b"a.png", b"%o" % len(png())) + png().ljust(512, b"\0")
    assert len(load_tars(put(tmp_path / "a.tar", pax(path="b.png") + body + END))) == 1
    assert decode(put(tmp_path / "a.png", png())).shape == (3, 8, 8)
    honest = tensors({"a": entry(0, 4), "b": entry(4, 8)}, bytes(8))
    assert sorted(load_tensors(put(tmp_path / "a", honest))) == ["a", "b"]
