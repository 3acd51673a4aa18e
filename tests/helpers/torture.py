"""Kill trainings at random moments and look whether it left a trace.

    python tests/helpers/torture.py --kills 200 --mode one|ddp|fsdp --seed 0

A run of 60 steps is killed with SIGKILL again and again, in the middle of writes, flushes and
renames of its checkpoints or at any time, all its processes or one of them, and started again until
it is done. Its checkpoint, its model and its log must then be those of an undisturbed run, bit for
bit. Then it begins anew, until all kills are spent.
"""

import argparse
import functools
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from processes import die_at, finish, kill, run, start

STEPS, WORLD = 60, {"one": 1, "ddp": 2, "fsdp": 2}


def live(folder, mode, death=None):
    """One life of the run; `death` is the (number, before) of a call in which it ends."""
    import os

    from twosides.data.tasks import Points, Task
    from twosides.oracle import GaussianMixture
    from twosides.training.run import train_task

    if death and os.environ.get("RANK", "0") == "0":
        die_at(*death)
    network = {"class": "MLP", "config": {"dim": 2, "width": 8, "depth": 1}}
    data = GaussianMixture.ring(4, std=0.1).sample(50, seed=0).float()
    strategy = {"one": "auto"}.get(mode, mode)
    settings = {"steps": STEPS, "batch": 8, "checkpoint_every": 5, "log_every": 2}
    task = Task(Points(data), (2,), network)
    train_task(task, Path(folder), "flow-matching", warmup=2, strategy=strategy, **settings)


def kept(folder):
    """What a run leaves: the bytes that must not depend on what happened to it."""
    folder = Path(folder)
    states = [folder / f"checkpoints/step-{step:08d}" for step in (STEPS - 5, STEPS)]
    paths = [path for state in states for path in sorted(state.glob("*.safetensors"))]
    paths += [folder / "model/model.safetensors", folder / "logs/metrics.csv"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def strike(processes, choice, seconds):
    """SIGKILL all or one after some seconds; whoever is left alone must end by itself."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and all(p.is_alive() for p in processes):
        time.sleep(0.005)
    struck = any(process.is_alive() for process in processes)
    if len(processes) > 1 and choice.random() < 0.5:
        choice.choice(processes).kill()
        end = time.monotonic() + 20
        while time.monotonic() < end and any(p.is_alive() for p in processes):
            time.sleep(0.02)
    # Who still waits for a peer that was never there: launchers end them like this.
    kill(processes)
    return struck


def torture(kills, mode, seed, folder, tell=print):
    """Raises AssertionError if a run differs; returns the number of runs that were completed."""
    choice, world, folder = random.Random(seed), WORLD[mode], Path(folder)
    began = time.monotonic()
    run(world, folder / "said", live, str(folder / "straight"), mode)
    life = time.monotonic() - began
    wanted, done, runs, began = kept(folder / "straight"), 0, 0, time.monotonic()
    while True:
        torn = folder / f"torn-{runs}"
        while done < kills:
            death = None
            if choice.random() < 0.5:
                death = (choice.randrange(1, 120), choice.random() < 0.5)
            processes = start(world, folder / "said", live, str(torn), mode, death)
            seconds = choice.uniform(0.0, 1.1 * life) if death is None else 4 * life + 20
            struck = strike(processes, choice, seconds) or any(p.exitcode for p in processes)
            if not struck:
                break
            done += 1
            left = (time.monotonic() - began) * (kills - done) / done
            tell(f"{mode}, seed {seed}: {done} of {kills} kills, about {left:.0f} s left")
        finish(start(world, folder / "said", live, str(torn), mode), folder / "said")
        runs += 1
        found = kept(torn)
        assert found.keys() == wanted.keys(), f"seed {seed}, run {runs}: other files in {torn}"
        for name, data in found.items():
            assert data == wanted[name], f"seed {seed}, run {runs}: {torn / name} differs"
        hidden = [path.name for path in (torn / "checkpoints").iterdir() if path.name[0] == "."]
        assert not hidden, f"seed {seed}, run {runs}: {hidden} was left"
        shutil.rmtree(torn)
        if done == kills:
            return runs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--mode", choices=[*WORLD], default="one")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    asked = parser.parse_args()
    show = functools.partial(print, flush=True, file=sys.stderr)
    with tempfile.TemporaryDirectory() as work:
        runs = torture(asked.kills, asked.mode, asked.seed, work, show)
    print(f"{asked.mode}, seed {asked.seed}: {asked.kills} kills, {runs} runs, no difference")
