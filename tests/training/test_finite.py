"""No NaN and no infinity reaches a file of a run, and the repaired run goes on from a finite one."""

import lightning.pytorch as lightning
import pytest
import torch

from injections import DATA, Fault, inject, network
from twosides.data.tasks import Points
from twosides.storage.files import commit_folder
from twosides.storage.networks import MLP
from twosides.storage.trees import load_tree, save_tree
from twosides.training.finite import FirstStep
from twosides.training.fit import fit
from twosides.training.settings import Settings


@pytest.mark.filterwarnings("ignore:the data do not say:UserWarning")
@pytest.mark.parametrize("seed", range(20))
def test_deepfilternet_30_nothing_that_is_not_finite_is_kept(seed, tmp_path):
    """Of all kinds, precisions and paces; `make injections` does it 200 times."""
    inject(seed, tmp_path / "run")


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
    began = Fault("", 0)
    with pytest.warns(UserWarning, match="step-00000004.*not finite, in .*leave.bias"):
        fit(network(), Points(DATA), "sd3", tmp_path, settings, callbacks=[began])
    assert began.began == 2


def test_the_first_bad_step_is_kept_on_the_device():
    first = FirstStep(torch.device("cpu"))
    fine, nan = torch.tensor(1.0), torch.tensor(torch.nan)
    for step, (losses, norm) in enumerate(
        [([fine, fine], fine), ([fine, fine], nan), ([nan, fine], nan), ([nan, nan], fine)], 1
    ):
        first.note(step, losses, norm)
    assert first.steps.tolist() == [3, 2]
