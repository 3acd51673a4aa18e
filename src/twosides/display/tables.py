"""Tables of text: Markdown, and columns for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

Lines = Sequence[Sequence[str]]  # the first is the head


def markdown(lines: Lines) -> str:
    """A Markdown table."""
    head, *rest = lines
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ("---",) * len(head), *rest))


def text(lines: Lines) -> str:
    """Columns for a terminal; empty columns are left out.

    >>> print(text([("name", "order", "noise"), ("ddim", "1", ""), ("heun", "2", "")]), end="")
    name  order
    ddim  1
    heun  2
    """
    columns = [column for column in zip(*lines, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in zip(*columns, strict=True)
    )
    return "".join(f"{line.rstrip()}\n" for line in padded)
