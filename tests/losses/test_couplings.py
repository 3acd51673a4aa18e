"""Minibatch optimal transport: the best order of a batch's noise, and what it makes of a model."""

import itertools

import pytest
import torch

import twosides as ts
from twosides import cli
from twosides.losses.couplings import Coupled, minibatch


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_no_order_of_the_noise_is_nearer():
    x, eps = draw(6, 2, 3), draw(6, 2, 3, seed=1)
    cost = lambda order: float((x - eps[list(order)]).square().sum())  # noqa: E731
    best = min(itertools.permutations(range(6)), key=cost)
    assert torch.equal(minibatch(x, eps), eps[list(best)])
    assert cost(best) < cost(range(6))


@pytest.mark.parametrize("recipe", ["flow-matching", "v-cosine"])
def test_only_the_pairs_differ(recipe):
    """Of independent noise it is the objective itself, to the last bit."""
    objective, x = ts.recipes[recipe].objective(), draw(16, 2)
    denoiser = ts.recipes[recipe].denoiser(lambda z, t: 0.3 * z)
    drawn = lambda: ts.PerSample(3, range(16), stream=5)  # noqa: E731
    plain = objective.evaluate(denoiser, x, generator=drawn())
    same = Coupled.of(objective, "independent").evaluate(denoiser, x, generator=drawn())
    other = Coupled.of(objective, "minibatch-ot").evaluate(denoiser, x, generator=drawn())
    assert torch.equal(plain.loss, same.loss)
    assert torch.equal(plain.logsnr, other.logsnr)
    assert not torch.equal(plain.loss, other.loss)
    once, again = (
        Coupled.of(objective, "minibatch-ot")(
            denoiser, x, generator=torch.Generator().manual_seed(2)
        )
        for _ in range(2)
    )
    assert torch.equal(once, again)
    with pytest.raises(ValueError, match="unknown coupling 'optimal'"):
        Coupled.of(objective, "optimal")


def test_u_has_less_to_explain():
    """E|eps - x|^2 over the ring, which is the loss of a network that answers 0."""
    x = ts.oracle.GaussianMixture.ring(8).sample(256, seed=0).float()
    denoiser = ts.Denoiser(lambda z, t: 0 * z)
    objective = ts.recipes["flow-matching"].objective()
    losses = [
        float(
            Coupled.of(objective, name)(denoiser, x, generator=ts.PerSample(0, range(256))).mean()
        )
        for name in ("independent", "minibatch-ot")
    ]
    assert losses[0] == pytest.approx(3.02 / 2, rel=0.15)
    assert losses[1] < 0.25 * losses[0]


def test_a_model_says_that_it_was_trained_so(tmp_path, monkeypatch, capsys):
    words = ["train", "ring", "--out", str(tmp_path / "run"), "--coupling", "minibatch-ot"]
    monkeypatch.setattr("sys.argv", ["twosides", *words, "--steps", "2", "--batch", "16"])
    cli.main()
    assert ts.load(tmp_path / "run").coupling == "minibatch-ot"
    out = ["--out", str(tmp_path / "x.npy"), "--count", "3", "--steps", "2"]
    monkeypatch.setattr("sys.argv", ["twosides", "sample", str(tmp_path / "run"), *out])
    cli.main()
    more = ["--sampler", "ddpm"]
    monkeypatch.setattr("sys.argv", ["twosides", "sample", str(tmp_path / "run"), *out, *more])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main()
    assert "coupling: minibatch-ot" in capsys.readouterr().err
