"""Samples in tar files (WebDataset's layout), by number, without extracting or unpickling.

    data = Images(Tars("shards/{000..009}.tar"), Frame(size=64))

Members with the same name up to the first dot are one sample: `dog/7.jpg`, `dog/7.cls` and
`dog/7.txt` are its image, its class (a number) and its caption; `dog/7.json` may have "label" and
"caption" instead. The headers are read once and give the place of every member, so that samples are
read in any order and a run resumes exactly.

Hidden files are left out. Nothing in a tar is trusted. A ValueError names shard and member for
links, devices, absolute names, "..", duplicates, sparse members, sizes that the file does not have,
members that are neither an image nor one of the above (WebDataset itself would unpickle some) and
shards that are cut short.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from twosides.data.decode import MAX_BYTES, BadImage
from twosides.data.images import MAX_CAPTION, File, decode_caption
from twosides.storage.reading import open_file

BLOCK = 512
IMAGES = ("png", "jpg", "jpeg", "webp", "npy")
TEXTS = ("cls", "txt", "json")
MAX_MEMBERS = 200_000  # the members of a shard, whose index then takes about 50 MB
MAX_NAME = 1 << 16  # the bytes of an extended header
MAX_CLASSES = 1_000_000
MAX_SHARDS = 100_000


class Member(NamedTuple):
    """A file in a tar: its name, and the place of its bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class Tars:
    """The samples of tar files, in the order of the files and then of the members.

    pattern: a path with `*` and braces: "{000..009}.tar", "{train,test}-*.tar".
    labels: whether samples have classes.
    ignore: extensions of members to leave out, such as ("seg.png", "id").
    """

    pattern: str
    labels: bool = True
    ignore: tuple[str, ...] = ()
    shards: tuple[Path, ...] = field(init=False, repr=False)
    samples: list[tuple[int, dict[str, Member]]] = field(init=False, repr=False)
    classes: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Read the headers of all shards."""
        shards, samples = expand(self.pattern), list[tuple[int, dict[str, Member]]]()
        for number, shard in enumerate(shards):
            found = _samples(shard, self.ignore)
            samples += [(number, members) for members in found.values()]
        if not samples:
            raise ValueError(f"{self.pattern} has no samples")
        object.__setattr__(self, "shards", shards)
        object.__setattr__(self, "samples", samples)
        object.__setattr__(self, "classes", self._classes() if self.labels else ())

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> File:
        """The file of one sample."""
        number, members = self.samples[index]
        with open_file(self.shards[number]) as shard:
            texts = {kind: _bytes(shard, members[kind]) for kind in TEXTS if kind in members}
            image = next(members[kind] for kind in IMAGES if kind in members)
            data = _bytes(shard, image)
        notes = _notes(texts.get("json"))
        name, caption = f"{self.shards[number].name}/{image.name}", notes.get("caption")
        if "txt" in texts:
            caption = decode_caption(texts["txt"], members["txt"].name)
        return File(name, data, _label(texts, notes) if self.classes else None, caption)

    def _classes(self) -> tuple[str, ...]:
        """A name for every number up to the largest label; none if no sample has a label."""
        labels = [self._label(index) for index in range(len(self.samples))]
        known = [label for label in labels if label is not None]
        if known and len(known) < len(labels):
            number, members = self.samples[labels.index(None)]
            name = next(iter(members.values())).name
            raise _refusal(self.shards[number], name, "has no class, others have one; labels=false")
        return tuple(str(label) for label in range(max(known) + 1)) if known else ()

    def _label(self, index: int) -> int | None:
        number, members = self.samples[index]
        kinds = [kind for kind in ("cls", "json") if kind in members]
        if not kinds:
            return None
        with open_file(self.shards[number]) as shard:
            texts = {kind: _bytes(shard, members[kind]) for kind in kinds}
        try:
            return _label(texts, _notes(texts.get("json")))
        except BadImage as error:
            raise _refusal(self.shards[number], members[kinds[0]].name, str(error)) from None


def expand(pattern: str) -> tuple[Path, ...]:
    """The files of a pattern, sorted within each alternative of its braces.

    FileNotFoundError names the alternative that no file matches.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_choices(part) if i % 2 else [part] for i, part in enumerate(parts)]
    found: list[Path] = []
    for words in itertools.islice(itertools.product(*choices), MAX_SHARDS):
        name = "".join(words)
        files = sorted(glob.glob(name, recursive=True))
        if not files:
            raise FileNotFoundError(f"there is no {name}, which {pattern} stands for")
        found += [Path(file) for file in files]
    return tuple(dict.fromkeys(found))


def _choices(braces: str) -> list[str]:
    """ "000..002" as 000, 001, 002, and "a,b" as a, b."""
    match = re.fullmatch(r"(\d+)\.\.(\d+)", braces)
    if match is None:
        return braces.split(",")
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + MAX_SHARDS:
        raise ValueError(f"{{{braces}}} counts from the first up to the last of {MAX_SHARDS}")
    return [f"{number:0{len(match[1])}d}" for number in range(first, last + 1)]


# ---------------------------------------------------------------------------- samples


def _samples(shard: Path, ignore: tuple[str, ...]) -> dict[str, dict[str, Member]]:
    """The members of a shard, by sample and extension."""
    found: dict[str, dict[str, Member]] = {}
    for member in members(shard):
        folder, _, name = member.name.rpartition("/")
        key, _, extension = name.partition(".")
        kind = extension.lower()
        if kind in ignore or name.startswith("."):  # macOS adds hidden files
            continue
        if kind not in IMAGES + TEXTS:
            raise _refusal(
                shard,
                member.name,
                f"is none of {', '.join(IMAGES + TEXTS)}, and nothing else is read; pickles never "
                f"are. To leave such members out, say ignore={kind}",
            )
        sample = found.setdefault(f"{folder}/{key}", {})
        if kind in sample:
            raise _refusal(shard, member.name, "is there twice")
        if member.size > (MAX_CAPTION if kind in TEXTS else MAX_BYTES):
            raise _refusal(shard, member.name, f"has {member.size} bytes, too many for a {kind}")
        sample[kind] = member
    for kinds in found.values():
        images = [kind for kind in kinds if kind in IMAGES]
        if len(images) != 1:
            name = next(iter(kinds.values())).name
            raise _refusal(shard, name, f"belongs to a sample with {len(images)} images, not one")
    return found


def _bytes(shard: BinaryIO, member: Member) -> bytes:
    shard.seek(member.offset)
    data = shard.read(member.size)
    if len(data) < member.size:
        raise OSError(f"{shard.name} has become shorter since its headers were read")
    return data


def _notes(data: bytes | None) -> dict[str, Any]:
    """The content of a sample's JSON; `BadImage` if it is no object, or its caption no text."""
    if data is None:
        return {}
    try:
        notes = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadImage(f"comes with JSON that cannot be read: {error}") from error
    if not isinstance(notes, dict) or not isinstance(notes.get("caption", ""), str):
        raise BadImage("comes with JSON that is not {..., 'label': a number, 'caption': a text}")
    return notes


def _label(texts: dict[str, bytes], notes: dict[str, Any]) -> int | None:
    label: Any = notes.get("label")
    if "cls" in texts:
        text = texts["cls"].strip()
        label = int(text) if text.isdigit() and len(text) < 10 else text
    if label is None or (type(label) is int and 0 <= label < MAX_CLASSES):
        return label
    raise BadImage(f"has the class {label!r:.40}; a number from 0 to {MAX_CLASSES - 1} is needed")


# ---------------------------------------------------------------------------- the format


def members(shard: Path) -> Iterator[Member]:
    """The regular files of an uncompressed tar, from its headers alone.

    ValueError for members that are not read, as described above.
    """
    size = os.path.getsize(shard)
    with open_file(shard) as file:
        count, offset, extended = 0, 0, dict[str, str]()
        while header := _header(file, shard, offset):
            count += 1
            if count > MAX_MEMBERS:
                raise _refusal(shard, "", f"has more than {MAX_MEMBERS} members; split it")
            name, length, kind = header
            name, length = extended.get("path", name), int(extended.get("size", length))
            start = offset + BLOCK
            if length > size - start:
                raise _refusal(shard, name, f"claims {length} bytes, beyond the end of the file")
            offset = start + -(-length // BLOCK) * BLOCK
            if kind in b"xgL":
                extended |= _extension(file, shard, kind, length)
                continue
            extended = {}
            _check(shard, name, kind)
            if kind in b"0\0":
                yield Member(name, start, length)


def _header(file: BinaryIO, shard: Path, offset: int) -> tuple[str, int, bytes] | None:
    """The name, the size and the kind of the member at `offset`; None at the end mark."""
    file.seek(offset)
    block = file.read(BLOCK)
    if len(block) == BLOCK and not any(block):
        return None
    try:
        total = 256 + sum(block[:148]) + sum(block[156:])  # the field of the sum counts as spaces
        if len(block) < BLOCK or _number(block[148:156]) != total:
            raise ValueError
        name, prefix = _text(block[:100]), _text(block[345:500])
        ustar = block[257:263] == b"ustar\0"
        name = f"{prefix}/{name}" if ustar and prefix else name
        return name, _number(block[124:136]), block[156:157]
    except ValueError:
        raise _refusal(
            shard, "", f"is cut short, compressed or no tar: there is no header at byte {offset}"
        ) from None


def _number(field: bytes) -> int:
    """A number in octal, or in the binary form of GNU tar and star."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]*", digits):
        raise ValueError
    return int(digits or b"0", 8)


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode("utf-8")


def _extension(file: BinaryIO, shard: Path, kind: bytes, length: int) -> dict[str, str]:
    """The name and the size of the next member, by an extended header."""
    if length > MAX_NAME:
        raise _refusal(shard, "", f"has an extended header of {length} bytes; {MAX_NAME} are read")
    data = file.read(length)
    try:
        if kind == b"L":
            return {"path": _text(data)}
        records = dict(_records(data))
        known = {key: records[key].decode() for key in ("path", "size") if key in records}
        sparse = any(key.startswith("GNU.sparse") for key in records)
        if (
            sparse
            or (kind == b"g" and known)
            or not re.fullmatch(r"\d{1,18}", known.get("size", "0"))
        ):
            raise ValueError
        return known
    except ValueError:
        raise _refusal(shard, "", "has an extended header that is not read here") from None


def _records(data: bytes) -> Iterator[tuple[str, bytes]]:
    r"""The records of a pax header, "length key=value\\n", with the length of the whole record."""
    while data:
        digits, _, _ = data[:8].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = data[len(digits) + 1 : length]
        if length <= len(digits) + 1 or len(data) < length or record[-1:] != b"\n":
            raise ValueError
        key, equals, value = record[:-1].partition(b"=")
        if not equals:
            raise ValueError
        yield key.decode(), value
        data = data[length:]


def _check(shard: Path, name: str, kind: bytes) -> None:
    if kind not in b"0\x005":
        words = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device"}
        raise _refusal(shard, name, f"is {words.get(kind, f'of kind {kind!r}')}, not a plain file")
    if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or "\0" in name or not name:
        raise _refusal(shard, name, "has a name that leads out of the tar")


def _refusal(shard: Path, member: str, reason: str) -> ValueError:
    return ValueError(f"{shard}: {member!r} {reason}" if member else f"{shard} {reason}")
