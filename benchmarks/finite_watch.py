"""What it costs to look for numbers that are not finite at every training step.

The same steps of the letters' network (a U-Net of diffusers) are made with the look and without:
on the device, and the host waits for none of it. Both alternate, the order changes each round, and
the median of the ratios is shown, with its quartiles.

    python benchmarks/finite_watch.py
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import nn

import twosides as ts
from twosides.data.tasks import unet
from twosides.storage import models
from twosides.training.finite import FirstStep


class Loop:
    """Training steps; a look is made where there is a watch."""

    def __init__(self, device: torch.device, watch: FirstStep | None) -> None:
        """The same weights for every loop."""
        self.network = models.build_network(unet(16, (32, 64), 26), seed=0).train().to(device)
        recipe = ts.recipes["flow-matching"]
        self.denoiser = recipe.denoiser(self.network, time="1000t")
        self.objective, self.watch, self.step = recipe.objective(), watch, 0
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4)
        self.generator = torch.Generator().manual_seed(0)

    def seconds(self, x: torch.Tensor, labels: torch.Tensor) -> float:
        """Of one step."""
        began = time.perf_counter()
        self.step += 1
        self.optimizer.zero_grad()
        told = {"generator": self.generator, "class_labels": labels}
        loss = self.objective(self.denoiser, x, **told).mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        if self.watch is not None:
            self.watch.note(self.step, [loss], norm)
        if x.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began


def main() -> None:
    """Print the ratio for each batch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--batches", type=int, nargs="+", default=[16])
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for batch in options.batches:
        x = torch.rand(batch, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
        x, labels = x.to(device), (torch.arange(batch) % 26).to(device)
        plain, watched = Loop(device, None), Loop(device, FirstStep(device))
        ratios: list[float] = []
        for number in range(options.rounds + 1):
            both = [plain, watched] if number % 2 else [watched, plain]
            spent = {id(loop): loop.seconds(x, labels) for loop in both}
            if number:
                ratios.append(spent[id(watched)] / spent[id(plain)])
        looks = 500
        began = time.perf_counter()
        for number in range(looks):
            assert watched.watch is not None
            watched.watch.note(number, [x.mean()], x.mean())
        alone = (time.perf_counter() - began) / looks
        low, middle, high = statistics.quantiles(ratios, n=4)
        step = statistics.median([plain.seconds(x, labels) for _ in range(9)])
        print(
            f"batch {batch}: watched / plain {middle:.4f} ({low:.3f} to {high:.3f}); a look alone "
            f"{1e6 * alone:.0f} us of a step of {1e3 * step:.1f} ms, {alone / step:.2%}"
        )


if __name__ == "__main__":
    main()
