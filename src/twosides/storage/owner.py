"""Whose a folder is, and who works in it now.

Work that goes on after an interruption must be the same work: `claim` writes what makes it into a
JSON file of the folder and refuses everything else. It must not be done twice at once either:
`held` locks the folder for as long as its process lives.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from twosides.conditioning import flat
from twosides.storage.files import write_file
from twosides.storage.reading import read_json

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
_PATIENCE = 10.0  # seconds for the winner of a folder to write one small file


def claim(
    path: Path, identity: Mapping[str, Any], holds: str = "", beside: Sequence[str] = ()
) -> bool:
    """Write `identity` to the file `path`, or compare it with what is there; True if written.

    ValueError that names every difference if the folder is another run's; and, where it may
    hold nothing but what it `holds`, "samples" say, if there are other files; those named `beside`,
    patterns, may be there before.

    Of any number of processes that claim a folder at once, exactly one writes. Its text is written
    in full under a name of its own, and `os.link` gives it the final name: a link fails if the name
    is taken, on network file systems as well, where that is one operation of the server (O_EXCL was
    not, in old NFS), and whoever sees the name sees all of the text. On file systems without links
    (FAT, some network drives) the right to write is a folder: `mkdir` fails in the same way.
    """
    folder, wanted = path.parent, json.loads(json.dumps(identity))
    # Listed first: other processes of the run may be writing the file now, before their work.
    names = [found.name for found in folder.glob("*") if not found.name.startswith(".")]
    there = [name for name in names if not any(fnmatch(name, known) for known in beside)]
    if path.exists():
        _refuse_another(folder, read_json(path), wanted)
    elif folder.exists() and (not folder.is_dir() or (holds and there)):
        raise ValueError(f"{folder} exists and holds no {holds or 'run'}; choose a new folder")
    elif _won(path, json.dumps(wanted, indent=1).encode()):
        return True
    else:
        _refuse_another(folder, read_json(path), wanted)
    return False


def _won(path: Path, data: bytes) -> bool:
    """Make the file unless it is there; whether this process did."""
    own = path.with_name(f".claim-{path.name}-{uuid.uuid4().hex}")
    write_file(own, data)
    try:
        os.link(own, path)
    except FileExistsError:
        return False
    except OSError:
        return _won_by_folder(path, own)
    finally:
        own.unlink(missing_ok=True)
    return True


def _won_by_folder(path: Path, own: Path) -> bool:
    right = path.with_name(f".claim-{path.name}")
    try:
        os.mkdir(right)
    except FileExistsError:
        end = time.monotonic() + _PATIENCE
        while not path.exists():
            if time.monotonic() > end:
                raise ValueError(
                    f"{right} is there, but not {path}: the process that claimed the folder has "
                    f"died; remove {right}"
                ) from None
            time.sleep(0.01)
        return False
    if path.exists():  # the winner has been here and is gone
        os.rmdir(right)
        return False
    os.replace(own, path)
    os.rmdir(right)
    return True


def _refuse_another(folder: Path, found: Any, wanted: Any) -> None:
    has, asked = flat(found), flat(wanted)
    keys = [key for key in {**asked, **has} if asked.get(key) != has.get(key)]
    if keys:
        changed = (f"{key} {has.get(key)!r}, not {asked.get(key)!r}" for key in keys)
        raise ValueError(
            f"{folder} holds another run: it has {'; '.join(changed)}. Choose another folder, "
            "or remove this one to start afresh"
        )


_HELD: set[Path] = set()


@contextmanager
def held(folder: Path, what: str) -> Generator[None, None, None]:
    """Work in a folder alone; ValueError that names the process which is at work there.

    The lock is a POSIX record lock on a small file, which also says who holds it and stays. The
    kernel lets go of it when the process ends, however that is. Unlike `flock`'s it is not
    inherited by processes that are forked to read data, which outlive a killed parent by seconds,
    and network file systems know it. It does not keep a process from itself, hence `_HELD`.
    """
    lock = folder.absolute() / LOCK
    if lock in _HELD:
        raise ValueError(f"this process is at work in {folder} already; wait for its {what}")
    if sys.platform == "win32":
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    _HELD.add(lock)
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(
                f"the {what} in {folder} is at work now, in {_said(handle)}; wait for it, or end "
                "it and start again"
            ) from None
        except OSError:  # a file system without locks: the user has to know
            pass
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        _HELD.discard(lock)
        os.close(handle)


def _said(handle: int) -> str:
    os.lseek(handle, 0, os.SEEK_SET)
    return os.read(handle, 200).decode(errors="replace") or "another process"
