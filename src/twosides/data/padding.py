"""Sequences of different lengths as rows of one length, with masks of what is padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad


def padded(sequences: Sequence[Tensor], axis: int = 0) -> dict[str, Tensor]:
    """Sequences as columns to train on: "x" filled up with zeros, and its "loss_mask".

    sequences: tensors that differ in the length of one axis only.
    axis: which that is, of a single sequence: 0 for (length, features), -1 for (channels, length).

    The result is data for `fit`, with columns added for what else the network takes; a network with
    attention needs the mask under the name that it has there, too. ValueError for no sequences, an
    empty one, and shapes that differ elsewhere.

    >>> data = padded([torch.ones(2, 1), torch.ones(3, 1)])
    >>> data["x"].shape, data["loss_mask"][0].flatten()
    (torch.Size([2, 3, 1]), tensor([ True,  True, False]))
    """
    if not sequences:
        raise ValueError("there are no sequences to pad")
    dims = sequences[0].ndim
    if not -dims <= axis < dims:
        raise ValueError(f"sequences with {dims} axes have no axis {axis}")
    axis %= dims
    others = {(each.ndim, *each.shape[:axis], *each.shape[axis + 1 :]) for each in sequences}
    if len(others) > 1:
        shapes = sorted({tuple(each.shape) for each in sequences})
        raise ValueError(f"sequences differ in axis {axis} only, but there are shapes {shapes}")
    lengths = torch.tensor([each.shape[axis] for each in sequences])
    longest = int(lengths.max())
    if int(lengths.min()) == 0:
        raise ValueError(f"sequence {int(lengths.argmin())} is empty")
    after = [0, 0] * (dims - 1 - axis)  # `pad` counts axes from the last
    x = torch.stack([pad(each, [*after, 0, longest - each.shape[axis]]) for each in sequences])
    mask = torch.arange(longest) < lengths[:, None]
    sizes = [1] * dims
    sizes[axis] = longest
    return {"x": x, "loss_mask": mask.reshape(len(x), *sizes)}
