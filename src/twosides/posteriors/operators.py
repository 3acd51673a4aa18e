"""Operators A of measurements `y = A(x) + noise n` of pictures: four small linear ones.

They are what `twosides restore` offers. In Python any differentiable function of a batch can be the
operator of a `Measurement`, and so can deepinv's physics objects. Pictures are (B, C, H, W).

    >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> downsample(2)(x)
    tensor([[[[ 2.5000,  4.5000],
              [10.5000, 12.5000]]]])
    >>> crop(2)(x)
    tensor([[[[ 5.,  6.],
              [ 9., 10.]]]])
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Operator = Callable[[Tensor], Tensor]  # from a batch of pictures to a batch of measured values


def inpaint(mask: Tensor) -> Operator:
    """The known pixels of a picture, with 0 in the place of the others.

    mask: 1 or True where a pixel is known, 0 or False elsewhere, (H, W) or (C, H, W).

    ValueError for other numbers, and for a mask that knows no pixel.

    >>> inpaint(torch.tensor([[1, 0]]))(torch.tensor([[[[5.0, 7.0]]]]))
    tensor([[[[5., 0.]]]])
    """
    known = mask.to(torch.float64)
    if not bool((known == known.square()).all()) or not bool(known.any()):
        raise ValueError(
            "a mask is 1 where a pixel is known and 0 elsewhere, and knows one at least"
        )
    return lambda x: x * known.to(x)


def downsample(factor: int) -> Operator:
    """The means of the squares of `factor` x `factor` pixels: a picture with sides shorter by it.

    factor: a whole number, >= 2.

    ValueError for less, and, when it is applied, for a picture whose sides it does not divide.
    """
    if factor < 2:
        raise ValueError(f"downsample takes a whole number of at least 2, got {factor}")

    def apply(x: Tensor) -> Tensor:
        if x.shape[-1] % factor or x.shape[-2] % factor:
            raise ValueError(
                f"pictures of {x.shape[-2]} x {x.shape[-1]} pixels are not divided by {factor}"
            )
        return functional.avg_pool2d(x, factor)

    return apply


def blur(sigma: float) -> Operator:
    """A Gaussian blur. Pixels beyond the border have the value of the nearest one inside.

    sigma: the standard deviation of the Gaussian in pixels, > 0; it is cut off at three of them.
        Not to be confused with the sigma of a level.

    ValueError for a width that is not positive and finite.
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"blur takes a width in pixels, positive, got {sigma}")
    reach = math.ceil(3 * sigma)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
    taps = taps / taps.sum()

    def apply(x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)[:, None]
        wide = functional.pad(rows, (reach, reach, reach, reach), mode="replicate")
        tall = functional.conv2d(wide, taps.to(x)[None, None, :, None])
        return functional.conv2d(tall, taps.to(x)[None, None, None, :]).view_as(x)

    return apply


def crop(size: int) -> Operator:
    """The square of pixels in the middle of a picture.

    size: its side in pixels, >= 1.

    ValueError for less, and, when it is applied, for a picture that is smaller.
    """
    if size < 1:
        raise ValueError(f"crop takes a size in pixels, at least 1, got {size}")

    def apply(x: Tensor) -> Tensor:
        top, left = (x.shape[-2] - size) // 2, (x.shape[-1] - size) // 2
        if min(top, left) < 0:
            raise ValueError(
                f"{size} x {size} pixels are not in a picture of {x.shape[-2]} x {x.shape[-1]}"
            )
        return x[..., top : top + size, left : left + size]

    return apply


# By the names of the command line, as in "crop:8"; each takes the number after the colon. "inpaint"
# is not here, since it takes the name of a file.
OPERATORS: dict[str, Callable[[Any], Operator]] = {
    "downsample": downsample,
    "blur": blur,
    "crop": crop,
}
