"""Images and what is said about them, as a data set that steps over damaged ones.

    data = Images(Folder("photos"), Frame(size=64), flip=True)
    data[0]                                             # {"x": (3, 64, 64), "class_labels": ()}

Where the files are is a `Files`: `Folder` here, tar shards in `tars`, Arrow tables in
`huggingface`. A damaged image is replaced by the next good one, whose label goes with it, so that
sample i remains a function of i; one warning says so, and `bad` has the reasons. With `flip` the
mirror images follow: item n + i is item i mirrored [Karras+ 2022, "x-flips"].
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

    Order is that of the sorted paths; links are followed. With `labels=False` there are no classes.
    The caption of a.png is the text in a.txt beside it, or what metadata.jsonl or metadata.csv say,
    whose labels take the place of the subfolders (see `metadata`).
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
        # Frozen: what is listed belongs to the path.
        object.__setattr__(self, "names", tuple(found.images))
        object.__setattr__(self, "notes", notes)
        object.__setattr__(self, "classes", self._classes() if self.labels else ())
        self._tell_left_out(found, columns)
        if not found.images:
            raise ValueError(f"no images were found in {self.path}")

    def _classes(self) -> tuple[str, ...]:
        said = [self.notes.get(name, Note()).label for name in self.names]
        try:
            named = metadata.classes(said)
        except ValueError as error:
            raise ValueError(f"the tables in {self.path} do not fit: {error}") from None
        folders = {name.parts[0] if len(name.parts) > 1 else "" for name in self.names}
        if not named and "" in folders and len(folders) > 1:
            raise ValueError(
                f"{self.path} has images both directly and in folders ({max(folders)}, ...), so "
                "classes are not clear; move them, or say labels=false"
            )
        return named or tuple(sorted(folders - {""}))

    def _tell_left_out(self, found: Listing, columns: list[str]) -> None:
        """One sentence for all that is neither read nor refused."""
        parts = [f"{count} files {kind}" for kind, count in found.others.most_common(10)]
        parts += [f"the columns {', '.join(columns)} of its tables"] if columns else []
        if parts:
            kinds = f"{', '.join(SUFFIXES)} and .txt"
            warnings.warn(
                f"{self.path}: left out are {'; '.join(parts)} (images are {kinds})", stacklevel=4
            )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def __getitem__(self, index: int) -> File:
        """One file."""
        name = self.names[index]
        note = self.notes.get(name, Note())
        data = read_capped(self.path / name, MAX_BYTES)
        beside, caption = (self.path / name).with_suffix(".txt"), note.caption
        if beside.exists():
            if caption is not None:
                raise BadImage(f"has two captions, in {beside.name} and in a table; remove one")
            caption = decoded(read_capped(beside, MAX_CAPTION), beside.name)
        return File(str(name), data, self._label(name, note), caption)

    def _label(self, name: Path, note: Note) -> int | None:
        if not self.classes:
            return None
        label = name.parts[0] if note.label is None else note.label
        return label if isinstance(label, int) else self.classes.index(label)


def read_capped(path: Path, most: int) -> bytes:
    """A regular file of at most so many bytes; `BadImage` if it is another."""
    try:
        return read_file(path, most)
    except FileNotFoundError as error:
        raise BadImage(f"is {path.name}, a link to nothing") from error
    except CorruptFolder as error:
        raise BadImage(f"comes with a file that is refused: {path.name} {error.reason}") from error


def decoded(caption: bytes, name: str) -> str:
    """The text of a caption from the file `name`; `BadImage` if it is not UTF-8."""
    try:
        return caption.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise BadImage(f"comes with a caption, {name}, that is not UTF-8: {error}") from error
