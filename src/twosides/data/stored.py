"""Samples on disk as a data set that reads one sample at a time.

    .npy, .npz       one array, or one called x or arr_0 among others; bytes of pictures are scaled
    .safetensors     one tensor, or one called x among others
    .png, .jpg, ...  a square picture each, grey or RGB, in [-1, 1]

Samples are in such a file, or in a folder of such files, read in the order of their names. Nothing
is unpickled.
"""

from __future__ import annotations

import bisect
import io
import math
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as numpy_format
from torch import Tensor
from torch.utils.data import Dataset

from twosides.data.decode import FORMATS, MAX_BYTES, SUFFIXES, Frame
from twosides.data.images import read_capped
from twosides.storage.reading import open_file, require_file
from twosides.storage.tensors import open_tensors

ARRAYS = (".npy", ".npz", ".safetensors")


@dataclass(frozen=True)
class Rows:
    """The samples of one file.

    count: the number of samples.
    shape, dtype: those of each sample.
    read: reads the sample of a number.
    """

    count: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[int], Tensor]


class Stored(Dataset[dict[str, Tensor]]):
    """Samples of a file, or of a folder's files one after the other, as {"x": (...)}.

    `shape` is that of one sample. If a folder has files of arrays, its pictures are left out.
    """

    def __init__(self, path: str | Path) -> None:
        """FileNotFoundError or ValueError for a path without samples of one kind."""
        self.path = Path(path)
        self.files = _files(self.path)
        pictures = self.files[0].suffix.lower() not in ARRAYS
        # The first picture gives the shape, and the others are compared when they are read.
        first = self._rows(0)
        self.shape, self.dtype = first.shape, first.dtype
        counts = [1 if pictures else self._rows(n).count for n in range(len(self.files))]
        self.ends = list(accumulate(counts))
        self._last = (0, first)

    def _rows(self, number: int) -> Rows:
        """The samples of file `number`, which must have the shape and dtype of the first one's."""
        path = self.files[number]
        try:
            rows = _open(path)
        except Exception as error:  # damaged files make parsers raise errors of any kind
            raise ValueError(f"{path} cannot be read: {error}") from error
        if not rows.count:
            raise ValueError(f"{path} holds no samples: its shape is {(0, *rows.shape)}")
        if number and (rows.shape, rows.dtype) != (self.shape, self.dtype):
            raise ValueError(
                f"{path} holds {rows.dtype} of shape {rows.shape}, but {self.files[0].name} "
                f"{self.dtype} of {self.shape}; keep one kind in a folder"
            )
        return rows

    def in_memory(self) -> Tensor:
        """All samples, (N, ...): of a packed .npz file one alone is read as slowly as all."""
        return torch.cat([_whole(self._rows(number)) for number in range(len(self.files))])

    def __len__(self) -> int:
        """The number of samples."""
        return self.ends[-1]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One sample as a dictionary."""
        if not 0 <= index < len(self):
            raise IndexError(f"there is no sample {index}, {self.path} holds {len(self)}")
        number = bisect.bisect_right(self.ends, index)
        if self._last[0] != number:
            self._last = (number, self._rows(number))
        rows = self._last[1]
        try:
            return {"x": rows.read(index - self.ends[number] + rows.count)}
        except Exception as error:
            raise ValueError(f"{self.files[number]} cannot be read: {error}") from error


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix.lower() not in (*ARRAYS, *SUFFIXES):
            raise ValueError(f"{path}: samples are read from {', '.join(ARRAYS)} and pictures")
        return [path]
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    there = sorted(found for found in path.glob("*") if found.is_file())
    for suffixes in (ARRAYS, SUFFIXES):
        if files := [file for file in there if file.suffix.lower() in suffixes]:
            return files
    raise FileNotFoundError(f"{path} holds no samples and no model ({', '.join(ARRAYS)}, pictures)")


def _open(path: Path) -> Rows:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _npy_rows(path)
    if suffix == ".npz":
        return _npz_rows(path)
    return _tensor_rows(path) if suffix == ".safetensors" else _picture_rows(path)


def _choose_name(names: Sequence[str], *wanted: str) -> str:
    """The only name, or the first of the wanted ones that is among several."""
    for name in names if len(names) == 1 else wanted:
        if name in names:
            return name
    raise ValueError(f"which of {', '.join(names)} are the samples? Call them {wanted[0]}")


# ---------------------------------------------------------------------------- arrays


def _npy_rows(path: Path) -> Rows:
    def read_at(start: int, length: int) -> bytes:
        with open_file(path) as file:
            file.seek(start)
            return file.read(length)

    with open_file(path) as file:
        return _array_rows(file, path.stat().st_size, read_at)


def columns(path: Path, wanted: Sequence[str]) -> Tensor | None:
    """The first of the wanted arrays that lies beside the samples in a file; None if none does."""
    suffix = path.suffix.lower()
    if suffix == ".npz":
        names = _members(zipfile.ZipFile(require_file(path)))
    else:
        names = open_tensors(path).keys() if suffix == ".safetensors" else ()
    name = next((name for name in wanted if name in names), None)
    if name is None:
        return None
    return _whole((_npz_rows if suffix == ".npz" else _tensor_rows)(path, name))


def _whole(rows: Rows) -> Tensor:
    """All rows, read in their order."""
    x = torch.empty(rows.count, *rows.shape, dtype=rows.dtype)
    for number in range(rows.count):
        x[number] = rows.read(number)
    return x


def _members(archive: zipfile.ZipFile) -> dict[str, str]:
    """The names of the files of an archive by those of their arrays."""
    return {name.removesuffix(".npy"): name for name in archive.namelist()}


def _npz_rows(path: Path, wanted: str = "") -> Rows:
    archive = zipfile.ZipFile(require_file(path))
    named = _members(archive)
    name = named[wanted or _choose_name(list(named), "x", "arr_0")]
    file = archive.open(name)  # stays open, because a packed file is read from its start

    def read_at(start: int, length: int) -> bytes:
        file.seek(start)
        return file.read(length)

    return _array_rows(file, archive.getinfo(name).file_size, read_at)


def _array_rows(file: Any, size: int, read_at: Callable[[int, int], bytes]) -> Rows:
    """The rows of an array in NumPy's format.

    file: the file, at its header.
    size: the size of the file, in bytes.
    read_at: a function that reads the bytes at a place, of a length.
    """
    version = numpy_format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"NumPy's format {version} holds no plain numbers")
    old = version == (1, 0)
    read = numpy_format.read_array_header_1_0 if old else numpy_format.read_array_header_2_0
    sizes, fortran, dtype = read(file)
    shape, start = list[int](sizes), file.tell()
    if not shape:
        raise ValueError("it holds no samples: its shape is ()")
    if dtype.hasobject or (fortran and len(shape) > 1):
        reason = "objects, which are not unpickled" if dtype.hasobject else "columns, not rows"
        raise ValueError(f"it holds {reason}; save it again as an array of numbers, in C order")
    wide, own = dtype.itemsize * math.prod(shape[1:]), dtype.newbyteorder("=")
    if size - start != wide * shape[0]:
        raise ValueError(
            f"it has {size - start} bytes of numbers, which are not {sizes} {dtype} of its header"
        )
    tidy = _picture_of_bytes if dtype == np.uint8 else _identity
    example = tidy(torch.from_numpy(np.zeros(shape[1:] if shape[0] else 0, own)))

    def row(number: int) -> Tensor:
        values = np.frombuffer(read_at(start + number * wide, wide), dtype).reshape(shape[1:])
        return tidy(torch.from_numpy(values.astype(own)))

    return Rows(shape[0], tuple(example.shape), example.dtype, row)


def _identity(x: Tensor) -> Tensor:
    return x


def _picture_of_bytes(x: Tensor) -> Tensor:
    """Bytes (H, W, C) or (C, H, W) as a picture (C, H, W) in [-1, 1]; other bytes as they are."""
    if x.ndim != 3 or not {x.shape[0], x.shape[2]} & {1, 3}:
        return x
    x = x.permute(2, 0, 1) if x.shape[2] in (1, 3) else x
    return x.float() / 127.5 - 1


def _tensor_rows(path: Path, wanted: str = "") -> Rows:
    file: Any = open_tensors(path)
    rows = file.get_slice(wanted or _choose_name(list(file.keys()), "x"))
    shape = rows.get_shape()
    if not shape:
        raise ValueError("it holds no samples: its shape is ()")
    dtype = rows[:1].dtype if shape[0] else torch.float32
    return Rows(shape[0], tuple(shape[1:]), dtype, lambda number: rows[number : number + 1][0])


def _picture_rows(path: Path) -> Rows:
    from PIL import Image

    data = read_capped(path, MAX_BYTES)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        (width, height), grey = image.size, image.mode in ("1", "L", "LA", "I;16", "I", "F")
    if width != height:
        raise ValueError(f"it is {width} x {height} and not square; cut it to the data's size")
    x = Frame(width, grey).read(data)
    return Rows(1, tuple(x.shape), x.dtype, lambda number: x)
