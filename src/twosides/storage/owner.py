"""The owner of a folder: the run it belongs to, and the process that works in it now.

Work that continues after an interruption must be the same work: `claim` writes the settings that
define it into a JSON file of the folder and refuses all others. It must not be done twice at once
either: `hold` locks the folder for as long as its process lives.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
import uuid
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from twosides.conditioning import flat
from twosides.storage.files import write_file
from twosides.storage.reading import read_json

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
_NOTE = ".at-work-"
_PATIENCE = 10.0  # the seconds in which the process that has won a folder writes one small file


def claim(
    path: Path, identity: Mapping[str, Any], holds: str = "", beside: Sequence[str] = ()
) -> bool:
    """Write `identity` to the file `path`, or compare it with the file; True if written.

    path: the JSON file.
    identity: the settings that define the run.
    holds: "samples", say, if the folder may have nothing but these. A ValueError then names other
        files.
    beside: patterns of the names of files that may be there before, all the same.

    If the folder belongs to another run, a ValueError names every difference.

    Of any number of processes that claim a folder at once, exactly one writes. Its text is written
    in full under a name of its own, and `os.link` gives it the final name: a link fails if the name
    is taken, on network file systems as well, where that is one operation of the server (O_EXCL was
    not, in old NFS), and every process that sees the name sees all of the text. On file systems
    without links (FAT, some network drives) a folder stands for the right to write: `mkdir` fails
    in the same way.
    """
    folder, wanted = path.parent, json.loads(text_of(identity))
    # The files are listed first, because another process of the run may write `path` just now.
    names = [found.name for found in folder.glob("*") if not found.name.startswith(".")]
    there = [name for name in names if not any(fnmatch(name, known) for known in beside)]
    if path.exists():
        _refuse_another(folder, read_json(path), wanted)
    elif folder.exists() and (not folder.is_dir() or (holds and there)):
        raise ValueError(f"{folder} exists and holds no {holds or 'run'}; choose a new folder")
    elif _create(path, text_of(identity)):
        return True
    else:
        _refuse_another(folder, read_json(path), wanted)
    return False


def text_of(identity: Mapping[str, Any]) -> bytes:
    """What `claim` writes."""
    return json.dumps(identity, indent=1).encode()


def _create(path: Path, data: bytes) -> bool:
    """Create the file unless it exists; whether this process did."""
    own = path.with_name(f".claim-{path.name}-{uuid.uuid4().hex}")
    write_file(own, data)
    try:
        os.link(own, path)
    except FileExistsError:
        return False
    except OSError:
        return _create_by_folder(path, own)
    finally:
        own.unlink(missing_ok=True)
    return True


def _create_by_folder(path: Path, own: Path) -> bool:
    right = path.with_name(f".claim-{path.name}")
    try:
        os.mkdir(right)
    except FileExistsError:
        end = time.monotonic() + _PATIENCE
        while not path.exists():
            if time.monotonic() > end:
                raise ValueError(
                    f"{right} exists, but not {path}: the process that claimed the folder has "
                    f"died; remove {right}"
                ) from None
            time.sleep(0.01)
        return False
    if path.exists():  # another process has won, and has removed its folder
        os.rmdir(right)
        return False
    os.replace(own, path)
    os.rmdir(right)
    return True


def _refuse_another(folder: Path, found: Any, wanted: Any) -> None:
    """ValueError with every setting in which the folder's run differs from the wanted one."""
    has, needs = flat(found), flat(wanted)
    keys = [key for key in {**needs, **has} if needs.get(key) != has.get(key)]
    if keys:
        changed = (f"{key} {has.get(key)!r}, not {needs.get(key)!r}" for key in keys)
        raise ValueError(
            f"{folder} holds another run: it has {'; '.join(changed)}. Choose another folder, or "
            "remove this one to begin again"
        )


_HELD: set[Path] = set()


@contextmanager
def hold(folder: Path, what: str) -> Generator[bool, None, None]:
    """Lock a folder for this process; ValueError that names another process at work there.

    folder: the folder, which is made if it is missing.
    what: what is being made there, such as "run", for the message.

    The lock is a POSIX record lock on a small file, which has the name of the process and stays.
    The kernel releases it when the process ends, in whatever way. Unlike `flock`'s it is not
    inherited by processes that are forked to read data, which outlive a killed parent by seconds,
    and network file systems support it. It does not lock a process against itself, which `_HELD`
    does.

    On a file system without locks processes leave notes (`_hold_by_note`), and False is yielded:
    then only the processes of one machine are kept apart.
    """
    lock = folder.absolute() / LOCK
    if lock in _HELD:
        raise ValueError(f"this process is at work in {folder} already; wait for its {what}")
    if sys.platform == "win32":
        yield True
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle, locked = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666), True
    _HELD.add(lock)
    with ExitStack() as stack:
        stack.callback(os.close, handle)
        stack.callback(_HELD.discard, lock)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(_at_work(folder, what, _holder(handle))) from None
        except OSError:
            locked = False
            stack.enter_context(_hold_by_note(folder.absolute(), what))
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield locked


def _holder(handle: int) -> str:
    """The process that has the lock, by the text of its file."""
    os.lseek(handle, 0, os.SEEK_SET)
    return os.read(handle, 200).decode(errors="replace") or "another process"


def _at_work(folder: Path, what: str, who: str) -> str:
    return (
        f"the {what} in {folder} is at work now, in {who}; wait for it, or end it and start again"
    )


@contextmanager
def _hold_by_note(folder: Path, what: str) -> Generator[None, None, None]:
    """Work in a folder while no other process of this machine does, without a lock.

    Each process first writes a note under a name of its own, and then looks for those of others:
    of two that come together at least one sees the other's. Who sees the note of a process that
    lives gives way, but where its own name is the first in the alphabet it waits a while for the
    other to do so, so that one of them stays. Notes of processes that have died are removed. Of
    processes on other machines nobody knows whether they live: a warning names them.
    """
    host = re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())
    own = folder / f"{_NOTE}{host}-{os.getpid()}-{_began(os.getpid())}"
    own.touch()
    try:
        end = time.monotonic() + _PATIENCE / 10
        while others := [note for note in folder.glob(f"{_NOTE}{host}-*") if _lives(note, own)]:
            if min(others) < own or time.monotonic() > end:
                who = f"process {others[0].name.split('-')[-2]} on this machine"
                raise ValueError(_at_work(folder, what, who))
            time.sleep(0.01)
        notes = [note for note in folder.glob(f"{_NOTE}*") if note != own]
        elsewhere = f"; {', '.join(map(str, notes))} may be at work on another" if notes else ""
        warnings.warn(
            f"the file system of {folder} has no locks: nothing keeps a second machine from this "
            f"{what}{elsewhere}. Start it on one machine only",
            stacklevel=4,
        )
        yield
    finally:
        own.unlink(missing_ok=True)


def _lives(note: Path, own: Path) -> bool:
    """Whether another process that left a note here lives; if not, the note is removed."""
    if note == own:
        return False
    _, process, began = note.name.rsplit("-", 2)
    if _began(int(process)) == began:
        return True
    note.unlink(missing_ok=True)
    return False


def _began(process: int) -> str:
    """When a process of this machine began, "0" where that is unknown; "" if it does not live."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:  # somebody else's, which lives
        pass
    try:
        # The 22nd field; the second is the program's name in parentheses, with any characters.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "0"
    return "" if fields[0] == "Z" else fields[19]
