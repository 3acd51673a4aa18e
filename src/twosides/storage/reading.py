"""The only way in which files are read: regular files of a bounded size, and JSON in them.

Anybody may have made a file. In its place there may be a pipe without a writer, a device without an
end, a folder, or a gigabyte of brackets. Anything that is no file, or is longer than its reader
accepts, is refused before a byte of it is read, by an error that names it.
"""

import hashlib
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeAlias, cast

MAX_JSON = 64 << 20  # the bytes of a tree's JSON
MAX_CONFIG = 16 << 20  # the bytes of any other JSON; in memory it may take twenty times as much
MAX_DEPTH = 64  # the depth of a tree
Tree: TypeAlias = Any
"""None, bool, int, float, str, tensor, or a list, tuple or dict (str or int keys) of trees."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class CorruptFolder(ValueError):
    """A file that is damaged or not what it should be: `.folder`, `.file` and `.reason`."""

    def __init__(self, folder: Path, file: str, reason: str) -> None:
        """The message is the file's path followed by the reason."""
        super().__init__(folder, file, reason)
        self.folder, self.file, self.reason = folder, file, reason

    def __str__(self) -> str:
        """The file's path and what is wrong with it."""
        return f"{self.folder / self.file} {self.reason}"


def require_file(path: str | Path, most: int | None = None) -> Path:
    """The path, if it leads to a regular file; `CorruptFolder` says what it leads to otherwise.

    A pipe would keep its reader waiting for ever and a device may never end, so neither is even
    opened. Links are followed, because the cache of Hugging Face is made of links. A library that
    opens a file by its name, such as safetensors, is given only names that have passed here.

    path: the path.
    most: the largest size in bytes that the caller will read; None where it reads a part at a time.
    """
    path = Path(path)
    _check_kind(path, os.stat(path), most)
    return path


def open_file(path: str | Path, most: int | None = None) -> BufferedReader:
    """The file, open for reading bytes, under the conditions of `require_file`.

    Every file that this package reads is opened here, or by a library after `require_file`.
    """
    path = require_file(path, most)
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:  # the check is repeated, because another file may have taken its place in between
        _check_kind(path, os.fstat(handle), most)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_file(path: str | Path, most: int) -> bytes:
    """The bytes of a regular file of at most `most` bytes; `CorruptFolder` if it is another."""
    with open_file(path, most) as file:
        data = file.read(most + 1)
    if len(data) > most:  # the file has grown, or its file system does not know its size
        raise _too_long(Path(path), f"more than {most}", most)
    return data


def _check_kind(path: Path, status: os.stat_result, most: int | None) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        reason = f"is {_KINDS.get(kind, 'something')}, not a file that can be read"
        raise CorruptFolder(path.parent, path.name, reason)
    if most is not None and status.st_size > most:
        raise _too_long(path, str(status.st_size), most)


def _too_long(path: Path, size: str, most: int) -> CorruptFolder:
    return CorruptFolder(path.parent, path.name, f"has {size} bytes; at most {most} are read")


def require_folder(folder: str | Path) -> Path:
    """The folder, if it has only regular files and folders; `CorruptFolder` if not.

    This is for folders whose files a library opens by itself, such as a pipeline of diffusers.
    """
    pending, seen = [Path(folder)], set[tuple[int, int]]()
    while pending:
        path = pending.pop()
        with suppress(FileNotFoundError):  # a link to nothing does no harm
            status = os.stat(path)
            if not stat.S_ISDIR(status.st_mode):
                _check_kind(path, status, None)
            elif (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                pending += path.iterdir()
    return Path(folder)


@contextmanager
def blame(path: Path) -> Generator[None, None, None]:
    """Turn any error inside into a refusal that names the file `path`.

    Parsers and classes that read data of strangers raise errors of nearly any kind. ValueError,
    TypeError and OSError stay what they are, a missing library stays an ImportError, and all else
    becomes a ValueError. None becomes a `CorruptFolder`, which would mean that the file is not what
    was written, and that a run may write it again.
    """
    try:
        yield
    except (ImportError, OSError):
        raise
    except Exception as error:
        reason, named = str(error) or type(error).__name__, str(path.parent) in str(error)
        if isinstance(error, ValueError | TypeError) and named:
            raise
        if isinstance(error, TypeError):
            raise TypeError(f"{path} cannot be used: {reason}") from error
        raise ValueError(f"{path} cannot be used: {reason}") from error


def read_json(path: Path, most: int = MAX_CONFIG, *, finite: bool = True) -> dict[str, Tree]:
    """The JSON object in a file, of modest depth and finite numbers; `CorruptFolder` for others.

    JSON is the only text format that is read: it has no references to expand.

    path: the file.
    most: the largest size of the file in bytes.
    finite: whether Infinity, -Infinity and NaN, which are not JSON, are refused. Only the configs
        of diffusers have them, such as lambda_min_clipped of its schedulers.
    """
    folder, name = path.absolute().parent, path.name
    try:
        data = read_file(path.absolute(), most)
        number = _finite if finite else float
        document = json.loads(
            data, parse_constant=number, parse_float=number, object_pairs_hook=unique
        )
        _check_depth(document)
    except FileNotFoundError:
        raise CorruptFolder(folder, name, "is missing") from None
    except CorruptFolder:
        raise
    except (ValueError, RecursionError) as error:
        raise CorruptFolder(folder, name, f"is not readable JSON: {error}") from None
    if not isinstance(document, dict):
        raise CorruptFolder(folder, name, "is not a JSON object")
    return cast(dict[str, Tree], document)


def unique(pairs: list[tuple[str, Tree]]) -> dict[str, Tree]:
    """The pairs as an object; ValueError for a repeated name, of which a parser would drop one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name!r} is there twice")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return value


def _check_depth(document: Tree) -> None:
    layer, depth = [document], 0
    while layer := [
        item
        for node in layer
        if isinstance(node, dict | list)
        for item in cast(Iterable[Tree], node.values() if isinstance(node, dict) else node)
    ]:
        depth += 1
        if depth > 4 * MAX_DEPTH:  # a tree of MAX_DEPTH has a tag and a pair for each key
            raise ValueError(f"it is nested deeper than {4 * MAX_DEPTH} levels")


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal digits."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
