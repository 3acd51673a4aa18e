"""The log of a run: tables of numbers that survive kills, and the loggers that a user passes.

`logs/metrics.csv` holds what is determined by the run alone: loss, gradient norm, learning rate. A
run that was killed and continued leaves the same file, byte for byte, as one that was not.
`logs/speed.csv` holds what depends on the machine and the hour.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from twosides.storage.files import write_file
from twosides.storage.reading import blame, read_file

MAX_BYTES = 1 << 30  # the largest table that is read
METRICS, SPEED = "logs/metrics.csv", "logs/speed.csv"


class Rows:
    """A CSV file of numbers by step, to which rows are appended; a missing number is empty."""

    def __init__(self, path: Path, columns: Iterable[str]) -> None:
        """Name the columns after the first one, "step"; nothing is written yet."""
        self.path, self.columns = path, ["step", *columns]

    def rewind(self, step: int) -> None:
        """Keep the complete rows up to a step, because later steps are made again."""
        kept = [row for row in read_rows(self.path) if int(row["step"]) <= step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(self._line(row) for row in [{c: c for c in self.columns}, *kept])
        write_file(self.path, text.encode())

    def append(self, step: int, *rows: Mapping[str, float]) -> None:
        """Write rows and flush them to the disk."""
        text = "".join(self._line({"step": step, **row}) for row in rows)
        with self.path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def _line(self, row: Mapping[str, Any]) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, extrasaction="ignore", lineterminator="\n")
        writer.writerow(row)
        return text.getvalue()


def read_rows(path: Path) -> list[dict[str, str]]:
    """The complete rows of a table; a kill may have left half of the last row."""
    if not path.exists():
        return []
    with blame(path):
        whole, _, _ = read_file(path, MAX_BYTES).decode("utf-8").rpartition("\n")
        rows = list(csv.DictReader(io.StringIO(whole)))
    complete = [row for row in rows if None not in row.values()]
    return [row for row in complete if re.fullmatch("[0-9]{1,18}", row.get("step", ""))]


class Log:
    """metrics.csv, speed.csv and Lightning's loggers, written by the first process only."""

    def __init__(self, folder: Path, loggers: Iterable[Any], *, extra: Iterable[str] = ()) -> None:
        """Prepare to log.

        folder: the folder of the run.
        loggers: Lightning's loggers, which get the same numbers.
        extra: the columns that this run has beyond the usual ones.
        """
        columns = ("loss", "gradient_norm", "learning_rate", *extra)
        self.metrics = Rows(folder / METRICS, columns)
        self.speed = Rows(folder / SPEED, ("samples_per_second", "tflops", "mfu"))
        self.loggers, self.active = list(loggers), False

    def begin(self, step: int, *, active: bool) -> None:
        """Continue from a step. Only an active log writes, which is that of the first process."""
        self.active = active
        if active:
            self.metrics.rewind(step)
            self.speed.rewind(step)

    def write(self, step: int, values: Mapping[str, float], *, speed: bool = False) -> None:
        """Write a row of metrics.csv or speed.csv, and give the same numbers to the loggers."""
        if not self.active:
            return
        (self.speed if speed else self.metrics).append(step, values)
        for logger in self.loggers:
            logger.log_metrics(dict(values), step)


def loss_curve(folder: str | Path) -> tuple[list[int], list[float]]:
    """The steps and losses of a run's folder, over all interruptions."""
    rows = [row for row in read_rows(Path(folder) / METRICS) if row.get("loss")]
    return [int(row["step"]) for row in rows], [float(row["loss"]) for row in rows]
