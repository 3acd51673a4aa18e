"""The only place where a name from outside is imported, which runs code."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def import_object(path: str, what: str, *, trust_code: bool) -> Any:
    """The object of an import path, `package.module:name`; None if the module lacks it.

    Importing a module runs it. It is therefore refused unless the user has said that the code is
    trusted, and no other place of the package imports a name from outside.

    path: the import path. The current folder is searched last, after all that is installed, so that
        a file in it hides no installed module.
    what: what the object is for, such as "network", for the message.
    trust_code: whether the user trusts the code, or has typed the path to have it run.
    """
    module, _, name = path.partition(":")
    if not trust_code:
        raise ValueError(
            f"the {what} {path} is code outside this library; using it imports that module. If you "
            "trust it, pass trust_code=True"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return getattr(importlib.import_module(module), name, None)
