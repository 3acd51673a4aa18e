"""Let two processes begin in one folder at the same moment, again and again.

    python tests/helpers/races.py --count 500

As different runs: exactly one claims the folder, the other is refused by name and leaves nothing.
As the same run: exactly one works, the other is refused while it does. Both on a file system like
this one, and on one that refuses links, or locks, as some network drives do.
"""

import argparse
import contextlib
import errno
import functools
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from unittest import mock

from twosides.storage import owner

PLACES = ("as it is", "no links", "no locks")


def refuse(*_, **__):
    raise OSError(errno.ENOLCK, "not on this file system")


def other_runs(folder, who):
    """One of two runs: w for the winner, r for the one that is refused."""
    try:
        word = "w" if owner.claim(folder / "run.json", {"who": who}, "run") else "?"
        (folder / f"log-{who}").touch()
    except ValueError as error:
        word = "r" if "another run: it has who" in str(error) else "?"
    yield word


def same_run(folder, who):
    """One of two that do the same: the winner stays until both have said their word."""
    try:
        with owner.hold(folder, "run"):
            owner.claim(folder / "run.json", {"who": "both"}, "run")
            (folder / f"log-{who}").touch()
            yield "w"
    except ValueError as error:
        yield "r" if "is at work now, in " in str(error) else "?"


def race(folder, contest):
    """The words of two processes that wait for the end of a pipe and start together."""
    start, started = os.pipe()
    end, ended = os.pipe()
    said, say = os.pipe()
    children = []
    for who in "ab":
        child = os.fork()
        if child:
            children.append(child)
            continue
        os.close(started), os.close(ended)
        try:
            os.read(start, 1)
            told = contest(folder, who)
            os.write(say, (next(told) + who).encode())
            os.read(end, 1)
            told.close()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(started), os.close(say)
    words = "".join(os.read(said, 2).decode() for _ in "ab")
    os.close(ended)
    for child in children:
        os.waitpid(child, 0)
    os.close(start), os.close(end), os.close(said)
    return words


def races(count, place, folder, tell=lambda text: None):
    """AssertionError for a pair of which not exactly one has won."""
    with contextlib.ExitStack() as stack:
        if place == "no links":
            stack.enter_context(mock.patch.object(owner.os, "link", refuse))
        if place == "no locks":
            stack.enter_context(mock.patch.object(owner.fcntl, "lockf", refuse))
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        _races(count, place, folder, tell)


def _races(count, place, folder, tell):
    for number in range(count):
        for contest in (other_runs, same_run):
            own = Path(folder) / f"{contest.__name__}-{number}"
            own.mkdir()
            words = race(own, contest)
            assert sorted(words[::2]) == ["r", "w"], f"{own}: {words}"
            winner = words[words.index("w") + 1]
            left = sorted(path.name for path in own.iterdir() if path.name != owner.LOCK)
            assert left == [f"log-{winner}", "run.json"], f"{own}: {words}, {left}"
            if contest is other_runs:
                assert f'"{winner}"' in (own / "run.json").read_text(), f"{own}: {words}"
        if number % 100 == 99:
            tell(f"{place}: {number + 1} of {count} pairs of each kind")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--place", choices=PLACES, action="append")
    asked = parser.parse_args()
    for place in asked.place or PLACES:
        with tempfile.TemporaryDirectory() as work:
            races(asked.count, place, work, functools.partial(print, file=sys.stderr, flush=True))
        print(f"{place}: {asked.count} pairs of each kind, none was mixed")
