"""Whose a folder is: what makes it, in a JSON file of its own, and a refusal of everything else.

Work that goes on after an interruption must be the same work; a folder that says what it is of can
be neither mixed up nor overwritten by another run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twosides.conditioning import flat
from twosides.storage.files import write_file
from twosides.storage.reading import read_json


def claim(path: Path, identity: Mapping[str, Any], holds: str = "") -> bool:
    """Write `identity` to the file `path`, or compare it with what is there; True if written.

    ValueError that names every difference if the folder is another run's; and, where it may
    hold nothing but what it `holds`, "samples" say, if there are other files.
    """
    folder, wanted = path.parent, json.loads(json.dumps(identity))
    # Listed first: other processes of the run may be writing the file now, before their work.
    there = [found for found in folder.glob("*") if not found.name.startswith(".")]
    if path.exists():
        _refuse_another(folder, read_json(path), wanted)
    elif folder.exists() and (not folder.is_dir() or (holds and there)):
        raise ValueError(f"{folder} exists and holds no {holds or 'run'}; choose a new folder")
    else:
        write_file(path, json.dumps(wanted, indent=1).encode())
        return True
    return False


def _refuse_another(folder: Path, found: Any, wanted: Any) -> None:
    has, asked = flat(found), flat(wanted)
    keys = [key for key in {**asked, **has} if asked.get(key) != has.get(key)]
    if keys:
        changed = (f"{key} {has.get(key)!r}, not {asked.get(key)!r}" for key in keys)
        raise ValueError(
            f"{folder} holds another run: it has {'; '.join(changed)}. Choose another folder, "
            "or remove this one to start afresh"
        )
