"""The built web page: files of the package, read once, served under their exact names only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "page"
TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".woff2": "font/woff2",
}


@dataclass(frozen=True)
class Page:
    """index.html, and its assets by path ("assets/app-1a2b.js"): one script, one sheet, fonts."""

    index: str
    assets: Mapping[str, bytes]
    script: str
    sheet: str
    fonts: tuple[str, ...]


def load(folder: Path = FOLDER) -> Page:
    """The page of a folder, as its manifest.json says; FileNotFoundError if it is not built."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        script, sheet, fonts = manifest["js"], manifest["css"], tuple(manifest["fonts"])
        assets = {name: (folder / name).read_bytes() for name in (script, sheet, *fonts)}
        index = (folder / "index.html").read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the explorer's page is not built: {error.filename} is missing; install a released "
            "twosides, or build the page as web/README.md says"
        ) from error
    return Page(index, assets, script, sheet, fonts)
