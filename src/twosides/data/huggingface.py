"""Images in Hugging Face datasets: tables on the disk by number, streams from a number on.

    data = Images(Rows("path/to/saved", image="image", label="label"), Frame(size=64))
    stream = Stream("path/to/parquets", Frame(size=64), seed=0)
    next(stream.items(1000))                            # sample 1000 of an endless stream

Read are what `save_to_disk` wrote, folders of .parquet or .arrow files, and names of the hub. Of a
name, `datasets` (4 or newer) downloads tables and never runs code. Images are decoded here, with
the limits of `decode`, not by `datasets`.
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

BUFFER = 1000  # samples among which a stream is shuffled


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a table as files of images; see `Columns` for the columns."""

    path: str
    columns: Columns
    table: Any = field(init=False, repr=False)
    classes: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Open the table."""
        table = opened(self.path, self.columns.split, streaming=False)
        table, classes = self.columns.of(table)
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "classes", classes)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.table)

    def __getitem__(self, index: int) -> File:
        """One row."""
        return self.columns.file(self.table[index], Path(self.path), f"row {index}")


@dataclass(frozen=True)
class Columns:
    """Which columns hold image, class and caption.

    `label` and `text` are left out where empty; a column that is asked for and missing is a
    ValueError. "label" and "text" of columns with these names are asked for by "auto".
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
                f"the column {self.image!r} holds {type(known[self.image]).__name__}, not images"
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
        """One row; `BadImage` where its image lies outside the folder, or nowhere."""
        image, label = row[self.image], row.get("label" if self.label == "auto" else self.label)
        caption = row.get(self.text) if self.text else None
        if image is None or (label is not None and label < 0):
            raise BadImage("has no image or no class")
        if caption is not None and len(caption) > MAX_CAPTION:
            raise BadImage(f"has a caption of {len(caption)} letters")
        return File(name, image["bytes"] or _outside(image["path"], folder), label, caption)


def _outside(name: str | None, folder: Path) -> bytes:
    """The file that a table only names, if it lies beside the table."""
    path, root = Path(name or ""), folder.resolve()
    if not name or "://" in name or not (root / path).resolve().is_relative_to(root):
        raise BadImage(f"names {name!r}, which is not in {folder}; only files in there are read")
    return read_capped(root / path, MAX_BYTES)


def opened(path: str, split: str, *, streaming: bool) -> Any:
    """A table on the disk, or one of the hub; nothing in it is run or unpickled."""
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
        return _saved(datasets.load_from_disk(str(folder)), split, streaming)
    for kind in ("parquet", "arrow"):
        files = sorted(map(str, [folder] if folder.is_file() else folder.rglob(f"*.{kind}")))
        if files and files[0].endswith(f".{kind}"):
            cache = str(cache_folder() / "datasets")
            return datasets.load_dataset(
                kind, data_files=files, split="train", streaming=streaming, cache_dir=cache
            )
    raise ValueError(
        f"{folder} holds neither what save_to_disk writes nor .parquet or .arrow files; for images "
        "in a folder say folder:, for tar files tar:"
    )


def _saved(table: Any, split: str, streaming: bool) -> Any:
    if hasattr(table, "keys"):
        if split not in table:
            raise unknown("split", split, table)
        table = table[split]
    return table.to_iterable_dataset(num_shards=min(len(table), 64)) if streaming else table


@dataclass(frozen=True, eq=False)
class Stream:
    """An endless stream of samples, each epoch shuffled by (seed, epoch): `items(start)`.

    Sample n is row n of the shuffled epochs one after another, or the next good row where that one
    is damaged. Rows are shuffled among BUFFER neighbours, and shards among themselves. `flip`
    mirrors half of the samples, by a coin that belongs to (seed, n).
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
        """Open the stream; nothing is read but what its columns are."""
        table, classes = self.columns.of(opened(self.path, self.columns.split, streaming=True))
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "classes", classes)

    def items(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """Samples start, start + 1, ...: {"x": (C, H, W), "class_labels": ()}.

        The first sample costs reading (not decoding) the rows of its epoch before it.
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
                        f"{bad} of {first - start} samples are bad, max_bad={self.max_bad:g} of "
                        f"them may be: {'; '.join(self.bad[:5])}"
                    )
                continue
            while number < first:  # damaged rows before this one are replaced by it
                yield self._flipped(sample, number)
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

    def _flipped(self, sample: dict[str, Any], number: int) -> dict[str, Any]:
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
