"""Which of the package's extras installs a module that a command did not find."""

from __future__ import annotations

import re
from importlib import metadata


def missing(error: ImportError) -> str:
    """What to say of a failed import: the extra to install, or else the error's own words.

    >>> missing(ModuleNotFoundError("No module named 'tyro.extras'", name="tyro.extras"))
    "this needs tyro: pip install 'twosides[cli]'"
    """
    module = (error.name or "").split(".")[0]
    extra = None if "pip install" in str(error) else extra_of(module)
    return str(error) if extra is None else f"this needs {module}: pip install 'twosides[{extra}]'"


def extra_of(module: str) -> str | None:
    """The smallest extra that installs a module, None if no extra does."""
    name = {"PIL": "pillow"}.get(module, module)
    extras = dict[str, set[str]]()
    for requirement in metadata.requires("twosides") or ():
        found = re.match(r"""([\w-]+).*extra == ['"](\w+)['"]""", requirement)
        if found:
            extras.setdefault(found[2], set()).add(found[1].lower())
    there = [extra for extra, packages in extras.items() if name.lower() in packages]
    return min(there, key=lambda extra: len(extras[extra]), default=None)
