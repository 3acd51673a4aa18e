"""One process or many: the same levels, the same noise, the same run."""

import functools
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from processes import kill, run, start
from twosides.data.tasks import Points
from twosides.oracle import GaussianMixture
from twosides.randomness import PerSample
from twosides.storage.networks import MLP
from twosides.storage.tensors import load_tensors
from twosides.storage.trees import load_tree
from twosides.training.fit import fit
from twosides.training.log import METRICS, read_rows
from twosides.training.settings import Settings
from twosides.training.validation import VALIDATION

STEPS = 12
# In float64: sums in another order differ by 1e-16, and Adam divides that by gradients that may be
# small. (In float32 the same gives 1e-4 after 12 steps of 1e-3 each, where a mistake could hide.)
ROUNDING = 1e-9
WAYS = {
    "one": (1, {}),
    "accumulated": (1, {"accumulate": 2}),
    "ddp": (2, {"strategy": "ddp", "accumulate": 3}),
    "fsdp": (2, {"strategy": "fsdp", "accumulate": 3}),
}


class Recorder(PerSample):
    """Writes down what every place of every step is given."""

    seen: dict = {}  # noqa: RUF012

    def __init__(self, seed, indices, stream=0, total=None):
        super().__init__(seed, indices, stream, total)
        self.stream = stream

    def _note(self, kind, values):
        for place, value in zip(self.indices, values, strict=True):
            self.seen[f"{kind}-{self.stream}-{place}"] = value.numpy()
        return values

    def strata(self):
        return self._note("level", super().strata())

    def normal(self, *arguments, **options):
        return self._note("noise", super().normal(*arguments, **options))

    def uniform(self):
        return self._note("drop", super().uniform())


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MLP(2, 30, 2, classes=3).double()


class Labelled(Points):
    def __getitem__(self, index):
        return {"x": self.x[index], "class_labels": index % 2}


def train(folder, **settings):
    """In a process of its own."""
    import os

    from twosides.training import module

    module.PerSample = Recorder
    chosen = {"steps": STEPS, "batch": 12, "checkpoint_every": 4, "log_every": 2, **settings}
    chosen = {"warmup": 2, "dropout": 0.4, "null": {"class_labels": 2}, **chosen}
    data = Labelled(GaussianMixture.ring(4, std=0.1).sample(50, seed=0).double())
    fit(network(), data, "flow-matching", folder, Settings(**chosen))
    np.savez(f"{folder}/seen-{os.environ.get('RANK', 0)}.npz", **Recorder.seen)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name, (world, settings) in WAYS.items():
        run(world, root / "said", functools.partial(train, **settings), str(root / name))
    return root


def drawn(folder):
    files = [np.load(path) for path in sorted(folder.glob("seen-*.npz"))]
    return {name: file[name] for file in files for name in file.files}


def tensors(folder, step=STEPS):
    return dict(leaves(load_tree(folder / f"checkpoints/step-{step:08d}")))


def leaves(tree, path=()):
    """All tensors of a tree by their places."""
    if isinstance(tree, torch.Tensor):
        yield path, tree
    elif isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in items:
            yield from leaves(value, (*path, key))


def apart(a, b):
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


@pytest.mark.parametrize("way", [name for name in WAYS if name != "one"])
def test_any_number_of_processes_makes_the_same_run(runs, way):
    """Draws bit for bit; weights, moments and averages to the rounding of sums in another order."""
    whole, shared = drawn(runs / "one"), drawn(runs / way)
    assert len(whole) == 3 * 12 * STEPS and whole.keys() == shared.keys()
    for name, value in whole.items():
        assert np.array_equal(value, shared[name]), name
    one, many = tensors(runs / "one"), tensors(runs / way)
    assert {k: (v.shape, v.dtype) for k, v in one.items()} == {
        k: (v.shape, v.dtype) for k, v in many.items()
    }
    assert apart(one, many) < ROUNDING
    saved = [load_tensors(runs / w / "model/model.safetensors") for w in ("one", way)]
    assert apart(*saved) < 1e-7  # the model is built anew, in float32
    moved = apart(one, tensors(runs / "one", step=8))
    assert moved > 1e-3
    a, b = (read_rows(runs / w / METRICS) for w in ("one", way))
    for row, other in zip(a, b, strict=True):
        for column in ("loss", "gradient_norm"):
            assert float(row[column]) == pytest.approx(float(other[column]), rel=1e-12)


@pytest.mark.parametrize("way", ["accumulated", "ddp", "fsdp"])
def test_a_continued_run_is_bitwise_the_uninterrupted_one(runs, tmp_path, way):
    folder, (world, settings) = tmp_path / "run", WAYS[way]
    shutil.copytree(runs / way, folder)
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / f"checkpoints/step-{STEPS:08d}")
    run(world, tmp_path / "said", functools.partial(train, **settings), str(folder))
    state = f"checkpoints/step-{STEPS:08d}"
    parts = [f"{state}/{path.name}" for path in (runs / way / state).glob("*.safetensors")]
    assert len(parts) == (3 if way == "fsdp" else 1)  # what all share, and a shard of each process
    for name in (*parts, "model/model.safetensors", METRICS):
        assert (folder / name).read_bytes() == (runs / way / name).read_bytes(), name


@pytest.mark.parametrize(("before", "after"), [("fsdp", "one"), ("one", "fsdp")])
def test_it_continues_on_another_number_of_processes(runs, tmp_path, before, after):
    folder, (world, settings) = tmp_path / "run", WAYS[after]
    shutil.copytree(runs / before, folder)
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / f"checkpoints/step-{STEPS:08d}")
    run(world, tmp_path / "said", functools.partial(train, **settings), str(folder))
    assert apart(tensors(folder), tensors(runs / before)) < ROUNDING
    progress = load_tree(folder / f"checkpoints/step-{STEPS:08d}")["loops"]["fit_loop"]
    made = progress["epoch_loop.batch_progress"]["current"]["ready"]
    assert made == STEPS * settings.get("accumulate", 1)


def failing(folder, rank):
    """The process of that rank cannot write."""
    import os

    from twosides.training import sharding

    save = sharding.save_tree

    def fails(*arguments):
        if os.environ["RANK"] == rank:
            raise OSError(28, "No space left on device")
        return save(*arguments)

    sharding.save_tree = fails
    with pytest.raises(OSError, match="No space left on device") as caught:
        train(folder, strategy="fsdp")
    if os.environ["RANK"] != rank:
        assert f"process {rank}: " in str(caught.value)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_full_disk_on_one_ends_all_with_the_reason(tmp_path, rank):
    run(2, tmp_path / "said", failing, str(tmp_path / "run"), rank, limit=60)
    assert list((tmp_path / "run/checkpoints").iterdir()) == []


def attached(folder, strategy):
    """All hooks at once, in a process of its own."""
    import test_hooks as hooks

    recipe, net = hooks.recipes["sd3"], hooks.network()
    objective = hooks.Adaptive(recipe.weighting, recipe.density, bins=hooks.Bins())
    settings = hooks.dataclasses.replace(hooks.SETTINGS, strategy=strategy, validate_every=3)
    options = {"auxiliary": hooks.Align(net.blocks[0])}
    options["monitor"] = hooks.Monitor(Points(hooks.DATA[:43]))
    fit(recipe.denoiser(net), Points(hooks.DATA), objective, folder, settings, **options)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_hooks_see_the_whole_batch_on_any_number_of_processes(tmp_path, strategy):
    for name, world, way in (("one", 1, "auto"), ("two", 2, strategy)):
        run(world, tmp_path / "said", attached, str(tmp_path / name), way)
    one, two = (load_tree(tmp_path / f"{n}/checkpoints/step-00000006") for n in ("one", "two"))
    for name in ("bins.calls", "bins.logsnr"):
        assert torch.equal(one["state_dict"][name], two["state_dict"][name]), name
    for table in (METRICS, VALIDATION):
        a, b = (read_rows(tmp_path / name / table) for name in ("one", "two"))
        assert len(a) == len(b) > 0
        for row, other in zip(a, b, strict=True):
            for column, value in row.items():
                wanted = pytest.approx(float(value or 0), rel=1e-5)
                assert float(other[column] or 0) == wanted, column


def test_who_is_left_alone_ends(tmp_path):
    """One of two processes is killed: the other fails by itself instead of waiting for ever."""
    endless = functools.partial(train, steps=100_000, strategy="ddp")
    processes = start(2, tmp_path / "said", endless, str(tmp_path / "run"))
    try:
        while not list((tmp_path / "run").glob("checkpoints/step-*")):
            assert all(p.is_alive() for p in processes), (tmp_path / "said/rank-0.txt").read_text()
            time.sleep(0.05)
        processes[1].kill()
        processes[0].join(120)
        assert processes[1].exitcode == -signal.SIGKILL and processes[0].exitcode == 1
    finally:
        kill(processes)


def test_torchrun_starts_the_command(tmp_path):
    """Two processes, sharded, by the launcher that clusters use."""
    command = "-m torch.distributed.run --nproc-per-node 2 -m twosides train ring --strategy fsdp"
    options = f"--out {tmp_path / 'run'} --steps 4 --batch 8 --accumulate 2 --checkpoint-every 2"
    done = subprocess.run(
        [sys.executable, *command.split(), *options.split()],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is ready") == 1
    assert (tmp_path / "run/checkpoints/step-00000004").is_dir()
