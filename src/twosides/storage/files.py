"""Files and folders that are either complete or absent.

A checkpoint is a folder that appears in one step, so that a process killed at any instant leaves
the previous checkpoint or the next one, never half of one:

    .tmp-step-00000007-4242/  write, manifest.json, flush every file, flush the folder
    step-00000007/            rename, flush the parent folder, only then prune older ones

The manifest has the size and the SHA-256 of every file: safetensors has no checksum, and a flipped
bit in a weight would otherwise load silently. The content is a tree of dicts, lists, tuples,
numbers, strings and tensors (`trees`); nothing is ever pickled, so that loading runs no code.

    >>> import tempfile
    >>> import torch
    >>> from twosides.storage.checkpoints import Checkpoints
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoints = Checkpoints(folder, keep=2)
    ...     _ = checkpoints.save(7, {"weights": torch.ones(2), "betas": (0.9, 0.99)})
    ...     checkpoints.newest()
    (7, {'weights': tensor([1., 1.]), 'betas': (0.9, 0.99)})
"""

import errno
import glob
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

from twosides.storage.reading import CorruptFolder, read_json, require_file, sha256

if sys.platform != "win32":
    import fcntl


MANIFEST, TREE, TENSORS = "manifest.json", "tree.json", "tensors.safetensors"
Records: TypeAlias = dict[str, dict[str, int | str]]
"""The content of a manifest: the size and the SHA-256 of each file."""

_REMEDIES = {
    errno.ENOSPC: "free space on that disk or choose another folder",
    errno.EDQUOT: "free space in your quota or choose another folder",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) or choose another file system",
    errno.EROFS: "choose a folder on a file system that can be written",
    errno.EACCES: "change the permissions of the folder or choose another one",
}


def write_file(path: str | Path, data: bytes) -> None:
    """Replace the file at `path` by `data`, completely or not at all, and flush it to the disk.

    Missing folders on the way are made.
    """
    path = Path(path).absolute()
    temporary = _beside(path, "tmp")
    with _explain_errors("file", path):
        _make_folder(path.parent)
        try:
            _write(temporary, [data])
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def commit_folder(path: str | Path, write: Callable[[Path], Records | None]) -> None:
    """Make the folder `path` from the files that `write(folder)` puts into a temporary one.

    The folder appears complete, with its manifest and flushed to the disk, or not at all: an error
    leaves what was there. A folder that is replaced is renamed to `.old-<name>-<pid>` until the new
    one is in its place; `recover` brings it back after a kill in between.

    path: the folder.
    write: writes the files. It may return the records of files that are flushed already, also by
        other processes.
    """
    path = Path(path).absolute()
    with _explain_errors("folder", path):
        _make_folder(path.parent)
        with _lock(path.parent, wait=True):
            _recover(path)
            _refuse_file(path)
            temporary = _beside(path, "tmp")
            try:
                os.mkdir(temporary)
                _seal(temporary, write(temporary) or {})
                _swap(temporary, path)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise


def verify_folder(path: str | Path) -> None:
    """Check each file of a committed folder against its manifest; `CorruptFolder` if one is bad."""
    folder = Path(path).absolute()
    if not folder.is_dir():
        recover(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, f"{folder} is not a folder; pass one that commit_folder has written"
        )
    manifest = _read_manifest(folder)
    found = {entry.name: entry for entry in os.scandir(folder) if entry.name != MANIFEST}
    for name in sorted(manifest.keys() | found.keys()):
        if name not in found:
            raise CorruptFolder(folder, name, "is missing")
        if name not in manifest or not found[name].is_file(follow_symlinks=False):
            raise CorruptFolder(folder, name, f"is not a file that {MANIFEST} lists")
        _verify_file(folder, name, manifest[name])


def remove_folder(path: str | Path) -> None:
    """Remove a committed folder so that a kill on the way leaves no half of it in its place."""
    path = Path(path).absolute()
    with _lock(path.parent, wait=True):
        temporary = _beside(path, "tmp")
        os.rename(path, temporary)
        shutil.rmtree(temporary)


def recover(path: str | Path) -> None:
    """Clean up after a killed `commit_folder(path)`, unless one is at work there now.

    The folder that was being replaced comes back if the new one did not get into its place.
    """
    path = Path(path).absolute()
    with suppress(OSError), _lock(path.parent, wait=False) as free:
        if free:
            _recover(path)


def _recover(path: Path) -> None:
    for old in _leftovers(path, "old"):
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, path)
    for temporary in _leftovers(path, "tmp"):
        shutil.rmtree(temporary, ignore_errors=True)


def _leftovers(path: Path, kind: str) -> list[Path]:
    candidates = path.parent.glob(f".{kind}-{glob.escape(path.name)}-*")
    return [c for c in candidates if re.fullmatch(r"\d+", c.name[len(path.name) + 6 :])]


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{kind}-{path.name}-{os.getpid()}")


def _swap(new: Path, path: Path) -> None:
    old = _beside(path, "old")
    replaced = path.exists()
    if replaced:
        os.rename(path, old)
    try:
        os.rename(new, path)
        _flush(path.parent)
    except BaseException:
        if not new.exists():
            os.rename(path, new)
        if replaced:
            os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _seal(folder: Path, known: Records) -> None:
    manifest: Records = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not entry.is_file(follow_symlinks=False) or entry.name == MANIFEST:
            raise ValueError(f"{entry.path} cannot be committed; write plain files only")
        manifest[entry.name] = known.get(entry.name) or _record(Path(entry.path))
    _write(folder / MANIFEST, [json.dumps(manifest, indent=1).encode()])
    _flush(folder / MANIFEST)
    _flush(folder)


def _record(path: Path) -> dict[str, int | str]:
    """The size and the checksum of a file, which is flushed to the disk."""
    _flush(path)
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def _verify_file(folder: Path, name: str, record: dict[str, Any]) -> None:
    size = require_file(folder / name).stat().st_size
    if size != record["size"]:
        raise CorruptFolder(folder, name, f"has {size} bytes, {MANIFEST} says {record['size']}")
    if sha256(folder / name) != record["sha256"]:
        raise CorruptFolder(folder, name, f"was changed: its SHA-256 is not that in {MANIFEST}")


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    manifest = read_json(folder / MANIFEST)
    try:
        if all(record.keys() == {"size", "sha256"} for record in manifest.values()):
            return manifest
    except AttributeError:
        pass
    raise CorruptFolder(folder, MANIFEST, "does not map names to a size and a SHA-256")


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, 0o666)
    try:
        for chunk in chunks:
            rest = memoryview(chunk)  # a single call writes 2 GB at most
            while rest:
                rest = rest[os.write(handle, rest) :]
    finally:
        os.close(handle)


def _flush(path: Path) -> None:
    if sys.platform == "win32":  # Windows flushes neither folders nor handles for reading
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        with suppress(FileExistsError):
            os.mkdir(folder)
        _flush(folder.parent)


def _refuse_file(path: Path) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ValueError(f"{path} is a file or a link, not a folder; move it away or rename")


@contextmanager
def _lock(folder: Path, *, wait: bool) -> Generator[bool, None, None]:
    """Lock the folder against other writers; yields whether that succeeded.

    The kernel releases the lock when the process dies. A lock that is free therefore means that
    every temporary folder is stale, even if its process id belongs to another process by now.
    """
    if sys.platform == "win32":
        yield True
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield _acquire(handle, wait)
    finally:
        with suppress(OSError):  # closing is not enough: a forked child may have the handle, too
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _acquire(handle: int, wait: bool) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # on a file system without locks there must be a single writer
        return True
    return True


@contextmanager
def _explain_errors(what: str, path: Path) -> Generator[None, None, None]:
    """Add the path and a remedy to an OSError inside."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = _REMEDIES.get(error.errno or 0, "check the disk and the folder")
        message = f"could not write the {what} {path}: {reason}; no half of it was left; {remedy}"
        raise OSError(error.errno, message) from error
