"""Optimizers by name, and the course of the learning rate."""

import math

import pytest
import torch

from twosides.data.tasks import Points
from twosides.oracle import GaussianMixture
from twosides.storage.networks import MLP
from twosides.training.fit import fit
from twosides.training.log import METRICS, read_rows
from twosides.training.optimizers import optimizer_named, rate
from twosides.training.settings import Settings

DATA = Points(GaussianMixture.ring(4, std=0.1).sample(40, seed=0).float())


def test_the_rate_rises_and_falls_as_the_formula_says():
    for n in range(100):
        rise = min(1, (n + 1) / 10)
        done = max(n - 10, 0) / 90
        assert rate(n, 10, 100, "constant") == rise
        assert rate(n, 10, 100, "linear") == pytest.approx(rise * (1 - done), abs=1e-15)
        cosine = rise * math.cos(math.pi * done / 2) ** 2
        assert rate(n, 10, 100, "cosine") == pytest.approx(cosine, abs=1e-15)
    assert rate(100, 10, 100, "cosine") == 0 == rate(200, 10, 100, "linear")


def test_a_run_by_another_optimizer_with_decay(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = MLP(2, 8, 1)
    settings = Settings(4, 4, 0.1, warmup=1, log_every=1, optimizer="sgd", decay="linear")
    fit(net, DATA, "sd3", tmp_path, settings)
    rates = [float(row["learning_rate"]) for row in read_rows(tmp_path / METRICS)]
    assert rates == pytest.approx([0.1 * rate(n, 1, 4, "linear") for n in range(4)])
    longer = Settings(8, 4, 0.1, warmup=1, log_every=1, optimizer="sgd", decay="linear")
    with pytest.raises(ValueError, match="another run.*steps 4, not 8"):
        fit(net, DATA, "sd3", tmp_path, longer)


def test_names_of_optimizers():
    assert optimizer_named("adam") == "adam"
    found = optimizer_named("torch.optim:RAdam", trust_code=True)
    assert found is torch.optim.RAdam
    assert Settings(optimizer=found).identity()["optimizer"].endswith(":RAdam")
    assert not {"optimizer", "decay"} & Settings().identity().keys()  # as runs of before have it
    for name, message in (
        ("adan", "did you mean 'adam'"),
        ("torch.optim:RAdam", "trust_code"),
        ("math:pi", "trust_code"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer_named(name)
    with pytest.raises(ValueError, match="no subclass of torch.optim.Optimizer"):
        optimizer_named("math:pi", trust_code=True)
    with pytest.raises(ValueError, match="for any other pass its class"):
        Settings(optimizer="torch.optim:RAdam")
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        Settings(decay="cosin")
