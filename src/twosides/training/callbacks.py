"""What happens after each optimizer step: average, adapt, log, show, stop."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable
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
from twosides.training.flops import flops_per_sample
from twosides.training.log import Log
from twosides.training.settings import Settings


class Averaging(lightning.Callback):
    """The power-function average, in the checkpoint with its counter."""

    def __init__(self, denoiser: Denoiser, sigma_rel: float) -> None:
        """Averages the denoiser's trained parameters, wherever they are when training starts."""
        self.denoiser, self.sigma_rel, self.seen = denoiser, sigma_rel, 0
        self.description = models.describe_denoiser(denoiser)
        self.restored: dict[str, Any] | None = None
        self.result: Denoiser | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Only now the parameters are on their device, and sharded."""
        self.ema = PowerEMA(self.denoiser, self.sigma_rel)
        if self.restored is not None:
            self.ema.load_state_dict(self.restored)
            self.restored = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Count on from the steps that were made."""
        self.seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in every optimizer step once."""
        if trainer.global_step != self.seen:
            self.seen = trainer.global_step
            self.ema.update(self.denoiser)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Gather the result while the processes are still together, after no step at all too."""
        self.result = self.averaged(first=trainer.is_global_zero)

    def state_dict(self) -> dict[str, Any]:
        """The average and its counter."""
        return self.ema.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them, once training starts."""
        self.restored = state_dict

    def averaged(self, *, first: bool = True) -> Denoiser | None:
        """A copy of the denoiser with the average's weights, for the first process only.

        All processes call this: sharded weights are gathered one at a time.
        """
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
    """The losses of the whole batch, for the objective that adapts to them and for the log."""

    def __init__(self, log: Log, settings: Settings, description: dict[str, Any]) -> None:
        """`description` is the denoiser's, whose operations are counted."""
        self.journal, self.settings, self.description = log, settings, description
        self.seen, self.flops, self.since = 0, None, (0.0, 0)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Go on with the log of the steps that were made."""
        self.seen = trainer.global_step
        self.journal.begin(self.seen, active=trainer.is_global_zero)
        self.since = (time.monotonic(), self.seen)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the last micro-batch of a step."""
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
    """Progress with the time left, and pictures on the way."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        average: Averaging,
        draw: Callable[..., bytes] | None,
    ) -> None:
        """`draw(denoiser) -> PNG bytes` makes the pictures."""
        self.folder, self.settings, self.average, self.draw = folder, settings, average, draw
        self.open, self.seen = contextlib.ExitStack(), 0
        self.tell: Callable[[int, int], None] = lambda done, total: None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the bar."""
        self.seen = trainer.global_step
        if trainer.is_global_zero:
            self.tell = self.open.enter_context(bar("training", self.settings.steps))

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show and draw, after the last micro-batch of a step."""
        step, settings = trainer.global_step, self.settings
        if step == self.seen:
            return
        self.seen = step
        self.tell(step, settings.steps)
        if self.draw and settings.picture_every and step % settings.picture_every == 0:
            averaged = self.average.averaged(first=trainer.is_global_zero)
            if averaged is not None:
                self._show(averaged.to(pl_module.device), step)

    def _show(self, averaged: Denoiser, step: int) -> None:
        """A picture, or why there is none: training goes on."""
        assert self.draw is not None
        try:
            write_file(self.folder / f"samples/step-{step:08d}.png", self.draw(averaged))
        except (ValueError, TypeError, RuntimeError, KeyError, AttributeError) as error:
            warnings.warn(f"no picture at step {step}: {error}", stacklevel=2)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the bar."""
        self.open.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the bar."""
        self.open.close()
