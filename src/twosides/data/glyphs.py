"""The letters A-Z in the text fonts that come with matplotlib, as small grey images.

Image i of a split is a function of `(size, seed, split, i)` alone. Six uniform numbers choose its
font, weight, cap height, angle and place; its letter is `i % 26`, so that any first part is
balanced:

    stamp    the letter, large, in one of 22 faces, its ink widened by 1 to 3 % of an em per side
    image    p = centre + shift + scale R(angle) q        q in the stamp, p in the frame

The scale gives the letter the cap height that was drawn, or less where its rotated ink (the W of a
wide face, the tail of a Q) would otherwise leave the frame. A band of size/16 along the border
stays black, to within 3 % of white.

Fonts are split, not images: no face of the training split occurs in the validation split.
"""

import functools
import io
import math
import os
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from twosides.storage.files import write_file
from twosides.storage.reading import open_file

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

T = TypeVar("T")
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FONTS = {
    "train": (
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-BoldOblique",
        "DejaVuSans-Oblique",
        "DejaVuSansMono",
        "DejaVuSansMono-Bold",
        "DejaVuSansMono-BoldOblique",
        "DejaVuSerif-Bold",
        "DejaVuSerif-BoldItalic",
        "DejaVuSerif-Italic",
        "STIXGeneral",
        "STIXGeneralBolIta",
        "STIXGeneralItalic",
        "cmb10",
        "cmmi10",
        "cmr10",
        "cmti10",
        "cmtt10",
    ),
    "validation": ("DejaVuSansMono-Oblique", "DejaVuSerif", "STIXGeneralBol", "cmss10"),
}

EM = 128  # the pixels per em of a stamp, which an image of 32 pixels reduces about four times
WEIGHTS = (1, 2, 3, 4)  # the pixels added around the ink; with 0, thin lines would become grey
CAP = (0.62, 0.85)  # the range of cap heights, as a part of the frame
ANGLE = math.radians(10)  # the largest angle
SHIFT = 1 / 16  # the largest shift in each direction, as a part of the frame
BORDER = 1 / 16  # the width of the black band, as a part of the frame
FINE = 4  # the letter is placed on a grid this much finer than the image, then averaged
VERSION = 1  # the version of the images and of their file, which is part of the file's name


def fonts(split: str) -> tuple[str, ...]:
    """The names of the font files from which the letters of a split are drawn.

    split: "train" or "validation".

    >>> fonts("validation")
    ('DejaVuSansMono-Oblique', 'DejaVuSerif', 'STIXGeneralBol', 'cmss10')
    """
    if split not in FONTS:
        raise ValueError(
            f"letters have no split {split!r}; the splits are {', '.join(map(repr, FONTS))}."
        )
    return FONTS[split]


@dataclass(frozen=True, eq=False)
class Glyphs(Dataset[dict[str, Tensor]]):
    """The letters A-Z, white on black, as a data set of images and their classes.

        x (count, 1, size, size) float32 in [-1, 1],    labels (count,) int64,  labels[i] = i % 26

    Drawing takes about a third of a millisecond per image and needs matplotlib, for its fonts, and
    Pillow: `pip install 'twosides[train]'`.

    size: the pixels a side, >= 8.
    count: the number of images.
    split: "train" or "validation", which have different fonts.
    seed: the seed of the drawing.
    cache: the folder that keeps the images for the next time; by default $TWOSIDES_CACHE, or
        ~/.cache/twosides.

    >>> letters = Glyphs(count=52)
    >>> letters.x.shape, letters.classes[letters[27]["class_labels"]]
    (torch.Size([52, 1, 16, 16]), 'B')
    """

    size: int = 16
    count: int = 20000
    _: KW_ONLY
    split: str = "train"
    seed: int = 0
    cache: str | os.PathLike[str] | None = None
    x: Tensor = field(init=False, repr=False)
    labels: Tensor = field(init=False, repr=False)

    classes: ClassVar[str] = LETTERS
    num_classes: ClassVar[int] = len(LETTERS)

    def __post_init__(self) -> None:
        """Draw the images, or read them from the cache."""
        fonts(self.split)
        require_at_least("Glyphs", size=(self.size, 8), count=(self.count, 1), seed=(self.seed, 0))
        name = f"glyphs-v{VERSION}-{self.split}-{self.size}px-{self.count}-seed{self.seed}.npz"
        images = read_or_make(cache_folder(self.cache) / name, self._read, _pack, self._draw)
        # The dataclass is frozen, because the pixels follow from the arguments.
        object.__setattr__(self, "x", torch.from_numpy(images)[:, None].float() / 127.5 - 1)
        object.__setattr__(self, "labels", torch.arange(self.count) % self.num_classes)

    def __len__(self) -> int:
        """The number of images."""
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Image `x` (1, size, size) and its class `class_labels` (), 0 for A to 25 for Z."""
        return {"x": self.x[index], "class_labels": self.labels[index]}

    def _draw(self) -> Bytes:
        names = fonts(self.split)
        stamp = functools.cache(_stamp)
        images = np.empty((self.count, self.size, self.size), np.uint8)
        for i in range(self.count):
            key = [self.seed, list(FONTS).index(self.split), i]
            u = np.random.default_rng(np.random.SeedSequence(key)).random(6)
            name, weight = names[int(u[0] * len(names))], WEIGHTS[int(u[1] * len(WEIGHTS))]
            images[i] = _place(stamp(name, LETTERS[i % len(LETTERS)], weight), u[2:], self.size)
        return images

    def _read(self, path: Path) -> Bytes:
        expected = (self.count, self.size, self.size)
        with open_file(path) as stream:
            claimed = sum(entry.file_size for entry in zipfile.ZipFile(stream).infolist())
            if claimed > math.prod(expected) + 1024:
                raise ValueError(f"claims {claimed} bytes for uint8 {expected}")
            stream.seek(0)
            images = np.load(stream, allow_pickle=False)["images"]
        if images.shape != expected or images.dtype != np.uint8:
            raise ValueError(f"holds {images.dtype} {images.shape}, not uint8 {expected}")
        return images


class _Stamp(NamedTuple):
    """A letter drawn large.

    image: the letter.
    ink: the edge of its ink (n, 2), relative to its centre.
    cap: the cap height.
    """

    image: "Image"
    ink: Floats
    cap: float


def _font(name: str) -> "FreeTypeFont":
    """A font of matplotlib, opened at EM pixels per em."""
    try:
        import matplotlib
        from PIL import ImageFont
    except ImportError as error:
        raise ImportError(
            f"Glyphs draws letters, which needs Pillow and the fonts of matplotlib, but: {error}; "
            "pip install 'twosides[train]'."
        ) from error
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    if not path.is_file():
        raise FileNotFoundError(
            f"Glyphs draws letters with the fonts of matplotlib, but this one has no {path}; "
            "install one that has its fonts: pip install --force-reinstall matplotlib."
        )
    return ImageFont.truetype(str(path), EM, layout_engine=ImageFont.Layout.BASIC)


def _stamp(name: str, letter: str, weight: int) -> _Stamp:
    font = _font(name)
    from PIL import Image, ImageDraw

    image = Image.new("L", (2 * EM, 2 * EM))
    ImageDraw.Draw(image).text((EM, EM), letter, 255, font, anchor="mm", stroke_width=weight)
    cap = -font.getbbox("H", anchor="ls")[1]
    return _Stamp(image, _edge(np.asarray(image)) - EM, cap)


def _edge(image: Bytes) -> Floats:
    """The corners (n, 2), as x and y, of the first and the last inked pixel of every row."""
    ink = image > 0
    rows = np.flatnonzero(ink.any(1))
    first, last = ink[rows].argmax(1), ink.shape[1] - ink[rows, ::-1].argmax(1)
    x, y = np.concatenate([first, last] * 2), np.concatenate([rows, rows, rows + 1, rows + 1])
    return np.stack([x, y], 1).astype(np.float64)


def _place(stamp: _Stamp, u: Floats, size: int) -> Bytes:
    """The image (size, size) of a stamp, with height, angle and place by `u` (4,) in [0, 1)."""
    from PIL.Image import Resampling, Transform

    frame = FINE * size
    angle = ANGLE * (2 * u[1] - 1)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turned = stamp.ink @ turn.T
    low, high = turned.min(0), turned.max(0)
    room = frame * (1 - 2 * BORDER)
    height = frame * (CAP[0] + (CAP[1] - CAP[0]) * u[0])
    scale = min(height / stamp.cap, room / (high - low).max())
    shift = np.minimum((room - scale * (high - low)) / 2, SHIFT * frame) * (2 * u[2:] - 1)
    centre = frame / 2 + shift - scale * (low + high) / 2
    # Pillow takes the map from the frame to the stamp: q = R^T (p - centre) / scale + middle.
    back = turn.T / scale
    matrix = np.column_stack([back, EM - back @ centre]).ravel().tolist()
    fine = stamp.image.transform((frame, frame), Transform.AFFINE, matrix, Resampling.BILINEAR)
    return np.asarray(fine.reduce(FINE))


def _pack(images: Bytes) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, images=images)
    return file.getvalue()


def require_at_least(asker: str, **bounds: tuple[int, int]) -> None:
    """ValueError if one of the named `(value, bound)` is not an integer >= its bound."""
    for name, (value, bound) in bounds.items():
        if not isinstance(value, int) or value < bound:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"{name} of {asker} is an integer >= {bound}, got {value!r}.")


def cache_folder(cache: str | os.PathLike[str] | None = None) -> Path:
    """The folder of files that can be made again: `cache`, $TWOSIDES_CACHE or ~/.cache/twosides."""
    return Path(cache or os.environ.get("TWOSIDES_CACHE") or "~/.cache/twosides").expanduser()


def read_or_make(
    path: Path,
    read: Callable[[Path], T],
    pack: Callable[[T], bytes],
    make: Callable[[], T],
) -> T:
    """The content of a file; if it is missing or damaged, it is made and stored.

    path: the file.
    read: reads the file, and raises an error if it is damaged.
    pack: makes the bytes to store.
    make: makes the content.
    """
    try:
        return read(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except Exception as error:  # a damaged file makes its parser raise nearly anything
        warnings.warn(f"{path} cannot be read ({error}) and is made again.", stacklevel=3)
    made = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, pack(made))
    except OSError as error:
        hint = "set TWOSIDES_CACHE or pass cache= a folder that can be written"
        warnings.warn(f"{path} cannot be stored ({error}); {hint}.", stacklevel=3)
    return made
