"""Images in Hugging Face datasets: tables on disk by number, and streams.

    data = Images(Rows("path/to/saved", image="image", label="label"), Frame(size=64))
    stream = Stream("path/to/parquets", Frame(size=64), seed=0)
    next(stream.items(1000))                            # sample 1000 of an endless stream

A dataset is a folder that `save_to_disk` wrote, a folder of .parquet or .arrow files, or a name on
the hub. For a name, `datasets` (4 or newer) downloads tables and never runs code. Images are
decoded here, with the limits of `decode`, not by `datasets`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twosides.data.decode import MAX_BYTES, BadImage, Frame
from twosides.data.glyphs import cache_folder
from twosides.data.images import MAX_CAPTION, File, read_capped
from twosides.naming import unknown
from twosides.storage.reading import require_folder

BUFFER = 1000  # the number of samples among which a stream is shuffled


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a table as `Files`.

    path: the folder or name of the dataset.
    columns: the columns of image, class and caption.
    """

    path: str
    columns: Columns
    table: Any = field(init=False, repr=False)
    classes: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Open the table."""
        table = open_table(self.path, self.columns.split, streaming=False)
        table, classes = self.columns.of(table)
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "classes", classes)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.table)

    def __getitem__(self, index: int) -> File:
        """The file of one row."""
        return self.columns.file(self.table[index], Path(self.path), f"row {index}")


@dataclass(frozen=True)
class Columns:
    """The columns that have image, class and caption, and the split to read.

    image: the column of the images.
    label: the column of the classes, "" for none; by default "label" if there is one.
    text: the column of the captions, "" for none.
    split: the split of the dataset.

    A column that is named here and missing in the table is a ValueError.
    """

    image: str = "image"
    label: str = "auto"
    text: str = ""
    split: str = "train"

    def of(self, table: Any) -> tuple[Any, tuple[str, ...]]:
        """The table with these columns and its images as stored, and the names of the classes."""
        import datasets

        known = table.features or {}
        if self.image not in known:
            raise unknown("column", self.image, known)
        if not isinstance(known[self.image], datasets.Image):
            raise ValueError(
                f"the column {self.image!r} has {type(known[self.image]).__name__}, not images"
            )
        label = self.label if self.label != "auto" else "label" * ("label" in known)
        for name in (label, self.text):
            if name and name not in known:
                raise unknown("column", name, known)
        table = table.select_columns([name for name in (self.image, label, self.text) if name])
        table = table.cast_column(self.image, datasets.Image(decode=False))
        names = known[label].names if label and hasattr(known[label], "names") else ()
        if label and not names:
            raise ValueError(
                f"the column {label!r} has no names of classes (ClassLabel); say label= for none, "
                "or store it with datasets' class_encode_column"
            )
        return table, tuple(names)

    def file(self, row: dict[str, Any], folder: Path, name: str) -> File:
        """The file of one row; `BadImage` where its image is outside of the folder, or missing."""
        image, label = row[self.image], row.get("label" if self.label == "auto" else self.label)
        caption = row.get(self.text) if self.text else None
        if image is None or (label is not None and label < 0):
            raise BadImage("has no image or no class")
        if caption is not None and len(caption) > MAX_CAPTION:
            raise BadImage(f"has a caption of {len(caption)} letters")
        return File(name, image["bytes"] or _outside(image["path"], folder), label, caption)


def _outside(name: str | None, folder: Path) -> bytes:
    """The bytes of a file that a table only names, if the file is in the table's folder."""
    path, root = Path(name or ""), folder.resolve()
    if not name or "://" in name or not (root / path).resolve().is_relative_to(root):
        raise BadImage(f"names {name!r}, which is not in {folder}; only files in it are read")
    return read_capped(root / path, MAX_BYTES)


def open_table(path: str, split: str, *, streaming: bool) -> Any:
    """A table on disk, or one on the hub; nothing in it is run or unpickled.

    path: a folder, a file, or a name "owner/name" on the hub.
    split: the split to read.
    streaming: whether to open it as a stream.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "hf: needs Hugging Face's datasets: pip install 'twosides[data]'"
        ) from error
    folder = Path(path)
    if not folder.exists():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
            raise FileNotFoundError(f"{path} is neither a folder nor a name on the hub, owner/name")
        return datasets.load_dataset(path, split=split, streaming=streaming)
    require_folder(folder)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _choose_split(datasets.load_from_disk(str(folder)), split, streaming)
    for kind in ("parquet", "arrow"):
        files = sorted(map(str, [folder] if folder.is_file() else folder.rglob(f"*.{kind}")))
        if files and files[0].endswith(f".{kind}"):
            cache = str(cache_folder() / "datasets")
            return datasets.load_dataset(
                kind, data_files=files, split="train", streaming=streaming, cache_dir=cache
            )
    raise ValueError(
        f"{folder} is no dataset of save_to_disk and has no .parquet or .arrow files; for images "
        "in a folder say folder:, for tar files tar:"
    )


def _choose_split(table: Any, split: str, streaming: bool) -> Any:
    """The split of a dataset that `save_to_disk` wrote."""
    if hasattr(table, "keys"):
        if split not in table:
            raise unknown("split", split, table)
        table = table[split]
    return table.to_iterable_dataset(num_shards=min(len(table), 64)) if streaming else table


@dataclass(frozen=True, eq=False)
class Stream:
    """An endless stream of samples, each epoch shuffled by (seed, epoch): `items(start)`.

    Sample n is row n of the shuffled epochs one after another, or the next good row where that one
    is damaged. Rows are shuffled among BUFFER neighbours, and the files of the table among
    themselves.

    path: the folder or name of the dataset.
    frame: the form in which images are read.
    columns: the columns of image and class.
    seed: the seed of the order.
    flip: whether to mirror half of the samples; which ones depends on (seed, n).
    max_bad: the share of samples that may be damaged, in [0, 1).
    """

    path: str
    frame: Frame
    columns: Columns
    _: KW_ONLY
    seed: int = 0
    flip: bool = False
    max_bad: float = 0.1
    bad: list[str] = field(init=False, repr=False, default_factory=list)
    table: Any = field(init=False, repr=False)
    classes: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Open the stream; only its columns are read."""
        table, classes = self.columns.of(open_table(self.path, self.columns.split, streaming=True))
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "classes", classes)

    def items(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """The samples start, start + 1, ...: {"x": (C, H, W), "class_labels": ()}.

        Before the first sample, the rows of its epoch that precede it are read, but not decoded.
        """
        first = number = start
        bad = 0
        for row in self._rows(start):
            first += 1
            sample = self._sample(row, number)
            if sample is None:
                bad += 1
                if first - start >= 100 and bad > self.max_bad * (first - start):
                    raise ValueError(
                        f"{bad} of {first - start} samples are bad, and a share of "
                        f"max_bad={self.max_bad:g} may be: {'; '.join(self.bad[:5])}"
                    )
                continue
            while number < first:  # damaged rows before this one are replaced by it
                yield self._flip_half(sample, number)
                number += 1

    def _rows(self, start: int) -> Iterator[dict[str, Any]]:
        epoch, skipped = 0, start
        while True:
            count = 0
            for row in self._epoch(epoch).skip(skipped):
                count += 1
                yield row
            if count:
                epoch, skipped = epoch + 1, 0
            elif length := sum(1 for _ in self.table):  # `start` lies in a later epoch
                epoch, skipped = epoch + skipped // length, skipped % length
            else:
                raise ValueError(f"{self.path} has no rows")

    def _epoch(self, epoch: int) -> Any:
        key = np.random.SeedSequence([self.seed, epoch]).generate_state(1)
        return self.table.shuffle(seed=int(key[0]), buffer_size=BUFFER)

    def _sample(self, row: dict[str, Any], number: int) -> dict[str, Any] | None:
        try:
            file = self.columns.file(row, Path(self.path), f"sample {number}")
            x = self.frame.read(file.data)
        except BadImage as error:
            self._tell(f"sample {number} of {self.path} {error}")
            return None
        return {"x": x} | ({} if file.label is None else {"class_labels": torch.tensor(file.label)})

    def _flip_half(self, sample: dict[str, Any], number: int) -> dict[str, Any]:
        if not self.flip or np.random.default_rng([self.seed, number]).random() < 0.5:
            return sample
        return {**sample, "x": sample["x"].flip(-1)}

    def _tell(self, reason: str) -> None:
        if not self.bad:
            warnings.warn(
                f"{reason}; it and other bad ones are replaced by the next good ones, without "
                "further warnings",
                stacklevel=3,
            )
        self.bad.append(reason)
