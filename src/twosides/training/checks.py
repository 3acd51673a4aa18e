"""A check before training whether a network can be run on a row of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import default_collate

from twosides.conditioning import flat, moved
from twosides.data.tasks import Data, first_row
from twosides.denoiser import Denoiser
from twosides.losses.masks import MASK, check_mask
from twosides.losses.objective import exact


def check_data(denoiser: Denoiser, data: Data, reads: Sequence[str] = ()) -> None:
    """Run the network once on two rows; ValueError that names what is missing or does not fit.

    denoiser: the denoiser to train.
    data: the data set, whose first row is taken twice.
    reads: columns that the objective reads, and the network is not told.
    """
    first = {name: value for name, value in first_row(data).items() if name not in reads}
    batch = default_collate([first, first])
    x = exact(batch.pop("x"))
    if MASK in batch:
        check_mask(batch.pop(MASK), x.shape)
    required = required_conditioning(denoiser.network)
    missing = [name for name in required if name not in flat(batch)]
    if missing:
        raise ValueError(
            f"the network needs {', '.join(missing)}, but a row of the data set has "
            f"{', '.join(['x', *batch])}; add what is missing under these names"
        )
    level = denoiser.schedule.at(torch.tensor([0.5, 0.5], dtype=torch.float64))
    time = denoiser.clock.read(level.logsnr, denoiser.schedule).to(denoiser.time_dtype(x.dtype))
    device = next((p.device for p in denoiser.parameters()), x.device)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            denoiser.predict(x.to(device), time.to(device), **moved(batch, device))
    except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"the network cannot be run on the data set's rows, x {tuple(x.shape[1:])} with "
            f"{', '.join(batch) or 'no conditioning'}: {error}"
        ) from error


def required_conditioning(network: Any) -> list[str]:
    """The names of the conditioning without which a network of diffusers fails; [] for others."""
    try:
        from twosides.integrations.diffusers.lora import model_of
        from twosides.integrations.diffusers.required import required_names

        return required_names(model_of(network))
    except (ImportError, TypeError):  # without diffusers the network is none of its classes
        return []
