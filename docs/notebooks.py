"""Write the tutorials as Jupyter notebooks: the same text and code, cell by cell.

    python docs/notebooks.py FOLDER

What a page shows as the output of its code becomes a cell of text, so that a reader can compare.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

TUTORIALS = Path(__file__).parent / "tutorials"
BLOCK = re.compile(r"^```python\n(.*?)^```$\n?", flags=re.S | re.M)


def cell(kind: str, text: str, number: int) -> dict[str, Any]:
    """A cell of a notebook, kind "markdown" or "code"."""
    made = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.strip("\n")}
    return made | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def notebook(page: Path) -> dict[str, Any]:
    """A page as a notebook, in version 4.5 of the format."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^```\{.*?^```$\n?", "", text, flags=re.S | re.M)  # Sphinx's own
    text = re.sub(r"!\[([^\]]*)\]\([^)]*\)\n*", "", text)  # pictures, which the code makes
    parts = BLOCK.split(text)  # text, code, text, ...
    kinds = ["code" if number % 2 else "markdown" for number in range(len(parts))]
    cells = [
        cell(kind, part, number)
        for number, (kind, part) in enumerate(zip(kinds, parts, strict=True))
        if part.strip()
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def main() -> None:
    """Write all of them into the folder that is given."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for page in sorted(TUTORIALS.glob("*.md")):
        if page.name != "index.md":
            target = folder / f"{page.stem}.ipynb"
            target.write_text(json.dumps(notebook(page), indent=1), encoding="utf-8")
            print(target)


if __name__ == "__main__":
    main()
