"""Images and what is said about them, as a data set that steps over damaged ones.

    data = Images(Folder("photos"), Frame(size=64), flip=True)
    data[0]                                             # {"x": (3, 64, 64), "class_labels": ()}

Where the files are is a `Files`: `Folder` here, tar shards in `tars`, Arrow tables in
`huggingface`. A damaged image is replaced by the next good one, whose label goes with it, so that
sample i remains a function of i; one warning says so, and `bad` has the reasons. With `flip` the
mirror images follow: item n + i is item i mirrored [Karras+ 2022, "x-flips"].
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from twosides.data.decode import MAX_BYTES, SUFFIXES, BadImage, Frame
from twosides.storage.reading import CorruptFolder, read_file

MAX_CAPTION = 1 << 16


class File(NamedTuple):
    """An image as it is stored, and what is said about it."""

    name: str
    data: bytes
    label: int | None = None
    caption: str | None = None


@runtime_checkable
class Files(Protocol):
    """Where images come from: `files[i]` for i in 0 ... len(files) - 1.

    `classes` names the labels 0, 1, ...; it is empty where there are none.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, index: int) -> File:
        """One image; `BadImage` where it must not be read."""
        ...


class Images(Dataset[dict[str, Any]]):
    """Images of `files` as tensors, and their classes: {"x": (C, H, W), "class_labels": ()}.

    ValueError once more than the part `max_bad` of all images have turned out damaged.
    """

    def __init__(
        self, files: Files, frame: Frame, *, flip: bool = False, max_bad: float = 0.1
    ) -> None:
        """`frame` says how images are cut; `flip` adds their mirror images."""
        if not 0 <= max_bad < 1:
            raise ValueError(f"max_bad is the part of images that may be bad, got {max_bad}")
        if len(files) == 0:
            raise ValueError("no images were found")
        self.files, self.frame, self.flip, self.max_bad = files, frame, flip, max_bad
        self.bad: dict[int, str] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels."""
        return self.files.classes

    def __len__(self) -> int:
        """Number of images, mirror images and damaged ones included."""
        return len(self.files) * (2 if self.flip else 1)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Image and class; those of the next good image if this one is damaged."""
        count = len(self.files)
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} was asked for, there are {len(self)}")
        for place in range(index % count, index % count + count):
            read = self.read(place % count)
            if read is not None:
                x, file = read
                labels = {} if file.label is None else {"class_labels": torch.tensor(file.label)}
                return {"x": x.flip(-1) if index >= count else x, **labels}
        raise ValueError(f"none of the {count} images is good{self._examples()}")

    def read(self, place: int) -> tuple[Tensor, File] | None:
        """Image `place` of the files, not mirrored, with what is said about it; None if bad."""
        if place in self.bad:
            return None
        name = f"image {place}"
        try:
            file = self.files[place]
            name = file.name
            return self.frame.read(file.data), file
        except BadImage as error:
            self._count(place, f"{name} {error}")
            return None

    def _count(self, place: int, reason: str) -> None:
        self.bad[place] = reason
        if len(self.bad) == len(self.files):
            raise ValueError(f"none of the {len(self.files)} images is good{self._examples()}")
        if len(self.bad) > self.max_bad * len(self.files):
            raise ValueError(
                f"more than {len(self.bad) - 1} of {len(self.files)} images are bad, and "
                f"max_bad={self.max_bad:g} of all may be{self._examples()}"
            )
        if len(self.bad) == 1:
            warnings.warn(
                f"{reason}; it and other bad images are replaced by the next good ones, without "
                "further warnings: `twosides data` lists them",
                stacklevel=4,
            )

    def _examples(self) -> str:
        return "".join(f"\n  {reason}" for reason in list(self.bad.values())[:5])


@dataclass(frozen=True, eq=False)
class Folder:
    """The images in a folder: those in its subfolders have the subfolder's name for their class.

    Order is that of the sorted paths. With `labels=False` folders mean nothing. The caption of
    a.png is the text in a.txt beside it.
    """

    path: Path
    labels: bool = True
    names: tuple[Path, ...] = field(init=False, repr=False)
    classes: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """List the files; ValueError if some are in class folders and others are not."""
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path} is not a folder of images")
        names = tuple(sorted(_image_names(self.path)))
        folders = {name.parts[0] if len(name.parts) > 1 else "" for name in names}
        if self.labels and "" in folders and len(folders) > 1:
            raise ValueError(
                f"{self.path} has images both directly and in folders ({max(folders)}, ...), so "
                "classes are not clear; move them, or say labels=false"
            )
        classes = tuple(sorted(folders - {""})) if self.labels else ()
        # Frozen: what is listed belongs to the path.
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "classes", classes)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def __getitem__(self, index: int) -> File:
        """One file."""
        name = self.names[index]
        label = self.classes.index(name.parts[0]) if self.classes else None
        data = read_capped(self.path / name, MAX_BYTES)
        beside = (self.path / name).with_suffix(".txt")
        caption = read_capped(beside, MAX_CAPTION) if beside.is_file() else None
        return File(
            str(name), data, label, None if caption is None else decoded(caption, beside.name)
        )


def _image_names(folder: Path) -> Iterator[Path]:
    """Paths of images below the folder; links to folders are not followed."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith(".") and path.is_file():
                yield path.relative_to(folder)


def read_capped(path: Path, most: int) -> bytes:
    """A regular file of at most so many bytes; `BadImage` if it is another."""
    try:
        return read_file(path, most)
    except CorruptFolder as error:
        raise BadImage(f"comes with a file that is refused: {path.name} {error.reason}") from error


def decoded(caption: bytes, name: str) -> str:
    """The text of a caption from the file `name`; `BadImage` if it is not UTF-8."""
    try:
        return caption.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise BadImage(f"comes with a caption, {name}, that is not UTF-8: {error}") from error
