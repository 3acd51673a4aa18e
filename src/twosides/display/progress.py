"""Progress bars with the time left, on well-kept shoulders (rich)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Progress = Callable[[int, int], None]  # (done, total)


@contextlib.contextmanager
def bar(task: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while inside: a function (done, total)."""
    try:
        from rich import progress as rich
        from rich.console import Console
    except ImportError as error:
        raise ImportError(
            "progress=True draws with rich: pip install 'twosides[cli]', or pass progress=a "
            "function (done, total)"
        ) from error
    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
    )
    clock = (rich.TimeElapsedColumn(), rich.TextColumn("left"), rich.TimeRemainingColumn())
    display = rich.Progress(*columns, *clock, console=Console(stderr=True))
    with display:
        number = display.add_task(task, total=total)
        yield lambda done, total: display.update(number, completed=done, total=total)


def teller(
    progress: bool | Progress, total: int, task: str = "sampling"
) -> contextlib.AbstractContextManager[Progress | None]:
    """A function (done, total) while inside: a bar for True, the caller's own, or None."""
    return bar(task, total) if progress is True else contextlib.nullcontext(progress or None)
