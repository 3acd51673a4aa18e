"""Pictures as PNG bytes: grids of images, and charts."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from torch import Tensor


def grid(images: Tensor, columns: int, *, zoom: int = 3, gap: int = 1) -> Any:
    """Lay images out as one Pillow image.

    images: (B, C, H, W) in [-1, 1], C 1 or 3; what is beyond is cut.
    columns: images in a row.
    zoom: how many times each pixel is repeated along both sides.
    gap: grey pixels between images and around them, before the zoom.
    """
    from PIL import Image

    values = images.detach().cpu().float().clamp(-1, 1).add(1).mul(127.5).round()
    count, channels, height, width = values.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 64)
    for index, image in enumerate(values.permute(0, 2, 3, 1).numpy()):
        top = gap + (index // columns) * (height + gap)
        left = gap + (index % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image
    picture = Image.fromarray(canvas.astype(np.uint8).squeeze())
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def png(picture: Any) -> bytes:
    """A Pillow image as PNG bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def chart(figure: Any, *, dpi: int) -> bytes:
    """A matplotlib figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def sheet(x: Tensor) -> Any:
    """A picture of samples (B, C, H, W) in a square, small ones enlarged.

    Where their number is a multiple of 13, as of alphabets, they lie in rows of 13.
    """
    columns = 13 if len(x) % 13 == 0 else math.ceil(math.sqrt(len(x)))
    return grid(x, columns, zoom=3 if x.shape[-1] < 128 else 1)


def npy(x: Tensor) -> bytes:
    """The numbers as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, x.cpu().numpy(), allow_pickle=False)
    return buffer.getvalue()
