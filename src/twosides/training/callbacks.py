"""The callbacks that run after each optimizer step: averaging, the log, progress and pictures."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
from torch import Tensor

from twosides.denoiser import Denoiser
from twosides.display.progress import bar
from twosides.storage import models
from twosides.storage.files import write_file
from twosides.storage.tensors import whole
from twosides.training.ema import PowerEMA, first_names
from twosides.training.finite import require_finite
from twosides.training.flops import flops_per_sample
from twosides.training.log import Log
from twosides.training.settings import Settings


class Averaging(lightning.Callback):
    """The power-function average of the weights (`ema`), kept in checkpoints with its counter."""

    def __init__(self, denoiser: Denoiser, sigma_rel: float) -> None:
        """Prepare to average the denoiser's trained parameters.

        denoiser: the denoiser that is trained.
        sigma_rel: the relative width of the average, in (0, 0.288).
        """
        self.denoiser, self.sigma_rel, self.seen = denoiser, sigma_rel, 0
        self.description = models.describe_denoiser(denoiser)
        self.restored: dict[str, Any] | None = None
        self.result: Denoiser | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to average. Only now the parameters are on their device, and sharded."""
        self.ema = PowerEMA(self.denoiser, self.sigma_rel)
        if self.restored is not None:
            self.ema.load_state_dict(self.restored)
            self.restored = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Continue to count at the number of steps that were made."""
        self.seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in every optimizer step once."""
        if trainer.global_step != self.seen:
            self.seen = trainer.global_step
            self.ema.update(self.denoiser)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Gather the result while the processes are still connected, even if no step was made."""
        self.result = self.copy_average(first=trainer.is_global_zero)

    def state_dict(self) -> dict[str, Any]:
        """The average and its counter."""
        return self.ema.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the average and its counter until training starts."""
        self.restored = state_dict

    @contextlib.contextmanager
    def substitute(self, denoiser: Denoiser) -> Iterator[None]:
        """Put the average in the place of the weights; ValueError for one that is not finite."""
        self._require_finite()
        with self.ema.substitute(denoiser):
            yield

    def _require_finite(self) -> None:
        # Loss and gradient were finite, but not what the optimizer or a callback made of them.
        require_finite(self.ema.weights, f"the average of step {self.ema.steps}")

    def copy_average(self, *, first: bool = True) -> Denoiser | None:
        """A copy of the denoiser with the average's weights, for the first process only.

        All processes have to call this, because sharded weights are gathered, one at a time.
        ValueError for an average that is not finite.

        first: whether this is the first process; the others get None.
        """
        self._require_finite()
        state: dict[str, Tensor] = {}
        first_name = first_names(self.denoiser)
        for name, value in self.denoiser.state_dict().items():
            average = self.ema.weights.get(first_name.get(name, name))
            gathered = whole(value if average is None else average)
            if first:
                state[name] = gathered.to("cpu", copy=True)
        if not first:
            return None
        copy = models.build_denoiser(self.description, like=self.denoiser)
        copy.load_state_dict(state)
        return copy.eval()


class Recording(lightning.Callback):
    """The callback that gives the losses of the whole batch to the objective and to the log."""

    def __init__(self, log: Log, settings: Settings, description: dict[str, Any]) -> None:
        """Prepare to record.

        log: the log of the run.
        settings: the settings of the run.
        description: the description of the denoiser, whose operations are counted.
        """
        self.journal, self.settings, self.description = log, settings, description
        self.seen, self.flops, self.since = 0, None, (0.0, 0)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Continue the log after the steps that were made."""
        self.seen = trainer.global_step
        self.journal.begin(self.seen, active=trainer.is_global_zero)
        self.since = (time.monotonic(), self.seen)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record a step after its last micro-batch."""
        step = trainer.global_step
        if step == self.seen:
            return
        if self.flops is None and self.journal.active:
            reads = getattr(pl_module.objective, "reads", ())
            told = {name: value for name, value in batch["batch"].items() if name not in reads}
            self.flops = flops_per_sample(pl_module.denoiser, self.description, told)
        self.seen = step
        logs, adapts = step % self.settings.log_every == 0, pl_module.bins is not None
        last = step >= self.settings.steps
        taken = pl_module.take_losses(wanted=logs or adapts or last)
        if taken is None:
            return
        losses, extra = taken
        if adapts:
            pl_module.objective.observe(losses)  # pyright: ignore[reportAttributeAccessIssue]
        if logs:
            values = {"loss": float(losses.loss.mean())}
            values["gradient_norm"] = float(whole(pl_module.gradient_norm))
            values["learning_rate"] = pl_module.learning_rate
            if extra is not None:
                values["auxiliary"] = float(extra.mean())
            self.journal.write(step, values)
            self._speed(step, trainer.world_size)

    def _speed(self, step: int, world: int) -> None:
        then, before = self.since
        now = time.monotonic()
        rate = self.settings.batch * (step - before) / max(now - then, 1e-9)
        self.since, values = (now, step), {"samples_per_second": rate}
        if self.flops:
            values["tflops"] = rate * self.flops / 1e12
            if self.settings.peak_tflops:
                values["mfu"] = values["tflops"] / (world * self.settings.peak_tflops)
        self.journal.write(step, values, speed=True)


class Watching(lightning.Callback):
    """The callback that shows progress with the time left, and draws pictures on the way."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        average: Averaging,
        draw: Callable[..., bytes] | None,
    ) -> None:
        """Prepare to watch.

        folder: the folder of the run.
        settings: the settings of the run.
        average: the average that is drawn.
        draw: makes the bytes of a PNG of a denoiser; None for no pictures.
        """
        self.folder, self.settings, self.average, self.draw = folder, settings, average, draw
        self.open, self.seen = contextlib.ExitStack(), 0
        self.tell: Callable[[int, int], None] = lambda done, total: None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the progress bar."""
        self.seen = trainer.global_step
        if trainer.is_global_zero:
            self.tell = self.open.enter_context(bar("training", self.settings.steps))

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the progress and draw a picture, after the last micro-batch of a step."""
        step, settings = trainer.global_step, self.settings
        if step == self.seen:
            return
        self.seen = step
        self.tell(step, settings.steps)
        if self.draw and settings.picture_every and step % settings.picture_every == 0:
            averaged = self.average.copy_average(first=trainer.is_global_zero)
            if averaged is not None:
                self._show(averaged.to(pl_module.device), step)

    def _show(self, averaged: Denoiser, step: int) -> None:
        """Write a picture, or warn why there is none: training goes on."""
        assert self.draw is not None
        try:
            write_file(self.folder / f"samples/step-{step:08d}.png", self.draw(averaged))
        except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
            warnings.warn(f"no picture at step {step}: {error}", stacklevel=2)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the progress bar."""
        self.open.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the progress bar."""
        self.open.close()
