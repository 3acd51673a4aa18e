"""Train a small network on two moons by any recipe, and sample it by several samplers.

python examples/two_moons.py [recipe]       # flow-matching, v-cosine, sd3, min-snr, ...
"""

import itertools
import math
import sys

import torch
from torch import nn

import twosides as ts
from twosides.metrics import sliced_wasserstein


def moons(count: int, generator: torch.Generator) -> torch.Tensor:
    """Points (count, 2) of two half circles, with a little noise, of about unit variance."""
    angle = math.pi * torch.rand(count, generator=generator)
    upper = torch.rand(count, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    points = torch.stack([x - 0.5, y - 0.25], 1) / 0.7
    return points + 0.05 * torch.randn(count, 2, generator=generator)


class Network(nn.Module):
    """z of shape (B, 2) and the log-SNR of shape (B,) to (B, 2)."""

    def __init__(self) -> None:
        """Three hidden layers of 64."""
        super().__init__()
        sizes = (4, 64, 64, 64)
        hidden = [(nn.Linear(a, b), nn.SiLU()) for a, b in itertools.pairwise(sizes)]
        self.layers = nn.Sequential(*(part for pair in hidden for part in pair), nn.Linear(64, 2))

    def forward(self, z: torch.Tensor, logsnr: torch.Tensor) -> torch.Tensor:
        """The recipe says what the answer means."""
        level = (logsnr[:, None] / 4).tanh()
        return self.layers(torch.cat([z, level, (4 * level).sin()], 1))


def main(name: str = "flow-matching", steps: int = 200) -> None:
    """Train, sample, measure."""
    torch.manual_seed(0)
    recipe = ts.recipes[name]
    denoiser = recipe.denoiser(Network(), time="logsnr")
    objective, generator = recipe.objective(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    for step in range(steps):
        loss = objective(denoiser, moons(512, generator), generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {loss.detach():.3f}")
    data, more = moons(2000, generator), moons(2000, generator)
    print(f"data against data: {sliced_wasserstein(data, more):.3f}")
    for sampler in ("ddim", "kab2c", "dpmpp-2m-sde"):
        x = ts.sample(denoiser, (2000, 2), sampler=sampler, steps=10, seed=0)
        print(f"{sampler}, 10 steps: {sliced_wasserstein(x, data):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
