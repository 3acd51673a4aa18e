"""The bytes of an image as a tensor, with limits that are checked before anything is decoded.

    x = Frame(size=64).read(data)                       # (3, 64, 64) float32 in [-1, 1]

The largest centred square is resized to `size` with Pillow's Lanczos filter, after whole-number
averaging where it is more than three times too large. The orientation that the camera has recorded
is applied, 16-bit grey keeps its 16 bits, palettes are looked up, and transparent images are laid
on white.

The bytes are not trusted: everything wrong with them is a `BadImage`.
"""

from __future__ import annotations

import ast
import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES = 64 << 20  # the largest file
MAX_PIXELS = 1 << 26  # the largest image: 8192 x 8192, at most 256 MiB as RGBA
MAX_SIDE = 1 << 16  # pixels
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TIFF")
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".npy",
)  # fmt: skip
NUMPY = b"\x93NUMPY"


class BadImage(ValueError):
    """An image that cannot or must not be decoded.

    The message is the reason alone, to which the caller adds the name: "is damaged: ...".
    """


@dataclass(frozen=True)
class Frame:
    """The form in which images are read: squares of `size` pixels a side.

    size: the side in pixels, 1 to 65536.
    grey: whether images have one channel, grey, in place of three, RGB.

    >>> Frame(size=8).read(b"not an image")
    Traceback (most recent call last):
    twosides.data.decode.BadImage: is no PNG, JPEG, WEBP, AVIF, BMP, GIF or TIFF image
    """

    size: int = 64
    grey: bool = False

    def __post_init__(self) -> None:
        """ValueError for a size out of range."""
        if not 1 <= self.size <= MAX_SIDE:
            raise ValueError(f"the size of images is 1 to {MAX_SIDE} pixels, got {self.size}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of an image."""
        return (1 if self.grey else 3, self.size, self.size)

    def read(self, data: bytes) -> Tensor:
        """The image as a tensor (C, size, size), float32 in [-1, 1]; `BadImage` with the reason.

        data: the bytes of a file of one of FORMATS, or of NumPy with uint8 (H, W), (H, W, 1) or (H,
            W, 3).
        """
        if len(data) > MAX_BYTES:
            raise BadImage(f"has {len(data)} bytes; at most {MAX_BYTES} are accepted")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's limits are above these
                image = _open_array(data) if data.startswith(NUMPY) else open_image(data)
                return self._resize(_to_plain(image))
        except BadImage:
            raise
        except Exception as error:  # damaged files make parsers raise nearly anything
            raise BadImage(f"is damaged: {error or type(error).__name__}") from error

    def _resize(self, image: Image) -> Tensor:
        from PIL.Image import Resampling

        if image.mode != "F":
            image = image.convert("L" if self.grey else "RGB")
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        small = image.resize((self.size, self.size), Resampling.LANCZOS, box, reducing_gap=3.0)
        values = np.asarray(small, np.float32).reshape(self.size, self.size, -1)
        # The filter overshoots, and images of real numbers are not cut off at the ends by Pillow.
        x = torch.from_numpy(values / 127.5 - 1).clamp(-1, 1).permute(2, 0, 1)
        return x.expand(self.shape).contiguous()


def open_image(data: bytes) -> Image:
    """The image with its header read and accepted, and its orientation applied.

    `BadImage` says why an image is refused.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise ImportError("reading images needs Pillow: pip install 'twosides[data]'") from error
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise BadImage(f"is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image") from None
    except Image.DecompressionBombError:  # Pillow's own limit, which is higher than this one
        raise BadImage(f"claims too many pixels; at most {MAX_PIXELS} are accepted") from None
    _require_size(*image.size)
    # A photograph in the format MPO has several pictures, of which the first is the photograph.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise BadImage("has several frames; store the one that is meant as a file of its own")
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _require_size(width: int, height: int) -> None:
    """BadImage for a width and height beyond the limits."""
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise BadImage(
            f"claims {width} x {height} pixels; at most {MAX_PIXELS} in all and "
            f"{MAX_SIDE} a side are accepted"
        )


def _to_plain(image: Image) -> Image:
    """The image as grey, RGB, or 16-bit grey as real numbers in [0, 255]."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray(np.asarray(image).astype(np.float32) / 257)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image)
    if image.mode not in ("1", "L", "P", "RGB", "CMYK", "YCbCr"):
        raise BadImage(f"has pixels of mode {image.mode}, whose black and white are not known")
    return image


def _open_array(data: bytes) -> Image:
    """The image of a file of NumPy, whose shape and size are checked before any allocation."""
    from PIL import Image

    start = 10 if data[6:7] == b"\x01" else 12
    end = start + int.from_bytes(data[8:start], "little")
    if end > min(len(data), 1024):
        raise BadImage("is damaged: its header is longer than an image's")
    header: Any = ast.literal_eval(data[start:end].decode("latin1").strip())
    shape = header["shape"]
    if header["descr"] != "|u1" or header["fortran_order"] or len(shape) not in (2, 3):
        raise BadImage(
            f"has {header['descr']} {shape}, not uint8 of shape (H, W) or (H, W, 1 or 3)"
        )
    _require_size(shape[1], shape[0])
    values = np.frombuffer(data, np.uint8, offset=end).reshape(shape)
    if values.ndim == 3 and values.shape[2] not in (1, 3):
        raise BadImage(f"has {values.shape[2]} channels; 1 or 3 are accepted")
    return Image.fromarray(values[..., 0] if values.shape[2:] == (1,) else values)
