"""Progress bars with the time left, on well-kept shoulders (rich)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bar(task: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while inside: a function (done, total)."""
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
    except ImportError as error:
        raise ImportError(
            "progress=True draws with rich: pip install 'twosides[cli]', or pass progress=a "
            "function (done, total)"
        ) from error
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    clock = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    display = Progress(*columns, *clock, console=Console(stderr=True))
    with display:
        number = display.add_task(task, total=total)
        yield lambda done, total: display.update(number, completed=done, total=total)
