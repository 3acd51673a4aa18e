"""Parameters under several names (tied weights, one block used four times) are averaged like all."""

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from torch import nn

from twosides.data.tasks import Points
from twosides.oracle import GaussianMixture
from twosides.storage import models
from twosides.storage.tensors import load_tensors
from twosides.training.ema import PowerEMA, first_names, gamma_of
from twosides.training.fit import fit
from twosides.training.posthoc import reconstruct
from twosides.training.settings import Settings

DATA = GaussianMixture.ring(4, std=0.1).sample(48, seed=0).float()
STEPS = 12


class Shared(nn.Module):
    """One block used four times, and an input matrix that is the output's, too.

    Tied by the constructor, by whoever uses it (`tie`), or not at all.
    """

    def __init__(self, block=True, tied=True):
        super().__init__()
        self.config = {"block": block, "tied": tied}
        self.enter, self.leave = nn.Linear(2, 3), nn.Linear(2, 3, bias=False)
        one = nn.Linear(3, 3)
        self.blocks = nn.ModuleList([one if block else nn.Linear(3, 3) for _ in range(4)])
        if tied:
            self.tie()

    def tie(self):
        self.leave.weight = self.enter.weight
        return self

    def forward(self, z, time):
        hidden = self.enter(z) + time[:, None]
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden))
        return hidden @ self.leave.weight


class History(lightning.Callback):
    """The weights after every step, to average them by hand."""

    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        state = pl_module.denoiser.state_dict()
        self.rows.append({name: value.double().clone() for name, value in state.items()})


def network(**config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Shared(**config)


def by_hand(rows, sigma_rel):
    """The weight of step s is s^(gamma + 1) - (s - 1)^(gamma + 1), normalised."""
    weights = np.diff(np.arange(len(rows) + 1.0) ** (gamma_of(sigma_rel) + 1))
    weights /= weights.sum()
    return {
        name: sum(w * row[name] for w, row in zip(weights.tolist(), rows, strict=True))
        for name in rows[0]
    }


def frozen():
    net = network(tied=False)
    net.blocks.requires_grad_(False)
    return net


WAYS = {
    "by the constructor": network,
    "only the block": lambda: network(tied=False),
    "by the user": lambda: network(tied=False).tie(),
    "not at all": lambda: network(block=False, tied=False),
    "shared and frozen": frozen,
}


@pytest.mark.parametrize("way", WAYS)
def test_safetensors_98_shared_parameters_are_averaged(tmp_path, way):
    """The saved model is the true average under every name, and so are those made afterwards."""
    history, settings = History(), Settings(STEPS, 8, 0.05, warmup=1, snapshot_every=1)
    options = {"settings": settings, "callbacks": [history]}
    result = fit(WAYS[way](), Points(DATA), "flow-matching", tmp_path, **options)
    truth = by_hand(history.rows, settings.sigma_rel)
    moved = max(float((history.rows[-1][k] - truth[k]).abs().max()) for k in truth)
    assert moved > 1e-3  # the last weights are not the average
    saved = load_tensors(tmp_path / "model/model.safetensors")
    for state in (saved, result.state_dict()):
        assert state.keys() == truth.keys()
        for name, value in truth.items():
            assert float((state[name] - value).abs().max()) < 1e-6, name
    for sigma_rel in (0.05, 0.1):
        later, _ = reconstruct(tmp_path, sigma_rel, trust_code=True)
        for name, value in by_hand(history.rows, sigma_rel).items():
            assert float((later.state_dict()[name] - value).abs().max()) < 1e-4, (sigma_rel, name)


def test_a_shared_parameter_is_put_in_place_and_taken_back():
    net = network()
    names = first_names(net)
    assert names.keys() == net.state_dict().keys()
    assert names["leave.weight"] == "enter.weight" and names["blocks.3.bias"] == "blocks.0.bias"
    average, before = PowerEMA(net), {k: v.clone() for k, v in net.state_dict().items()}
    average.update(net)
    with torch.no_grad():
        for value in net.parameters():
            value.add_(1)
    with average.substitute(net):
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(torch.allclose(v, before[k] + 1) for k, v in net.state_dict().items())


def test_an_auxiliary_loss_that_holds_a_part_of_the_network(tmp_path):
    """Its parameters are the network's: trained once, without a warning, and averaged."""

    class Small(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, denoiser, batch, losses):
            return 1e-3 * (self.block.weight**2).sum()

    net, history = network(), History()
    settings = Settings(STEPS, 8, 0.05, warmup=1)
    options = {"auxiliary": Small(net.blocks[0]), "callbacks": [history]}
    fit(net, Points(DATA), "flow-matching", tmp_path, settings, **options)
    truth = by_hand(history.rows, settings.sigma_rel)
    for name, value in models.load(tmp_path, like=net).state_dict().items():
        assert float((value - truth[name]).abs().max()) < 1e-6, name
