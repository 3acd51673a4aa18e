"""The images in a folder, and the tables of their labels and captions.

    photos/metadata.jsonl       {"file_name": "a.png", "text": "a red fox", "label": "fox"}
    photos/metadata.csv         file_name,text,label

This is the layout of Hugging Face's imagefolder: names are relative to the table's own folder.
"text" or "caption" is an image's caption, "label" its class, a name or a number.
"""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from twosides.data.decode import SUFFIXES
from twosides.storage.reading import blame, read_file, unique

TABLES = ("metadata.jsonl", "metadata.csv")
MAX_TABLE = 1 << 28  # bytes, enough for a million captions
MAX_CAPTION = 1 << 16  # letters
MAX_CLASSES = 1_000_000
_CAPTIONS = ("text", "caption")


class Note(NamedTuple):
    """The label and the caption that a table gives to an image."""

    label: str | int | None = None
    caption: str | None = None


@dataclass
class Listing:
    """The images below a folder, its tables, and the other files, counted by kind."""

    images: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter[str])


def listing(folder: Path) -> Listing:
    """The files below a folder, by paths relative to it; links to folders and files are followed.

    Hidden files are left out. ValueError names a link to one of the folders that it is in.
    """
    found = Listing()
    _walk(folder, Path(), {}, found)
    found.images.sort()
    return found


def _walk(root: Path, here: Path, above: dict[tuple[int, int], Path], found: Listing) -> None:
    status = os.stat(root / here)
    place = (status.st_dev, status.st_ino)
    if place in above:
        raise ValueError(f"{root / here} is a link that leads back to {above[place]}; remove it")
    for name in sorted(os.listdir(root / here)):
        path = here / name
        if (root / path).is_dir():
            _walk(root, path, {**above, place: root / here}, found)
        elif name in TABLES:
            found.tables.append(path)
        elif path.suffix.lower() in SUFFIXES and not name.startswith("."):
            found.images.append(path)
        elif path.suffix.lower() != ".txt" and not name.startswith("."):
            found.others[path.suffix.lower() or "without a suffix"] += 1


def notes(root: Path, found: Listing) -> tuple[dict[Path, Note], list[str]]:
    """The notes of all tables, by image, and the names of columns that are not read.

    ValueError for a file that is no such table, and for one that names images that do not exist.
    """
    images, notes, columns = set(found.images), dict[Path, Note](), set[str]()
    for table in found.tables:
        with blame(root / table):
            for row in _rows(root / table):
                name = row.pop("file_name", None)
                if not isinstance(name, str):
                    raise ValueError(f"a row has no file_name: {row!r:.80}")
                image = Path(posixpath.normpath((table.parent / name).as_posix()))
                if image not in images:
                    raise ValueError(f"it names {name!r:.80}, which is no image below {root}")
                if image in notes:
                    raise ValueError(f"{name!r:.80} is there twice")
                notes[image] = _note(name, row)
                columns |= row.keys() - {"label", *_CAPTIONS}
    return notes, sorted(columns)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    text = read_file(path, MAX_TABLE).decode("utf-8-sig")
    if path.suffix == ".csv":
        for row in csv.DictReader(io.StringIO(text, newline=""), strict=True):
            if None in row or None in row.values():
                raise ValueError(f"a row has more or fewer fields than the head: {row!r:.80}")
            yield {key: value or None for key, value in row.items()}
        return
    for line in filter(str.strip, text.split("\n")):
        row = json.loads(line, object_pairs_hook=unique)
        if not isinstance(row, dict):
            raise ValueError(f"a line is no object: {line:.80}")
        yield row


def _note(name: str, row: dict[str, Any]) -> Note:
    captions = [row[key] for key in _CAPTIONS if row.get(key) is not None]
    if len(captions) > 1 or not all(isinstance(text, str) for text in captions):
        raise ValueError(f"{name!r:.80} needs one text for its caption, it has {captions!r:.80}")
    if captions and len(captions[0]) > MAX_CAPTION:
        raise ValueError(f"{name!r:.80} has a caption of {len(captions[0])} letters")
    label = row.get("label")
    if isinstance(label, str) and label.isdecimal() and len(label) < 10:
        label = int(label)  # a number of a CSV file
    if label is not None and not (
        isinstance(label, str) or (type(label) is int and 0 <= label < MAX_CLASSES)
    ):
        raise ValueError(f"{name!r:.80} has the label {label!r:.40}, neither a name nor a number")
    return Note(label, captions[0].strip() if captions else None)


def classes(labels: list[str | int | None]) -> tuple[str, ...]:
    """The names of the classes to which all images' labels refer; () if there are no labels.

    Numbers are their own names: there is a class for each up to the largest.
    """
    kinds = {type(label) for label in labels}
    if kinds <= {type(None)}:
        return ()
    if len(kinds) > 1:
        raise ValueError("some images have a name for a label, and others a number or none")
    if kinds == {int}:
        return tuple(map(str, range(max(label for label in labels if isinstance(label, int)) + 1)))
    return tuple(sorted({str(label) for label in labels}))
