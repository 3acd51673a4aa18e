"""Progress bars with the time left, on well-kept shoulders (rich)."""

from __future__ import annotations

from collections.abc import Callable


def bar(task: str, total: int) -> Callable[[int, int], None]:
    """A function (done, total) that draws a bar on stderr and closes it at the end."""
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
    number = display.add_task(task, total=total)
    display.start()

    def tell(done: int, _total: int) -> None:
        display.update(number, completed=done)
        if done >= total:
            display.stop()

    return tell
