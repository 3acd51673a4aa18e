"""The loss and its gradient do not depend on the dtype in which the data are kept."""

import pytest
import torch
from torch import nn

from twosides.denoiser import Denoiser
from twosides.losses.densities import FromSchedule
from twosides.losses.objective import Objective, Staged
from twosides.losses.recipes import recipes
from twosides.losses.weightings import OutputMSE
from twosides.randomness import PerSample
from twosides.schedules import FlowMatching
from twosides.training.module import Module
from twosides.training.settings import Settings

HALVES = (torch.float16, torch.bfloat16)
SHAPE = (64, 4, 3, 3)


class Same(PerSample):
    """The same noise in every dtype."""

    def normal(self, event, dtype=torch.float32, device=None):
        return super().normal(event, torch.float32, device).to(dtype)


class Pixels(nn.Module):
    """A linear map of the channels, in the dtype of z."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(0.3 * torch.randn(4, 4, generator=generator))
        self.time = nn.Parameter(torch.zeros(4))

    def forward(self, z, time):
        weight, shift = self.weight.to(z.dtype), self.time.to(z.dtype)
        time = time.to(z.dtype).reshape(-1, 1, 1, 1) / (1 + time.abs().max().to(z.dtype))
        return torch.einsum("ij,bjhw->bihw", weight, z) + shift.reshape(-1, 1, 1) * time


def latents(dtype):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, generator=generator).to(dtype)


def gradient(recipe, x, network):
    denoiser = recipe.denoiser(network)
    losses = recipe.objective()(denoiser, x, generator=Same(0, range(len(x))))
    return losses, torch.autograd.grad(losses.mean(), list(network.parameters()))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", recipes)
def test_denoising_diffusion_pytorch_57_every_recipe(name, dtype):
    """Half-precision latents: loss and gradient are those of float64 to float32's rounding."""
    recipe, x = recipes[name], latents(dtype)
    network, reference = Pixels(), Pixels().double()
    losses, found = gradient(recipe, x, network)
    truth, wanted = gradient(recipe, x.double(), reference)
    assert losses.dtype == torch.float32 and truth.dtype == torch.float64
    assert torch.allclose(losses.double(), truth, rtol=1e-3)
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-3


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_denoising_diffusion_pytorch_57_near_convergence(dtype):
    """A gradient far below the rounding of the data's dtype is still the gradient.

    The network predicts x up to a shift of 1e-4, which float16 latents of size 8 cannot hold.
    """
    x = torch.full(SHAPE, 8.0, dtype=dtype)

    class Nearly(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.tensor(1e-4, dtype=torch.float64))

        def forward(self, z, time):
            return torch.zeros_like(z) + 8 + self.shift.to(z.dtype)

    network = Nearly()
    denoiser = Denoiser(network.float(), "x", FlowMatching())
    density = FromSchedule(FlowMatching())
    objective = Objective(OutputMSE("x", FlowMatching(), density), density)
    loss = objective(denoiser, x, generator=Same(0, range(len(x)))).mean()
    (found,) = torch.autograd.grad(loss, [network.shift])
    assert float(found) == pytest.approx(2e-4, rel=1e-2)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_denoising_diffusion_pytorch_57_in_training(dtype):
    """Staged objectives, auxiliary losses and the logged numbers, through the module that trains."""
    seen = []

    def auxiliary(denoiser, batch, losses):
        seen.append((batch["x"].dtype, losses.loss.dtype))
        return (batch["x"] ** 2).mean() * 0

    recipe, x = recipes["sd3"], latents(dtype)
    staged = Staged(recipes["v-cosine"].objective(), recipe.objective(), 5)
    for step in (0, 5):
        item = {"batch": {"x": x}, "step": step, "places": list(range(len(x)))}
        losses = []
        for data in (x, x.float()):
            module = Module(recipe.denoiser(Pixels()), staged, Settings(), auxiliary=auxiliary)
            with torch.random.fork_rng(devices=[]):
                losses.append(module.training_step({**item, "batch": {"x": data}}))
            ((kept, _),) = module._seen
            assert {field.dtype for field in (kept.loss, kept.error)} == {torch.float32}
        assert torch.equal(*losses)
    assert set(seen) == {(torch.float32, torch.float32)}


def test_float64_data_stay_float64():
    recipe = recipes["sd3"]
    losses = recipe.objective()(recipe.denoiser(Pixels().double()), latents(torch.float64))
    assert losses.dtype == torch.float64
