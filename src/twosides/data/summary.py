"""A description of a data set, in words and as a picture: `twosides data` prints it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twosides.data.images import Images
from twosides.data.latents import Latents
from twosides.data.named import task_named
from twosides.data.tasks import Task, is_stream
from twosides.display.pictures import grid, png
from twosides.display.progress import bar
from twosides.losses.masks import MASK
from twosides.storage.files import write_file

SHOWN = 64  # the samples in the picture
FIRST = 1000  # the samples of a stream that are read


def summary(name: str, out: Path | None = None, most: int | None = None) -> str:
    """A description of the samples of a data set. mean and std are per channel, without padding.

    name: the name of a task.
    out: the .png file to write a picture of some samples to; None for no picture.
    most: the number of samples to read, spread evenly over the data; None for all.
    """
    if out is not None and out.suffix != ".png":
        raise ValueError(f"{out}: a picture is written as .png, not {out.suffix!r}")
    if most is not None and most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    task = task_named(name)
    count = FIRST if task.size is None else task.size
    read = min(count, most or count)
    moments, labels, shown = _Moments(), Counter[int](), list[Tensor]()
    with bar("reading", read) as tell:
        for number, sample in enumerate(_samples(task, count, read)):
            moments.add(sample["x"], sample.get(MASK))
            if "class_labels" in sample:
                labels[int(sample["class_labels"])] += 1
            if number * SHOWN // read >= len(shown):
                shown.append(sample["x"])
            tell(number + 1, read)
    lines = [f"{name}: {_count(task, count, read)}, each {tuple(task.shape)}"]
    lines += [*moments.lines(), *_classes(labels, task.classes), *_bad(task.data)]
    if out is not None:
        write_file(out, png(sheet(torch.stack(shown))))
        lines.append(f"picture   {out}")
    return "\n".join(lines)


def sheet(x: Tensor) -> Any:
    """A picture of samples (B, C, H, W).

    Channels that are no colours, as those of latents, are reduced to three or one and scaled to 3
    standard deviations.
    """
    if x.ndim != 4:
        raise ValueError(f"samples of shape {tuple(x.shape[1:])} are no pictures; leave out --out")
    if x.shape[1] not in (1, 3):
        first = x[:, : min(x.shape[1], 3)]
        x = first if len(first[0]) == 3 else first[:, :1]
        mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
        x = (x - mean) / (3 * std)
    return grid(x, columns=8, zoom=max(1, 64 // x.shape[-1]))


class _Moments:
    """Weighted sums per channel in float64; padding, of weight 0, counts for nothing."""

    def __init__(self) -> None:
        self.count, self.first, self.second = torch.zeros(1), torch.zeros(1), torch.zeros(1)
        self.low, self.high = float("inf"), -float("inf")

    def add(self, x: Tensor, mask: Tensor | None = None) -> None:
        weight = (torch.ones(()) if mask is None else mask).double().expand(x.shape)
        weight = weight.reshape(x.shape[0], -1)
        rows = torch.where(weight > 0, x.double().reshape(x.shape[0], -1), 0.0)
        used = rows[weight > 0]
        self.count = self.count + weight.sum(1)
        self.first = self.first + (weight * rows).sum(1)
        self.second = self.second + (weight * rows**2).sum(1)
        self.low, self.high = min(self.low, float(used.min())), max(self.high, float(used.max()))

    def lines(self) -> list[str]:
        mean = self.first / self.count
        std = (self.second / self.count - mean**2).clamp(min=0).sqrt()
        words = [" ".join(f"{value:.4f}" for value in part.tolist()) for part in (mean, std)]
        return [
            f"mean      {words[0]}",
            f"std       {words[1]}",
            f"range     {self.low:.4f} to {self.high:.4f}",
        ]


def _samples(task: Task, count: int, read: int) -> Iterator[dict[str, Any]]:
    if is_stream(task.data):
        return itertools.islice(task.data.items(0), read)
    data: Any = task.data
    return (data[number * count // read] for number in range(read))


def _count(task: Task, count: int, read: int) -> str:
    if is_stream(task.data):
        return f"an endless stream, of which {read} samples were read"
    return f"{count} samples" + (f", of which {read} were read" if read < count else "")


def _classes(labels: Counter[int], classes: Sequence[str]) -> list[str]:
    if not classes:
        return []
    names = [f"{name} {labels[number]}" for number, name in enumerate(classes)]
    more = f", and {len(names) - 20} more" if len(names) > 20 else ""
    return [f"classes   {len(classes)}: {', '.join(names[:20])}{more}"]


def _bad(data: Any) -> list[str]:
    data = getattr(data, "dataset", data)  # of a part, the whole
    if isinstance(data, Images):
        reasons = list(data.bad.values())
    elif isinstance(data, Latents):
        reasons = data.bad
    else:
        reasons = list(getattr(data, "bad", []))
    more = [f"          and {len(reasons) - 20} more"] if len(reasons) > 20 else []
    return [f"bad       {len(reasons)}", *(f"          {reason}" for reason in reasons[:20]), *more]
