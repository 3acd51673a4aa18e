"""No NaN and no infinity reaches a file of a run, and the repaired run goes on from a finite one.

INJECTIONS=200 pytest tests/training/test_finite.py         more of them
"""

import os
import random
import re

import lightning.pytorch as lightning
import pytest
import torch

from twosides.data.tasks import Points
from twosides.oracle import GaussianMixture
from twosides.storage.checkpoints import Checkpoints
from twosides.storage.files import commit_folder
from twosides.storage.networks import MLP
from twosides.storage.tensors import load_tensors
from twosides.storage.trees import load_tree, save_tree
from twosides.training import guard
from twosides.training.finite import FirstStep, places_not_finite
from twosides.training.fit import Monitor, fit
from twosides.training.settings import Settings

DATA = GaussianMixture.ring(4, std=0.1).sample(40, seed=0).float()
STEPS = 18
INJECTIONS = int(os.environ.get("INJECTIONS", 40))


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MLP(2, 8, 1)


class Bad:
    """An auxiliary loss of 0, which at one step is NaN, or has a gradient that is not finite."""

    def __init__(self, kind, step):
        self.kind, self.step, self.calls = kind, step, 0

    def __call__(self, denoiser, batch, losses):
        self.calls += 1
        weight = denoiser.network.leave.weight
        if self.calls != self.step:
            return 0 * weight.sum()
        if self.kind == "loss":
            return torch.nan * weight.sum()
        # sqrt(0) is finite, its slope is not.
        return ((weight - weight.detach()) ** 2).sum().sqrt()


class Began(lightning.Callback):
    step = None

    def on_train_start(self, trainer, pl_module):
        self.step = trainer.global_step


def files(folder):
    found = list(folder.rglob("*.safetensors"))
    return {str(path.relative_to(folder)): load_tensors(path) for path in found}


def inject(seed, folder, monkeypatch):
    choice = random.Random(seed)
    kind, step = choice.choice(["data", "loss", "gradient"]), choice.randint(1, STEPS)
    every = {"checkpoint_every": choice.randint(1, 8), "log_every": choice.randint(1, 9)}
    if choice.random() < 0.5:
        every["snapshot_every"] = choice.randint(1, 6)
    settings = Settings(STEPS, 4, warmup=1, picture_every=choice.randint(2, 7), **every)
    x, drawn = DATA.clone(), []
    if kind == "data":
        x[choice.randrange(len(x))] = torch.nan
    with monkeypatch.context() as patch:
        if choice.random() < 0.5:  # as on a device, where a look makes the host wait
            start = guard.Guard.on_train_start

            def later(self, trainer, pl_module):
                start(self, trainer, pl_module)
                self.waits = True

            patch.setattr(guard.Guard, "on_train_start", later)

        def draw(denoiser):
            drawn.append(not places_not_finite(denoiser.state_dict()))
            return b"picture"

        options = {
            "auxiliary": Bad(kind, 0 if kind == "data" else step),
            "monitor": Monitor(draw=draw),
        }
        with pytest.raises(ValueError, match="is not finite") as caught:
            fit(network(), Points(x), "flow-matching", folder, settings, **options)
    named = re.search(r"(loss|gradient) of step (\d+) is not finite", str(caught.value))
    assert named, str(caught.value)
    if kind == "data":
        step = int(named[2])
    assert (named[1], int(named[2])) == ("gradient" if kind == "gradient" else "loss", step)
    for name, tensors in files(folder).items():
        assert not places_not_finite(tensors), (seed, name)
    assert all(drawn)
    newest = Checkpoints(folder / "checkpoints").newest_folder()
    began = Began()
    options = {"auxiliary": Bad("none", 0), "monitor": Monitor(draw=draw), "callbacks": [began]}
    result = fit(network(), Points(DATA), "flow-matching", folder, settings, **options)
    last = (step - 1) // settings.checkpoint_every * settings.checkpoint_every
    assert began.step == last == (int(newest.name[5:]) if newest else 0), seed
    assert not places_not_finite(result.state_dict())


@pytest.mark.parametrize("seed", range(INJECTIONS))
def test_deepfilternet_30_nothing_that_is_not_finite_is_kept(seed, tmp_path, monkeypatch):
    inject(seed, tmp_path / "run", monkeypatch)


def test_weights_that_overflow_reach_no_checkpoint(tmp_path):
    """Loss and gradient of the step were finite, and what a callback made of the weights is not."""

    class Overflows(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step == 4:
                with torch.no_grad():
                    pl_module.denoiser.network.leave.bias[0] = torch.inf

    settings = Settings(6, 4, 1e-3, warmup=1, checkpoint_every=2)
    with pytest.raises(ValueError, match="checkpoint of step 4 is not written.*leave.bias"):
        fit(network(), Points(DATA), "sd3", tmp_path, settings, callbacks=[Overflows()])
    assert [path.name for path in tmp_path.glob("checkpoints/*")] == ["step-00000002"]


def test_infinities_on_purpose_are_kept(tmp_path):
    """The mask of an attention is no fault."""

    class Masked(MLP):
        def __init__(self, dim=2, width=8, depth=1, classes=0):
            super().__init__(dim, width, depth, classes)
            self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))

    settings = Settings(4, 4, warmup=1, checkpoint_every=2)
    with torch.random.fork_rng(devices=[]):
        net = Masked()
    with pytest.warns(UserWarning, match="class test_finite:Masked, which nobody can import"):
        result = fit(net, Points(DATA), "sd3", tmp_path, settings)
    assert bool(result.network.mask.isinf().any())
    spoiled = network()
    with torch.no_grad():
        spoiled.leave.bias[0] = torch.nan
    with pytest.raises(ValueError, match="weights to train are not finite, .*leave.bias"):
        fit(spoiled, Points(DATA), "sd3", tmp_path / "other", settings)


def test_a_checkpoint_of_nan_is_skipped(tmp_path):
    """As older runs may hold one: the one before it is gone on from, with a warning."""
    settings = Settings(4, 4, warmup=1, checkpoint_every=2)
    fit(network(), Points(DATA), "sd3", tmp_path, settings)
    (tmp_path / "model").rename(tmp_path / "gone")
    newest = tmp_path / "checkpoints/step-00000004"
    tree = load_tree(newest)
    tree["state_dict"]["denoiser.network.leave.bias"][0] = torch.nan
    commit_folder(newest, lambda folder: save_tree(folder, tree))
    began = Began()
    with pytest.warns(UserWarning, match="step-00000004.*not finite, in .*leave.bias"):
        fit(network(), Points(DATA), "sd3", tmp_path, settings, callbacks=[began])
    assert began.step == 2


def test_the_first_bad_step_is_kept_on_the_device():
    first = FirstStep(torch.device("cpu"))
    fine, nan = torch.tensor(1.0), torch.tensor(torch.nan)
    for step, (losses, norm) in enumerate(
        [([fine, fine], fine), ([fine, fine], nan), ([nan, fine], nan), ([nan, nan], fine)], 1
    ):
        first.note(step, losses, norm)
    assert first.steps.tolist() == [3, 2]
