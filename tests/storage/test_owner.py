"""A folder is one run's: claimed by exactly one, worked in by one process at a time.

RACES=500 pytest tests/storage/test_folders.py         more of them
"""

import os
import subprocess
import sys
import textwrap
import time

import pytest

from twosides.storage import owner
from twosides.storage.files import read_json
from twosides.storage.owner import LOCK, claim, hold

RACES = int(os.environ.get("RACES", 100))
RACE = """
import os, sys
from pathlib import Path
from twosides.storage import owner

def refuse(*_):
    raise OSError(1, "no links here")

if sys.argv[3] == "no links":
    owner.os.link = refuse

def race(folder):
    # Two processes wait for the end of a pipe and start together.
    read, write = os.pipe()
    said, say = os.pipe()
    for who in "ab":
        if os.fork() == 0:
            os.close(write)
            os.read(read, 1)
            try:
                word = b"w" if owner.claim(folder / "run.json", {"who": who}, "run") else b"c"
                (folder / f"log-{who}").touch()
            except ValueError as error:
                word = b"r" if "another run: it has who" in str(error) else b"?"
            os.write(say, word + who.encode())
            os._exit(0)
    os.close(read), os.close(write), os.close(say)
    for _ in "ab":
        os.wait()
    words = os.read(said, 10).decode()
    os.close(said)
    return words

for number in range(int(sys.argv[2])):
    folder = Path(sys.argv[1]) / str(number)
    folder.mkdir()
    words = race(folder)
    winner = words[words.index("w") + 1]
    text = (folder / "run.json").read_text()
    left = sorted(path.name for path in folder.iterdir())
    assert sorted(words[::2]) == ["r", "w"], words
    assert f'"{winner}"' in text and left == [f"log-{winner}", "run.json"], (words, left)
print("no pair was mixed")
"""


@pytest.mark.parametrize("links", ["links", "no links"])
def test_two_runs_started_together_in_one_folder(tmp_path, links):
    """Exactly one of each pair wins, and the other is refused by name."""
    command = [sys.executable, "-c", RACE, str(tmp_path), str(RACES), links]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout == "no pair was mixed\n", done.stderr


def test_the_same_run_goes_on_and_another_is_refused(tmp_path):
    path = tmp_path / "run.json"
    assert claim(path, {"seed": 1, "x": {"y": 2}}) and not claim(path, {"seed": 1, "x": {"y": 2}})
    with pytest.raises(ValueError, match="another run: it has x.y 2, not 3"):
        claim(path, {"seed": 1, "x": {"y": 3}})
    assert read_json(path) == {"seed": 1, "x": {"y": 2}} and [*tmp_path.iterdir()] == [path]


def test_a_claim_that_died_half_way_is_said(tmp_path, monkeypatch):
    """Without links, a process that was killed between its right and its file."""
    monkeypatch.setattr(owner.os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "none")))
    monkeypatch.setattr(owner, "_PATIENCE", 0.05)
    (tmp_path / ".claim-run.json").mkdir()
    with pytest.raises(ValueError, match="has died; remove"):
        claim(tmp_path / "run.json", {})


HOLDS = """
import os, sys, time
from pathlib import Path
from twosides.storage.owner import hold
with hold(Path(sys.argv[1]), "run"):
    if os.fork() == 0:  # as a process that reads data, which outlives its parent
        time.sleep(10)
        os._exit(0)
    print("held", flush=True)
    time.sleep(30)
"""


def test_the_same_run_started_twice_is_refused_while_the_first_lives(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(HOLDS), str(tmp_path)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"at work now, in process {first.pid} on "):
            with hold(tmp_path, "run"):
                pass
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    began = time.monotonic()
    with hold(tmp_path, "run"):  # at once, though a child of the killed one lives on
        with pytest.raises(ValueError, match="this process is at work"):
            with hold(tmp_path, "run"):
                pass
    assert time.monotonic() - began < 5
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
