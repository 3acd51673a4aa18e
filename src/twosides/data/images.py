"""Images with their classes and captions, as a data set that replaces damaged ones.

    data = Images(Folder("photos"), Frame(size=64), flip=True)
    data[0]                                             # {"x": (3, 64, 64), "class_labels": ()}

The images come from a `Files`: `Folder` here, tar shards in `tars`, Arrow tables in `huggingface`.
A damaged image is replaced by the next good one, whose label goes with it, so that sample i remains
a function of i; one warning says so, and `bad` has the reasons. With `flip` the mirror images
follow: item n + i is item i mirrored [Karras+ 2022, "x-flips"].
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from twosides.data import metadata
from twosides.data.decode import MAX_BYTES, SUFFIXES, BadImage, Frame
from twosides.data.metadata import MAX_CAPTION, Listing, Note, listing
from twosides.storage.reading import CorruptFolder, read_file


class File(NamedTuple):
    """An image as it is stored, with its name, class and caption."""

    name: str
    data: bytes
    label: int | None = None
    caption: str | None = None


@runtime_checkable
class Files(Protocol):
    """A source of images: `files[i]` for i in 0 ... len(files) - 1.

    `classes` names the labels 0, 1, ...; it is empty where there are none.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels."""
        ...

    def __len__(self) -> int:
        """The number of images."""
        ...

    def __getitem__(self, index: int) -> File:
        """One image; `BadImage` where it must not be read."""
        ...


class Images(Dataset[dict[str, Any]]):
    """The images of `files` as tensors, and their classes: {"x": (C, H, W), "class_labels": ()}.

    A ValueError ends reading once more than a share of `max_bad` of all images are damaged.
    """

    def __init__(
        self, files: Files, frame: Frame, *, flip: bool = False, max_bad: float = 0.1
    ) -> None:
        """Prepare to read.

        files: the source of the images.
        frame: the form in which they are read.
        flip: whether to add their mirror images.
        max_bad: the share of images that may be damaged, in [0, 1).
        """
        if not 0 <= max_bad < 1:
            raise ValueError(f"max_bad is the share of images that may be bad, got {max_bad}")
        if len(files) == 0:
            raise ValueError("no images were found")
        self.files, self.frame, self.flip, self.max_bad = files, frame, flip, max_bad
        self.bad: dict[int, str] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the labels."""
        return self.files.classes

    def __len__(self) -> int:
        """The number of images, mirror images and damaged ones included."""
        return len(self.files) * (2 if self.flip else 1)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The image and its class; those of the next good image if this one is damaged."""
        count = len(self.files)
        if not 0 <= index < len(self):
            raise IndexError(f"there is no image {index}, the data have {len(self)}")
        for place in range(index % count, index % count + count):
            read = self.read(place % count)
            if read is not None:
                x, file = read
                labels = {} if file.label is None else {"class_labels": torch.tensor(file.label)}
                return {"x": x.flip(-1) if index >= count else x, **labels}
        raise ValueError(f"none of the {count} images is good{self._examples()}")

    def read(self, place: int) -> tuple[Tensor, File] | None:
        """An image of the files, not mirrored, and its file; None if it is bad.

        place: the number of the image.
        """
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
                f"more than {len(self.bad) - 1} of {len(self.files)} images are bad, and a share "
                f"of max_bad={self.max_bad:g} may be{self._examples()}"
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
    """The images in a folder, in the order of their sorted paths; links are followed.

    The caption of a.png is the text in a.txt beside it, or that of metadata.jsonl or metadata.csv,
    whose labels take the place of the subfolders (see `metadata`).

    path: the folder.
    labels: whether images have classes, the names of the subfolders.
    """

    path: Path
    labels: bool = True
    names: tuple[Path, ...] = field(init=False, repr=False)
    classes: tuple[str, ...] = field(init=False, repr=False)
    notes: dict[Path, Note] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """List the files; ValueError if some are in class folders and others are not."""
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path} is not a folder of images")
        found = listing(self.path)
        notes, columns = metadata.notes(self.path, found)
        # The dataclass is frozen, because the list follows from the path.
        object.__setattr__(self, "names", tuple(found.images))
        object.__setattr__(self, "notes", notes)
        object.__setattr__(self, "classes", self._classes() if self.labels else ())
        self._warn_of_others(found, columns)
        if not found.images:
            raise ValueError(f"no images were found in {self.path}")

    def _classes(self) -> tuple[str, ...]:
        labels = [self.notes.get(name, Note()).label for name in self.names]
        try:
            named = metadata.classes(labels)
        except ValueError as error:
            raise ValueError(f"the tables in {self.path} do not fit: {error}") from None
        folders = {name.parts[0] if len(name.parts) > 1 else "" for name in self.names}
        if not named and "" in folders and len(folders) > 1:
            raise ValueError(
                f"{self.path} has images both directly and in folders ({max(folders)}, ...), so "
                "classes are not clear; move them, or say labels=false"
            )
        return named or tuple(sorted(folders - {""}))

    def _warn_of_others(self, found: Listing, columns: list[str]) -> None:
        """Warn, in one sentence, of all files and columns that are neither read nor refused."""
        parts = [f"{count} files {kind}" for kind, count in found.others.most_common(10)]
        parts += [f"the columns {', '.join(columns)} of its tables"] if columns else []
        if parts:
            kinds = f"{', '.join(SUFFIXES)} and .txt"
            warnings.warn(
                f"{self.path}: left out are {'; '.join(parts)} (images are {kinds})", stacklevel=4
            )

    def __len__(self) -> int:
        """The number of images."""
        return len(self.names)

    def __getitem__(self, index: int) -> File:
        """The file of one image; `BadImage` where it must not be read."""
        name = self.names[index]
        note = self.notes.get(name, Note())
        data = read_capped(self.path / name, MAX_BYTES)
        beside, caption = (self.path / name).with_suffix(".txt"), note.caption
        if beside.exists():
            if caption is not None:
                raise BadImage(f"has two captions, in {beside.name} and in a table; remove one")
            caption = decode_caption(read_capped(beside, MAX_CAPTION), beside.name)
        return File(str(name), data, self._label(name, note), caption)

    def _label(self, name: Path, note: Note) -> int | None:
        if not self.classes:
            return None
        label = name.parts[0] if note.label is None else note.label
        return label if isinstance(label, int) else self.classes.index(label)


def read_capped(path: Path, most: int) -> bytes:
    """The bytes of a regular file of at most so many bytes; `BadImage` if it is another."""
    try:
        return read_file(path, most)
    except FileNotFoundError as error:
        raise BadImage(f"is {path.name}, a link to nothing") from error
    except CorruptFolder as error:
        raise BadImage(f"comes with a file that is refused: {path.name} {error.reason}") from error


def decode_caption(caption: bytes, name: str) -> str:
    """The text of a caption from the file `name`; `BadImage` if it is not UTF-8."""
    try:
        return caption.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise BadImage(f"comes with a caption, {name}, that is not UTF-8: {error}") from error
