"""The pages about the house say what the tests hold."""

import re
from pathlib import Path

from test_layers import ORDER, ROOT

PAGE = (Path(__file__).parents[2] / "docs/design.md").read_text(encoding="utf-8")


def test_the_rooms_of_the_page_are_in_the_order_that_is_held():
    section = PAGE.split("## The rooms")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    told = [set(re.findall(r"`(\w+)`", row)) for row in reversed(rows)]
    there = {path.stem for path in ROOT.iterdir()}
    assert told == [rooms & there for rooms in ORDER]


def test_what_is_written_by_hand_is_there():
    section = PAGE.split("## What is written by hand")[1].split("\n## ")[0]
    for row in section.splitlines():
        if row.startswith("|") and "`" in (piece := row.split("|")[1]):
            folder = ""
            for name in re.findall(r"`([\w/.]+)`", piece):
                folder = name.rpartition("/")[0] or folder
                assert (ROOT / folder / Path(name).name).exists(), name
