"""Masked errors: which elements of a sample are trained, and with what weight.

The error of a sample is the mean over its own elements, weighted by a mask m >= 0,

    error = sum m (o_hat - o)^2 / sum m

so that padding changes neither the loss nor the gradient of a sequence, however long the padding
is. Every sample counts once in the mean over a batch, in learned weightings and in densities that
adapt, whatever its length, as it does where sequences are trained one by one. Who wants each
element of a batch to count once weighs the losses by the masks:

    weight = mask.expand_as(x).flatten(1).sum(1)
    loss = (weight * objective(denoiser, x, loss_mask=mask)).sum() / weight.sum()
"""

from __future__ import annotations

import torch
from torch import Tensor

MASK = "loss_mask"  # its name in rows of data, and as an argument of objectives


def mean_square(difference: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean square over the elements of each sample (B,), weighted by a mask if there is one.

    difference: (B, ...).
    mask: weights >= 0, see `check_mask`. Where it is 0 no gradient flows, and NaN does no harm.

    >>> mean_square(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([5.])
    """
    if mask is None:
        return difference.square().reshape(len(difference), -1).mean(1)
    weight = check_mask(mask, difference.shape).to(difference)
    # Chosen before it is squared: 0 times NaN would be NaN, in the loss and in the gradient.
    used = torch.where(weight > 0, difference, 0.0)
    total = weight.expand_as(difference).reshape(len(difference), -1).sum(1)
    return (weight * used.square()).reshape(len(difference), -1).sum(1) / total


def check_mask(mask: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The mask of data of shape (B, ...); ValueError for one that fits no such data.

    It has as many axes as the data, each of the data's size or of size 1, and numbers that are
    finite, not negative, and for no sample all 0 (looked at on the CPU only, where that waits for
    no device).
    """
    fits = mask.ndim == len(shape) and all(
        own in (1, size) for own, size in zip(mask.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"{MASK} has shape {tuple(mask.shape)} and the data {tuple(shape)}; it needs as many "
            "axes, each of the data's size or of size 1: mask[:, None] for one mask of all "
            "channels, mask[..., None] for sequences of vectors"
        )
    if mask.device.type == "cpu" and mask.numel():
        values = mask.double().reshape(len(mask), -1)
        if not bool((values.isfinite() & (values >= 0)).all()):
            raise ValueError(f"{MASK} has weights that are negative or not finite")
        empty = (values.sum(1) == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"{MASK} is 0 everywhere in sample {empty[0]} of the batch, which leaves nothing "
                "to train on; leave such samples out"
            )
    return mask
