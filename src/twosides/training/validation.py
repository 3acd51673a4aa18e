"""The error of the averaged weights on held-out data, level by level.

The density's levels are cut into 20 bins of equal probability. Sample i is always measured in bin i
mod 20, with noise and a level that depend on (seed, i) only, so that two measurements differ by
their weights alone. `logs/validation.csv` has for every bin the plain error E|eps_hat - eps|^2, the
mean over the elements of a sample, and the weighted loss; `validation.png` shows the error over the
levels, as training goes on.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor
from torch.utils.data import default_collate

from twosides.conditioning import moved
from twosides.display import pictures
from twosides.losses.objective import Objective
from twosides.randomness import PerSample, centred
from twosides.storage.files import write_file
from twosides.training.callbacks import Averaging
from twosides.training.log import Log, Rows, read_rows
from twosides.training.module import Module

BINS, VALIDATION = 20, "logs/validation.csv"


class InBins(PerSample):
    """Randomness in which the level of sample i lies in bin i mod 20."""

    def strata(self) -> Tensor:
        """`((i mod 20) + u_i) / 20`."""
        bins = torch.tensor(self.indices).double() % BINS
        return centred((bins + super().uniform()) / BINS)

    def uniform(self) -> Tensor:
        """The same numbers, because levels are never independent here."""
        return self.strata()


class Validating(lightning.Callback):
    """The callback that measures the error of the average every so many optimizer steps."""

    def __init__(self, data: Any, folder: Path, average: Averaging, log: Log) -> None:
        """Prepare to measure.

        data: a map-style data set, which has a length and an order. All of its samples are
            measured.
        folder: the folder of the run.
        average: the average, which takes the network's place meanwhile.
        log: the log of the run.
        """
        if not hasattr(data, "__len__"):
            raise TypeError(
                f"validation data have a length and an order, {type(data).__name__} has none"
            )
        self.data, self.folder, self.average, self.journal = data, folder, average, log
        columns = ("bin", "logsnr_low", "logsnr_high", "error", "loss")
        self.rows, self.seen = Rows(folder / VALIDATION, columns), 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Continue the table after the steps that were made."""
        self.seen = trainer.global_step
        if trainer.is_global_zero:
            self.rows.rewind(self.seen)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure on all processes, each its share, and write on the first."""
        step = trainer.global_step
        if step == self.seen or step % pl_module.settings.validate_every:
            return
        self.seen = step
        context = trainer.precision_plugin.forward_context
        with self.average.substitute(pl_module.denoiser), torch.no_grad(), context():
            errors, losses = self.measure(pl_module, trainer.global_rank, trainer.world_size)
        if not trainer.is_global_zero:
            return
        edges = _edges(pl_module.objective)
        rows = [
            {
                "bin": k,
                "logsnr_low": edges[k + 1],
                "logsnr_high": edges[k],
                "error": float(errors[k::BINS].mean()),
                "loss": float(losses[k::BINS].mean()),
            }
            for k in range(min(BINS, len(errors)))
        ]
        self.rows.append(step, *rows)
        self.journal.write(step, {"validation": float(losses.mean())})
        write_file(self.folder / "validation.png", picture(self.folder))

    def rehearse(self, module: Module) -> None:
        """Measure one micro-batch; ValueError for data that cannot be measured."""
        count: int = len(self.data)
        size = module.settings.micro_batch(module.trainer.world_size)
        try:
            self._measure_batch(module, [number % count for number in range(size)])
        except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
            raise ValueError(f"the validation data cannot be measured: {error}") from error

    def measure(self, module: Module, rank: int, world: int) -> tuple[Tensor, Tensor]:
        """The error of eps and the loss of every sample, on every process, in float64.

        module: the module that is trained.
        rank, world: the number of this process, and that of all processes.
        """
        count: int = len(self.data)
        size, training = module.settings.micro_batch(world), module.denoiser.training
        module.denoiser.eval()
        shares = (
            [min(first + rank + world * k, count - 1) for k in range(size)]
            for first in range(0, count, size * world)
        )
        parts = [self._measure_batch(module, share) for share in shares]
        module.denoiser.train(training)
        errors, losses = (module.gather(list(field)) for field in zip(*parts, strict=True))
        return errors[:count], losses[:count]

    def _measure_batch(self, module: Module, numbers: list[int]) -> tuple[Tensor, Tensor]:
        batch = default_collate([self.data[number] for number in numbers])
        given = moved(batch, module.device)
        draw = InBins(module.settings.seed, numbers)
        # The run's own objective may have two stages; these are the parts of the second.
        plain = Objective(module.objective.weighting, module.objective.density)
        losses = plain.evaluate(module.denoiser, given.pop("x"), generator=draw, **given)
        level = module.denoiser.schedule.level(losses.logsnr)
        kappa = module.denoiser.output.log_kappa(level).exp()
        return losses.error.cpu().double() / kappa.cpu(), losses.loss


def _edges(objective: Objective) -> list[float]:
    """The edges of the bins, from the data's end to the noise's; the outermost may be infinite."""
    inner = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)[1:-1]
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    first, last = objective.density.logsnr(ends).tolist()
    return [first, *objective.density.logsnr(inner).tolist(), last]


def picture(folder: Path) -> bytes:
    """A PNG of the error over logsnr, with a line for each measurement; later ones are darker."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines: dict[int, list[tuple[float, float]]] = {}
    for row in read_rows(folder / VALIDATION):
        ends = [float(row[name]) for name in ("logsnr_low", "logsnr_high")]
        finite = [end for end in ends if math.isfinite(end)]
        if finite and row["error"]:
            middle = sum(finite) / len(finite)
            lines.setdefault(int(row["step"]), []).append((middle, float(row["error"])))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (step, points) in enumerate(sorted(lines.items())):
        shade = 0.15 + 0.85 * (number + 1) / len(lines)
        named = f"step {step}" if number in (0, len(lines) - 1) else None
        axes.plot(*zip(*points, strict=True), color="tab:blue", alpha=shade, label=named)
    axes.set(xlabel="log-SNR", ylabel="error of eps", yscale="log")
    axes.legend()
    return pictures.chart(figure, dpi=120)
