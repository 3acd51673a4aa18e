"""The cost of a network in floating-point operations, counted without computing any."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from twosides.conditioning import moved
from twosides.denoiser import Denoiser
from twosides.losses.masks import MASK
from twosides.storage import models


def flops_per_sample(
    denoiser: Denoiser, description: dict[str, Any], batch: dict[str, Any]
) -> float:
    """Floating-point operations of a forward and a backward pass, per sample.

    Matrix products, convolutions and attention are counted, on a copy of the network and of the
    batch that have shapes but no values. The result is 0 where that fails, as for networks whose
    control flow depends on values.

    denoiser: the denoiser that is trained.
    description: its description, from which the copy is built.
    batch: a batch with "x" and the conditioning.
    """
    try:
        with torch.device("meta"):
            network = models.build_network(description["network"], like=denoiser)
        copy = Denoiser(network, denoiser.output, denoiser.schedule, denoiser.clock)
        for own, other in zip(copy.parameters(), denoiser.parameters(), strict=True):
            own.requires_grad_(other.requires_grad)
        given = moved(batch, "meta")
        x = given.pop("x")
        given.pop(MASK, None)
        time = torch.zeros(len(x), dtype=copy.time_dtype(x.dtype), device="meta")
        with FlopCounterMode(display=False) as counter:
            copy.predict(x, time, **given).sum().backward()
        return counter.get_total_flops() / len(x)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return 0.0
