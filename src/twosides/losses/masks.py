"""Masked errors: which elements of a sample are trained, and with what weight.

A mask m >= 0 weighs the elements of a sample, and is 0 where they are padding. The error of a
sample is the weighted mean over its elements, of the output o of the network,

    error = sum m (o_hat - o)^2 / sum m

so that padding changes neither the loss nor the gradient of a sequence, however long the padding
is. Every sample counts once, whatever its length, as if the sequences were trained one by one: in
the mean over a batch, in learned weightings and in densities that adapt. If each element of a batch
is to count once instead, the losses are weighed by the masks:

    weight = mask.expand_as(x).flatten(1).sum(1)
    loss = (weight * objective(denoiser, x, loss_mask=mask)).sum() / weight.sum()

The mask of the loss is not to be confused with a mask of attention. A network that attends to a
sequence must be told of the padding, too, under the name that it has for that.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASK = "loss_mask"  # the name of the mask in rows of data, and as an argument of objectives


def mean_square(difference: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean square over the elements of each sample (B,), weighted by a mask if there is one.

    difference: the differences (B, ...).
    mask: the weights, as in `check_mask`; None weighs all elements alike. Where a weight is 0 no
        gradient flows, and NaN does no harm.

    >>> mean_square(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([5.])
    """
    if mask is None:
        return difference.square().reshape(len(difference), -1).mean(1)
    weight = check_mask(mask, difference.shape).to(difference)
    # The padding is left out before the square is taken and not by its weight, since 0 times NaN
    # is NaN, in the loss and in the gradient.
    used = torch.where(weight > 0, difference, 0.0)
    total = weight.expand_as(difference).reshape(len(difference), -1).sum(1)
    return (weight * used.square()).reshape(len(difference), -1).sum(1) / total


def check_mask(mask: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """The mask as it is, if it fits data of a shape; ValueError if it does not.

    mask: the weights of the elements, finite and >= 0, and not all 0 in any sample. These numbers
        are checked on the CPU only, because on an accelerator the check would wait for the device.
        The mask has as many axes as the data, each of the size that the data have there or of size
        1: (B, 1, H, W) is one mask for all channels.
    shape: the shape of the data (B, ...).

    >>> check_mask(torch.tensor([[True, False, False]]), (1, 3)).shape
    torch.Size([1, 3])
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
