"""Masked losses: padding changes neither the loss, nor the gradient, nor what is learned beside."""

import math
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from twosides.data.padding import padded
from twosides.data.summary import _Moments
from twosides.denoiser import Denoiser
from twosides.losses.masks import mean_square
from twosides.losses.recipes import recipe_named, recipes
from twosides.oracle import GaussianMixture
from twosides.randomness import PerSample
from twosides.schedules import FlowMatching
from twosides.training.fit import Monitor, Settings, fit, loss_curve
from twosides.training.module import Module

LENGTHS = (3, 7, 1, 5)
SEQUENCES = [
    torch.randn(n, 2, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    for n in LENGTHS
]


class Attention(nn.Module):
    """Attends to what is no padding, as networks for sequences do."""

    config: ClassVar[dict[str, int]] = {}

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.inner, self.outer = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, z, time, attends):
        told = torch.cat([z, time.to(z).reshape(-1, 1, 1).expand(*z.shape[:2], 1)], -1)
        h = torch.tanh(self.inner(told))
        scores = (h @ h.mT).masked_fill(~attends[:, None], -math.inf)
        return self.outer(scores.softmax(-1) @ h)


def item(sequences, filling=0.0):
    data = padded(sequences)
    mask = data["loss_mask"]
    x = torch.where(mask, data["x"], filling)
    return x, mask, mask[..., 0]


def apart(recipe, network, objective=None):
    """Losses and gradients of the sequences one by one, with the noise they have in a batch."""
    objective, count = objective or recipe.objective(), len(SEQUENCES)
    losses = []
    for i, x in enumerate(SEQUENCES):
        draw = PerSample(3, [i], total=count)
        told = torch.ones(1, len(x), dtype=torch.bool)
        parts = objective.evaluate(recipe.denoiser(network), x[None], generator=draw, attends=told)
        losses.append(parts)
    mean = torch.cat([parts.loss for parts in losses]).mean()
    return losses, torch.autograd.grad(mean, list(network.parameters()))


@pytest.mark.parametrize("name", ["flow-matching", "sd3", "edm", "v-cosine", "min-snr", "ddpm"])
@pytest.mark.parametrize("filling", [0.0, 1e3])
def test_a_padded_batch_is_its_sequences(name, filling):
    recipe, network = recipes[name], Attention().double()
    x, mask, attends = item(SEQUENCES, filling)
    draw = PerSample(3, range(len(x)))
    found = recipe.objective().evaluate(
        recipe.denoiser(network), x, generator=draw, loss_mask=mask, attends=attends
    )
    losses, wanted = apart(recipe, network)
    for field in ("loss", "logsnr", "error", "eps_error"):
        one_by_one = torch.cat([getattr(parts, field) for parts in losses])
        assert torch.allclose(getattr(found, field), one_by_one, rtol=1e-12, atol=0), field
    gradients = torch.autograd.grad(found.loss.mean(), list(network.parameters()))
    for a, b in zip(gradients, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-14)
    plain = recipe.objective()(recipe.denoiser(network), x, generator=draw, attends=attends)
    assert not torch.allclose(plain, found.loss, rtol=1e-2), "without the mask it is another loss"


@pytest.mark.parametrize("learns", ["adaptive", "entropy-rate", "uncertainty"])
def test_what_is_learned_beside_does_not_see_the_padding(learns):
    """Each sequence is one visit of its bin, with the mean error of its own elements."""
    network, recipe = Attention().double(), recipe_named(f"flow-matching+{learns}")
    x, mask, attends = item(SEQUENCES, 1e3)
    tables = []
    for masked in (True, False):
        objective = recipe.objective()
        for _ in range(3):
            if masked:
                draw = PerSample(3, range(len(x)))
                losses = [
                    objective.evaluate(
                        recipe.denoiser(network), x, generator=draw, loss_mask=mask, attends=attends
                    )
                ]
            else:
                losses, _ = apart(recipe, network, objective)
            merged = [torch.cat(parts).detach() for parts in zip(*losses, strict=True)]
            objective.observe(type(losses[0])._make(merged))
        tables.append(objective.bins.state_dict())
    for name, table in tables[0].items():
        assert torch.allclose(table, tables[1][name], rtol=1e-12), name


def test_weights_are_weights():
    """Elements of weight 2 count as two; one mask may stand for all channels."""
    d = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.tensor([2.0, 1.0, 0.0, 0.5, 0.0]).reshape(1, 1, 5)
    twice = torch.cat([d[..., :1], d[..., :2], d[..., 3:4], d[..., 3:4]], -1)
    halves = torch.tensor([1.0, 1.0, 1.0, 0.25, 0.25]).reshape(1, 1, 5)
    assert torch.allclose(mean_square(d, weight), mean_square(twice, halves), rtol=1e-13)
    assert torch.allclose(mean_square(d, torch.ones(1, 1, 1)), mean_square(d), rtol=1e-13)
    assert torch.allclose(mean_square(d, 7 * weight), mean_square(d, weight), rtol=1e-13)


def test_nan_in_the_padding_does_no_harm():
    d = torch.tensor([[1.0, math.nan], [2.0, 3.0]], requires_grad=True)
    losses = mean_square(d, torch.tensor([[1, 0], [1, 1]]))
    assert losses.tolist() == [1.0, 6.5]
    (gradient,) = torch.autograd.grad(losses.sum(), [d])
    assert gradient.tolist() == [[2.0, 0.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.ones(2, 4), "as many axes.*mask\\[..., None\\]"),
        (torch.ones(2, 3, 2), "shape \\(2, 3, 2\\) and the data \\(2, 4, 2\\)"),
        (-torch.ones(2, 4, 1), "negative or not finite"),
        (torch.full((2, 4, 1), math.nan), "negative or not finite"),
        (torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])[..., None], "0 everywhere in sample 1"),
    ],
)
def test_masks_that_are_none_are_refused(mask, words):
    denoiser, x = Denoiser(lambda z, t: z), torch.zeros(2, 4, 2)
    with pytest.raises(ValueError, match=words):
        recipes["flow-matching"].objective()(denoiser, x, loss_mask=mask)


def test_oracles_lose_what_they_lose_on_the_part_that_counts():
    """With independent dimensions a masked loss is that of the dimensions that are left."""
    both = GaussianMixture([1.0], [[0.3, 5.0]], [[[0.25, 0.0], [0.0, 4.0]]])
    one = GaussianMixture([1.0], [[0.3]], [[[0.25]]])
    x, objective = both.sample(64, seed=0), recipes["flow-matching"].objective()
    mask = torch.tensor([[1.0, 0.0]])
    found = objective(both, x, generator=PerSample(0, range(64)), loss_mask=mask)
    wanted = objective(one, x[:, :1], generator=PerSample(0, range(64)))
    assert torch.allclose(found, wanted, rtol=1e-9)


def test_the_axis_that_is_padded():
    first = padded(SEQUENCES)
    last = padded([each.T for each in SEQUENCES], axis=-1)
    assert first["x"].shape == (4, 7, 2) and last["x"].shape == (4, 2, 7)
    assert first["loss_mask"].shape == (4, 7, 1) and last["loss_mask"].shape == (4, 1, 7)
    for name in ("x", "loss_mask"):
        assert torch.equal(first[name].mT, last[name])
    for row, mask, own in zip(first["x"], first["loss_mask"], SEQUENCES, strict=True):
        assert torch.equal(row[mask[:, 0]], own) and not row[~mask[:, 0]].any()


@pytest.mark.parametrize(
    ("sequences", "axis", "words"),
    [
        ([], 0, "no sequences"),
        ([torch.ones(2, 1)], 2, "no axis 2"),
        ([torch.ones(2, 1), torch.ones(3, 2)], 0, "differ in axis 0 only"),
        ([torch.ones(2, 1), torch.ones(0, 1)], 0, "sequence 1 is empty"),
    ],
)
def test_sequences_that_cannot_be_padded(sequences, axis, words):
    with pytest.raises(ValueError, match=words):
        padded(sequences, axis)


def test_moments_of_padded_data_are_those_of_the_sequences():
    data, moments, alone = padded(SEQUENCES), _Moments(), _Moments()
    for x, mask in zip(data["x"], data["loss_mask"], strict=True):
        moments.add(torch.where(mask, x, 99.0).T, mask.T)
    for x in SEQUENCES:
        alone.add(x.T)
    assert moments.lines() == alone.lines()


def test_a_run_of_fit_does_not_see_the_padding(tmp_path):
    """Its losses, logged and validated, are of size 1 beside padding of size 1000."""
    x, mask, attends = item([each.float() for each in SEQUENCES], 1e3)
    data = {"x": x, "loss_mask": mask, "attends": attends}
    settings = Settings(steps=2, batch=2, log_every=1, checkpoint_every=2, validate_every=2)
    fit(Attention(), data, "sd3", tmp_path / "run", settings, monitor=Monitor(validation=data))
    _, losses = loss_curve(tmp_path / "run")
    unseen = (tmp_path / "run/logs/validation.csv").read_text().splitlines()[1:]
    assert len(losses) == 2 and len(unseen) == 4
    assert max([*losses, *(float(row.split(",")[-1]) for row in unseen)]) < 20


def test_a_step_of_training_has_the_masked_loss():
    x, mask, attends = item([each.float() for each in SEQUENCES], 1e3)
    recipe, network = recipes["sd3"], Attention()
    batch = default_collate(
        [{"x": a, "loss_mask": m, "attends": t} for a, m, t in zip(x, mask, attends, strict=True)]
    )
    module = Module(recipe.denoiser(network), recipe.objective(), Settings(batch=4))
    with torch.random.fork_rng(devices=[]):
        found = module.training_step({"batch": batch, "step": 0, "places": list(range(4))})
    draw = PerSample(0, range(4), stream=1, total=4)
    wanted = recipe.objective()(
        recipe.denoiser(network), x, generator=draw, loss_mask=mask, attends=attends
    )
    assert torch.equal(found, wanted.mean())


def test_a_mask_that_does_not_fit_is_found_before_the_first_step(tmp_path):
    x, mask, attends = item([each.float() for each in SEQUENCES])
    data = {"x": x, "loss_mask": mask[..., 0], "attends": attends}
    with pytest.raises(ValueError, match="loss_mask has shape"):
        fit(Attention(), data, "sd3", tmp_path / "run", Settings(steps=2, batch=2))


def test_the_schedule_is_no_matter():
    """The mask acts on the error of the output, and so on any notation of it."""
    x, mask, attends = item(SEQUENCES)
    losses = []
    for schedule in (FlowMatching(), FlowMatching().with_scaling("vp")):
        denoiser = Denoiser(lambda z, t, attends: 0 * z, "x", schedule)
        objective = recipes["flow-matching"].objective()
        draw = PerSample(1, range(len(x)))
        losses.append(
            objective.evaluate(denoiser, x, generator=draw, loss_mask=mask, attends=attends).error
        )
    assert torch.allclose(*losses, rtol=1e-12)
