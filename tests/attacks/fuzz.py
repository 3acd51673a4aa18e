"""Mutated files by the hundred, read in one process of limited memory: `make attacks`.

    python tests/attacks/fuzz.py --count 1500 --seed 0

Each case is one kind of file, one of its files, and one mutation. It must be read as before, or be
refused by a ValueError, TypeError or OSError that names a file, in modest time and memory, and
nothing in it may be run. A line of JSON for each failure, and the counts at the end.
"""

import argparse
import collections
import json
import logging
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import diffusers
from child import MEGABYTE, peak, restart, virtual
from kinds import KINDS, reseal
from mutations import JSON, RAW

SECONDS = 20  # for one case, which takes a few milliseconds, on a busy machine
MEGABYTES = 150


class TooLong(BaseException):
    """Not an Exception, which readers may catch."""


def cases(count: int, seed: int) -> list[tuple[str, str, str, int]]:
    """All mutations of all files of all kinds, in an order of the seed, until there are enough.

    Any number of them has about as many of one file as of another.
    """
    found, number = [], 0
    while len(found) < count:
        part = [
            (kind, file, mutation, number)
            for kind, about in KINDS.items()
            for file in about.files
            for mutation in (*RAW, *(JSON if file.endswith((".json", ".safetensors")) else ()))
        ]
        random.Random(f"{seed} {number}").shuffle(part)
        seen = collections.Counter[tuple[str, str]]()
        ranks = {}
        for case in part:
            ranks[case] = seen[case[:2]]
            seen[case[:2]] += 1
        part.sort(key=ranks.__getitem__)
        found, number = found + part, number + 1
    return found[:count]


class Bench:
    """The honest files of every kind, made once, and what reading them gives."""

    def __init__(self, root: Path) -> None:
        self.root, self.honest = root, {}

    def folder(self, kind: str) -> Path:
        source = self.root / "honest" / str(list(KINDS).index(kind))
        if kind not in self.honest:
            source.mkdir(parents=True)
            KINDS[kind].make(source)
            self.honest[kind] = self.read(kind, self._copy(source))
        return self._copy(source)

    def _copy(self, source: Path) -> Path:
        target = self.root / "case"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        return target

    def read(self, kind: str, folder: Path):
        return KINDS[kind].read(folder)


def outcome(bench: Bench, case: tuple[str, str, str, int], seed: int) -> tuple[str, str]:
    """(what became of it, what is wrong with that): "" where all is well."""
    kind, file, mutation, _ = case
    rng, about, folder = random.Random(f"{seed} {case}"), KINDS[kind], bench.folder(kind)
    path, mutate = folder / file, {**RAW, **JSON}[mutation]
    mutate(path, rng)
    sealed = (path.parent / "manifest.json").is_file() and path.name != "manifest.json"
    resealed = sealed and rng.random() < 0.7 and path.is_file() and path.stat().st_size < 1 << 24
    if resealed:
        reseal(path.parent)
    before = restart()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        found = bench.read(kind, folder)
        ending = "read as before" if found == bench.honest[kind] else "read"
        wrong = (
            "changed without a word" if about.checked and not resealed and ending == "read" else ""
        )
    except TooLong:
        ending, wrong = "unbounded", f"more than {SECONDS} seconds"
    except (ValueError, TypeError, OSError) as error:
        ending, said = "refused", str(error)
        named = Path(file).name in said or str(folder) in said or not about.named
        wrong = "" if named else f"names no file: {type(error).__name__}: {said[:300]}"
    except BaseException:
        ending, wrong = "traceback", traceback.format_exc()[-1500:]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    grown = (peak() - before) / MEGABYTE
    if grown > MEGABYTES:
        ending, wrong = "unbounded", f"{grown:.0f} megabytes"
    if list(bench.root.rglob("PWNED")):
        ending, wrong = "executed", "a file PWNED"
    return ending, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a part of 'kind/file/mutation'")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    wanted = [c for c in cases(asked.count, asked.seed) if asked.only in "/".join(c[:3])]
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(Path(root))
        for kind in dict.fromkeys(case[0] for case in wanted):
            bench.folder(kind)  # imports what it needs, too
        limit = virtual() + 1024 * MEGABYTE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.signal(signal.SIGALRM, _too_long)
        counts, began = collections.Counter(), time.monotonic()
        for case in wanted:
            ending, wrong = outcome(bench, case, asked.seed)
            counts[ending] += 1
            if wrong:
                counts["wrong"] += 1
                line = {"case": "/".join(map(str, case)), "ending": ending, "wrong": wrong}
                print("\n" + json.dumps(line), flush=True)
    seconds = round(time.monotonic() - began, 1)
    print("\n" + json.dumps({"cases": len(wanted), "seconds": seconds, **counts}), flush=True)
    sys.exit(1 if counts["wrong"] else 0)


def _too_long(signum: int, frame: object) -> None:
    raise TooLong


if __name__ == "__main__":
    main()
