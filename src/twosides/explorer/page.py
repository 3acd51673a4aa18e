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
    """The files of the page.

    index: the text of index.html.
    assets: the other files by path ("assets/app-1a2b.js").
    script, sheet, fonts: the paths of the script, of the style sheet and of the fonts.
    """

    index: str
    assets: Mapping[str, bytes]
    script: str
    sheet: str
    fonts: tuple[str, ...]


def load(folder: Path = FOLDER) -> Page:
    """The page in a folder, by its manifest.json; FileNotFoundError if it is not built."""
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
