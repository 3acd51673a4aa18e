"""A folder is one run's: claimed by exactly one, worked in by one process at a time."""

import os
import subprocess
import sys
import textwrap
import time

import pytest

import races
from races import PLACES
from twosides.storage import owner
from twosides.storage.files import read_json
from twosides.storage.owner import LOCK, claim, hold


@pytest.mark.parametrize("place", PLACES)
def test_two_runs_started_together_in_one_folder(tmp_path, place):
    """Exactly one of each pair wins; in a process of its own, which has no threads to fork."""
    command = [sys.executable, races.__file__, "--count", "20", "--place", place]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout == f"{place}: 20 pairs of each kind, none was mixed\n", done.stderr


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


def test_without_locks_a_machine_keeps_to_itself_and_says_so(tmp_path, monkeypatch):
    """A note of a process that is gone, or was another one of the same number, is no obstacle."""
    monkeypatch.setattr(owner.fcntl, "lockf", races.refuse)
    monkeypatch.setattr(owner.socket, "gethostname", lambda: "here")
    for stale in (f"here-{os.getpid()}-1", "here-999999999-1"):
        (tmp_path / f".at-work-{stale}").touch()
    other = tmp_path / ".at-work-elsewhere-12-34"
    other.touch()
    with pytest.warns(UserWarning, match=f"no locks.*{other} may be at work"):
        with hold(tmp_path, "run") as alone:
            assert not alone
            (note,) = tmp_path.glob(".at-work-here-*")
            with pytest.raises(ValueError, match="this process is at work"):
                with hold(tmp_path, "run"):
                    pass
    assert not note.exists() and other.exists()
    parent = f"here-{os.getppid()}-{owner._began(os.getppid())}"
    (tmp_path / f".at-work-{parent}").touch()
    monkeypatch.setattr(owner, "_PATIENCE", 0.5)
    with pytest.raises(ValueError, match=f"at work now, in process {os.getppid()} on this mach"):
        with hold(tmp_path, "run"):
            pass
