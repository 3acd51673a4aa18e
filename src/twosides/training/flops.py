"""What a network costs: floating-point operations, counted without computing any."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from twosides.conditioning import moved
from twosides.denoiser import Denoiser
from twosides.storage import models


def flops_per_sample(
    denoiser: Denoiser, description: dict[str, Any], batch: dict[str, Any]
) -> float:
    """Operations of a forward and a backward pass, per sample; 0 where they cannot be counted.

    Matrix products, convolutions and attention are counted, on a copy of the network and of the
    batch that have shapes but no values: networks whose control flow depends on values have none.
    """
    try:
        with torch.device("meta"):
            network = models.build_network(description["network"], like=denoiser)
        copy = Denoiser(network, denoiser.output, denoiser.schedule, denoiser.clock)
        for own, other in zip(copy.parameters(), denoiser.parameters(), strict=True):
            own.requires_grad_(other.requires_grad)
        given = moved(batch, "meta")
        x = given.pop("x")
        time = torch.zeros(len(x), dtype=copy.time_dtype(x.dtype), device="meta")
        with FlopCounterMode(display=False) as counter:
            copy.predict(x, time, **given).sum().backward()
        return counter.get_total_flops() / len(x)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return 0.0
