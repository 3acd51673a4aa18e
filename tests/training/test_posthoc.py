"""Averages of any width from snapshots: against quadrature, and against averages tracked directly."""

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from itertools import count
from pathlib import Path

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from twosides.denoiser import Denoiser
from twosides.storage import models
from twosides.storage.checkpoints import Checkpoints
from twosides.storage.files import CorruptFolder
from twosides.storage.networks import MLP
from twosides.training.checkpoint_io import SaveCheckpoints, TreeCheckpointIO
from twosides.training.ema import PowerEMA
from twosides.training.posthoc import (
    Profile,
    combine,
    inner_products,
    reconstruct,
    save_averages,
    snapshots_of,
)
from twosides.training.snapshots import Snapshots

WIDTHS = (0.03, 0.05, 0.1, 0.2)


def stored(number, end, widths=(0.05, 0.1)):
    return [Profile(width, end * (k + 1) / number) for k in range(number) for width in widths]


def vector(size):
    """A module of nothing but that many weights."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(1, size, dtype=torch.float64))
    return module


# ------------------------------------------------------------------ profiles


@pytest.mark.parametrize("width", WIDTHS)
def test_inner_products_are_the_integrals(width):
    """Gauss-Legendre quadrature of the product of two profiles over their common interval."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    for other in WIDTHS:
        for t in (0.3, 1.0, 2.5):
            a, b = Profile(width, 1.0), Profile(other, t)
            end = min(a.t, b.t)
            tau = end * (nodes + 1) / 2
            product = np.prod(
                [(p.gamma + 1) * tau**p.gamma / p.t ** (p.gamma + 1) for p in (a, b)], axis=0
            )
            exact = inner_products([a], [b])[0, 0]
            assert exact == pytest.approx(end / 2 * product @ weights, rel=1e-10)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_profile_has_the_width_it_says(width):
    """Standard deviation over the end, by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    tau, p = (nodes + 1) / 2, Profile(width, 1.0)
    density = weights / 2 * (p.gamma + 1) * tau**p.gamma
    mean = density @ tau
    assert density.sum() == pytest.approx(1, rel=1e-12)
    assert np.sqrt(density @ (tau - mean) ** 2) == pytest.approx(width, rel=1e-10)


def test_an_average_weighs_a_step_by_the_integral_of_its_profile():
    """So sums of profiles and of averages are the same thing, at any number of steps."""
    network = vector(40)
    ema = PowerEMA(network, 0.1)
    for step in range(40):
        with torch.no_grad():
            network.weight.copy_(torch.eye(40, dtype=torch.float64)[step])
        ema.update(network)
    edges = (np.arange(41) / 40) ** (Profile(0.1, 40.0).gamma + 1)
    np.testing.assert_allclose(ema.weights["weight"][0].numpy(), np.diff(edges), atol=1e-15)


def test_a_stored_profile_is_its_own_combination():
    profiles = stored(16, 4096.0)
    for place in (0, 13, 30, 31):
        found = combine(profiles, profiles[place])
        np.testing.assert_allclose(found.x, np.eye(32)[place], atol=1e-9)
        assert found.residual < 1e-7 and found.amplification == pytest.approx(1, abs=1e-8)


def test_no_combination_is_better():
    """The least squares under sum x = 1: every direction that keeps the sum makes it worse."""
    profiles, wanted = stored(6, 1.0), Profile(0.15, 1.0)
    x = combine(profiles, wanted).x
    gram, right = inner_products(profiles, profiles), inner_products(profiles, [wanted])[:, 0]
    slope = gram @ x - right
    assert x.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(slope - slope.mean(), 0, atol=1e-10)


def test_the_residual_is_the_distance_of_the_profiles():
    profiles, wanted = stored(6, 1.0), Profile(0.2, 1.0)
    found = combine(profiles, wanted)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    distance = norm = 0.0
    for k in range(6):  # smooth between the ends of profiles
        tau = (k + (nodes + 1) / 2) / 6

        def value(p, tau=tau):
            return np.where(tau < p.t, (p.gamma + 1) * tau**p.gamma / p.t ** (p.gamma + 1), 0)

        missed = value(wanted) - sum(x * value(p) for x, p in zip(found.x, profiles, strict=True))
        distance += weights @ missed**2
        norm += weights @ value(wanted) ** 2
    assert found.residual == pytest.approx(np.sqrt(distance / norm), rel=1e-8)
    assert found.amplification == pytest.approx(np.abs(found.x).sum())


@pytest.mark.parametrize("number", [64, 400])
def test_many_snapshots_do_not_blow_up(number):
    for width in (0.05, 0.1, 0.15, 0.2):
        found = combine(stored(number, 1e6), Profile(width, 1e6))
        assert found.amplification < 3 and found.residual < 2e-3


@pytest.mark.parametrize(
    ("width", "error"), [(0.05, 1e-7), (0.075, 3e-6), (0.1, 1e-7), (0.15, 5e-6), (0.2, 1e-4)]
)
def test_random_walk(width, error):
    """64 snapshots against averages tracked directly, relative to the weights' deviation.

    The error is as large as the missed part of the profile predicts, by its own tail sums.
    """
    steps, number = 2048, 64
    generator = np.random.default_rng(1)
    walk = torch.from_numpy(generator.standard_normal((steps, 3000)).cumsum(0))
    network = vector(3000)
    tracked = PowerEMA(network, width)
    stores, averages = [PowerEMA(network, s) for s in (0.05, 0.1)], []
    for step in range(1, steps + 1):
        with torch.no_grad():
            network.weight.copy_(walk[step - 1])
        for ema in (tracked, *stores):
            ema.update(network)
        if step % (steps // number) == 0:
            averages += [ema.weights["weight"].float()[0] for ema in stores]
    profiles, wanted = stored(number, float(steps)), Profile(width, float(steps))
    found = combine(profiles, wanted)
    made = torch.from_numpy(found.x) @ torch.stack(averages).double()
    rms = float((made - tracked.weights["weight"][0]).square().mean().sqrt()) / steps**0.5
    assert rms < error

    def tail(p):
        return 1 - np.minimum(np.arange(steps) / p.t, 1) ** (p.gamma + 1)

    missed = tail(wanted) - sum(x * tail(p) for x, p in zip(found.x, profiles, strict=True))
    predicted = np.sqrt((missed**2).sum() / steps)
    assert rms == pytest.approx(predicted, rel=0.1, abs=5e-8)


# ------------------------------------------------------------------ training


def fresh(seed=0, **config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Denoiser(MLP(dim=2, **config))


class Walk(lightning.LightningModule):
    """A few SGD steps on a denoiser; data are a function of the step."""

    def __init__(self, rate=0.02, seed=0):
        super().__init__()
        self.denoiser = fresh(seed, width=8, depth=1)
        self.rate = rate

    def training_step(self, batch, _):
        x = batch
        return (self.denoiser.network(x, x[:, 0]) - x.sin()).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.denoiser.parameters(), lr=self.rate)


class Stream(IterableDataset):
    def __init__(self, start):
        self.start = start

    def __iter__(self):
        for step in count(self.start):
            yield torch.from_numpy(np.random.default_rng(step).standard_normal((8, 2))).float()


class Tracked(lightning.Callback):
    """Averages of other widths, tracked directly."""

    def __init__(self, widths):
        self.widths = widths

    def on_train_start(self, trainer, pl_module):
        self.averages = {width: PowerEMA(pl_module.denoiser, width) for width in self.widths}

    def on_train_batch_end(self, trainer, pl_module, *_):
        for average in self.averages.values():
            average.update(pl_module.denoiser)


def train(folder, steps=40, every=5, *, resume=True, seed=0, rate=0.02, more=(), **options):
    checkpoints = Checkpoints(folder / "checkpoints")
    snapshots = options.pop("snapshots", None) or Snapshots(folder, every)
    walk = Walk(rate, seed)
    newest = checkpoints.newest_folder() if resume else None
    start = int(newest.name[5:]) if newest else 0
    loader = DataLoader(Stream(start), batch_size=None, generator=torch.Generator())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        trainer = lightning.Trainer(
            max_steps=steps,
            logger=False,
            default_root_dir=folder,  # the Trainer leaves a checkpoint of its own there
            callbacks=[snapshots, *more, SaveCheckpoints(checkpoints, every=10)],
            plugins=[TreeCheckpointIO()],
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            **options,
        )
        with torch.random.fork_rng(devices=[]):
            trainer.fit(walk, loader, ckpt_path=newest, weights_only=True)
    models.save(walk.denoiser, folder / "model", shape=[2], classes="")
    return snapshots


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / "snapshots").rglob("*"))
        if path.is_file()
    }


def test_a_run_keeps_snapshots_of_both_averages(tmp_path):
    snapshots = train(tmp_path, steps=12)
    found = snapshots_of(tmp_path)
    assert [snapshot.step for snapshot in found] == [5, 10, 12]
    assert all(snapshot.sigma_rels == (0.05, 0.1) for snapshot in found)
    for width, average in zip((0.05, 0.1), snapshots.averages, strict=True):
        denoiser, notes = reconstruct(tmp_path, width)
        for name, value in denoiser.named_parameters():
            assert torch.equal(value, average.weights[name]), name
        assert notes["residual"] < 1e-7 and notes["step"] == 12


def test_a_killed_run_leaves_the_same_snapshots(tmp_path):
    """Continued from step 10 of 20, where snapshots up to 15 were written: the same bytes."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    train(whole, 20), train(part, 20)
    shutil.rmtree(part / "checkpoints/step-00000020")
    shutil.rmtree(part / "snapshots/step-00000020")
    before = (part / "snapshots/step-00000015/snapshot.json").stat().st_ino
    train(part, 20)
    assert files(whole) == files(part) and len(files(whole)) == 4 * 4
    assert (part / "snapshots/step-00000015/snapshot.json").stat().st_ino == before


CHILD = """
import sys, warnings
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_posthoc import train
train(Path(sys.argv[1]), 3000, 20)
"""


def test_kill_9_at_any_moment(tmp_path):
    """However it was killed, what snapshots there are equal those of an uninterrupted run."""
    code = CHILD.format(tests=str(Path(__file__).parent))
    for wanted in (2, 5):
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "part")])
        while child.poll() is None and len(list(tmp_path.glob("part/snapshots/step*"))) < wanted:
            time.sleep(0.005)
        child.kill()
        assert child.wait() == -9
    steps = snapshots_of(tmp_path / "part")[-1].step
    train(tmp_path / "part", steps + 20, 20), train(tmp_path / "whole", steps + 20, 20)
    assert files(tmp_path / "part") == files(tmp_path / "whole")


def test_a_damaged_snapshot_is_named_and_written_again(tmp_path):
    train(tmp_path, 20)
    path = tmp_path / "snapshots/step-00000015/average-1.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CorruptFolder, match=r"step-00000015/average-1.*SHA-256.*remove"):
        reconstruct(tmp_path, 0.15)
    shutil.rmtree(tmp_path / "checkpoints/step-00000020")
    with pytest.warns(UserWarning, match="written again.*step-00000015"):
        train(tmp_path, 20)
    assert path.read_bytes() == good


def test_other_runs_and_other_widths_are_refused(tmp_path):
    train(tmp_path / "a", 10), train(tmp_path / "b", 5, seed=1)
    with pytest.raises(ValueError, match="of another run"):
        train(tmp_path / "b", 10, seed=2, resume=False)
    with pytest.raises(ValueError, match=r"0.05, 0.2.*checkpoint has \[0.05, 0.1\]"):
        train(tmp_path / "a", 20, snapshots=Snapshots(tmp_path / "a", 5, (0.05, 0.2)))
    shutil.copytree(tmp_path / "b/snapshots", tmp_path / "a/snapshots", dirs_exist_ok=True)
    with pytest.raises(ValueError, match="of two runs"):
        reconstruct(tmp_path / "a", 0.15)


def test_a_run_cannot_begin_snapshots_on_the_way(tmp_path):
    train(tmp_path, 10, snapshots=lightning.Callback())
    with pytest.raises(ValueError, match="continues from step 10.*whole run"):
        train(tmp_path, 20)


def test_accumulated_gradients_are_one_step(tmp_path):
    snapshots = train(tmp_path, 6, 2, accumulate_grad_batches=3)
    assert [snapshot.step for snapshot in snapshots_of(tmp_path)] == [2, 4, 6]
    assert snapshots.averages[0].steps == 6


def test_constant_weights_stay_exactly(tmp_path):
    train(tmp_path, 20, 1, rate=0.0)
    denoiser, _ = reconstruct(tmp_path, 0.13)
    start = dict(Walk().denoiser.named_parameters())
    for name, value in denoiser.named_parameters():
        assert torch.equal(value, start[name]), name


def test_the_command_makes_what_tracking_makes(tmp_path, monkeypatch, capsys):
    from twosides.cli import main

    widths = (0.05, 0.075, 0.1, 0.15, 0.2)
    tracked = Tracked(widths)
    train(tmp_path / "run", 100, 3, rate=0.2, more=[tracked])
    words = ["ema", "run", "--out", "made", "--sigma-rel", *map(str, widths)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["twosides", *words])
    main()
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 5 and "34 snapshots" in out and not err
    start = torch.cat([value.flatten() for value in Walk().denoiser.parameters()])
    for width in widths:
        made = models.load(f"made/ema-{width:g}")
        truth = torch.cat([w.flatten() for w in tracked.averages[width].weights.values()])
        weights = torch.cat([value.flatten() for value in made.parameters()])
        assert (weights - truth).norm() < 1e-3 * (truth - start).norm()
        assert (truth - start).norm() > 0.1 * start.norm()
        notes = models.read_notes(f"made/ema-{width:g}")
        assert notes["shape"] == [2] and notes["ema"]["sigma_rel"] == width
        assert f"residual {notes['ema']['residual']:.1e}" in out
    monkeypatch.setattr(
        sys, "argv", ["twosides", "ema", "run", "--out", "x", "--sigma-rel", "0.28"]
    )
    for _ in range(2):  # an average of the same run may be made again
        with pytest.warns(UserWarning, match=r"do not span sigma_rel 0\.28"):
            main()
    assert json.loads(Path("x/config.json").read_text())["ema"]["step"] == 100
    kept = Path("run/model/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="is no average of this run"):
        save_averages("run", "run/model", [0.1])
    assert Path("run/model/model.safetensors").read_bytes() == kept
    with pytest.raises(ValueError, match="which begin at step 3; choose a later step"):
        save_averages("run", "early", [0.1], step=1)
    assert not Path("early").exists()


def test_errors(tmp_path):
    train(tmp_path, 10)
    with pytest.raises(ValueError, match="has no snapshots.*--snapshot-every"):
        reconstruct(tmp_path / "model", 0.15)
    with pytest.raises(ValueError, match=r"sigma_rel is in \(0, 0.288\)"):
        reconstruct(tmp_path, 0.3)
    with pytest.raises(ValueError, match="step is in 1 ... 10, where the snapshots end, got 11"):
        reconstruct(tmp_path, 0.1, step=11)
    _, notes = reconstruct(tmp_path, 0.1, step=5)
    assert notes["step"] == 5 and notes["residual"] < 1e-7
    models.save(fresh(width=16, depth=1), tmp_path / "model")
    with pytest.raises(ValueError, match=r"average-0.* has shape \(8, 18\), not the model's"):
        reconstruct(tmp_path, 0.1)
    models.save(fresh(width=8, depth=2), tmp_path / "model")
    with pytest.raises(ValueError, match="average-0.*another network"):
        reconstruct(tmp_path, 0.1)
    for every, widths in ((0, (0.1,)), (5, ()), (5, (0.1, 0.1))):
        with pytest.raises(ValueError):
            Snapshots(tmp_path, every, widths)


SHARDED = """
import copy
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
import test_posthoc
from test_posthoc import Snapshots, Walk, train

class Plain(test_posthoc.Checkpoints):
    def newest_folder(self): return None

class ShardedWalk(Walk):
    def configure_model(self):
        fully_shard(self.denoiser.network, mesh=self.device_mesh["data_parallel"])

class KeepsState(Snapshots):
    def on_train_end(self, trainer, pl_module):
        state = copy.deepcopy(self.state_dict())  # and back: what a checkpoint does
        for average in self.averages:
            for value in average.weights.values():
                value.zero_()
        self._restore(state)
        super().on_train_end(trainer, pl_module)

test_posthoc.Walk = ShardedWalk
test_posthoc.SaveCheckpoints = lambda *_, **__: test_posthoc.lightning.Callback()
test_posthoc.models.save = lambda *_, **__: None
strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
train(Path(sys.argv[1]), 12, 5, snapshots=KeepsState(sys.argv[1], 5), strategy=strategy,
      devices=2, use_distributed_sampler=False)
"""


def test_sharded_weights_give_the_same_snapshots(tmp_path):
    """FSDP2 on two processes that see the same batches, and one process: equal to rounding."""
    train(tmp_path / "one", 12)
    code = SHARDED.format(tests=str(Path(__file__).parent))
    script = tmp_path / "sharded.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "two")],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"TORCH_CPP_LOG_LEVEL": "ERROR"},
    )
    assert done.returncode == 0, done.stderr
    from twosides.storage.tensors import load_tensors

    one, two = snapshots_of(tmp_path / "one"), snapshots_of(tmp_path / "two")
    assert [s.step for s in two] == [5, 10, 12] and one[0].run == two[0].run
    for a, b in zip(one, two, strict=True):
        for path, other in zip(a.files(), b.files(), strict=True):
            left, right = load_tensors(path), load_tensors(other)
            assert left.keys() == right.keys()
            for name in left:
                torch.testing.assert_close(left[name], right[name], rtol=1e-5, atol=1e-6)
