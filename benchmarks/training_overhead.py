"""What our objective costs in training, over a flow-matching loop written out.

Both loops train the letters' network (a UNet of diffusers, 16 x 16 pixels) on the same batch with
the same optimizer; one computes its loss in five lines, the other by a recipe. Steps of both
alternate, each of ours is divided by its neighbour, and the median of these ratios is shown, with
its quartiles.

    python benchmarks/training_overhead.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import twosides as ts
from twosides.data.tasks import unet
from twosides.storage import models


def bare(network: nn.Module, x: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Flow matching as everybody writes it."""
    t = torch.rand(len(x), generator=generator)
    eps = torch.randn(x.shape, generator=generator)
    shaped = t.view(-1, 1, 1, 1)
    u = network((1 - shaped) * x + shaped * eps, 1000 * t, class_labels=labels).sample
    return ((u - (eps - x)) ** 2).mean()


def ours(recipe: str) -> Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]:
    """The same by a recipe."""
    objective = ts.recipes[recipe].objective()

    def loss(network: nn.Module, x: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        denoiser = ts.recipes[recipe].denoiser(network, time="1000t")
        return objective(denoiser, x, generator=generator, class_labels=labels).mean()

    return loss


class Loop:
    """A network, its optimizer, and a loss."""

    def __init__(self, loss: Callable[..., Tensor]) -> None:
        """The same weights for every loop."""
        self.network = models.build_network(unet(16, (32, 64), 26), seed=0).train()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4)
        self.loss, self.generator = loss, torch.Generator().manual_seed(0)

    def seconds(self, x: Tensor, labels: Tensor) -> float:
        """Of one step."""
        began = time.perf_counter()
        self.optimizer.zero_grad()
        self.loss(self.network, x, labels, self.generator).backward()
        self.optimizer.step()
        return time.perf_counter() - began


def main() -> None:
    """Print the ratio for each recipe and batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--recipes", nargs="+", default=["flow-matching", "sd3", "v-cosine"])
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads; ours / bare, a step: median (quartiles)")
    for batch in options.batches:
        x = torch.rand(batch, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
        labels = torch.arange(batch) % 26
        for recipe in options.recipes:
            plain, recipes = Loop(bare), Loop(ours(recipe))
            for loop in (plain, recipes):
                loop.seconds(x, labels)
            ratios, times = [], []
            for round_ in range(options.rounds):
                both = [plain, recipes] if round_ % 2 else [recipes, plain]
                spent = {id(loop): loop.seconds(x, labels) for loop in both}
                ratios.append(spent[id(recipes)] / spent[id(plain)])
                times.append(spent[id(plain)])
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(
                f"batch {batch:3d}, {recipe:13}: {middle:.3f} ({low:.3f} to {high:.3f}); "
                f"bare {1e3 * statistics.median(times):.0f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()
