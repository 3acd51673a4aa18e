"""What ends a run before its last step: numbers that are not finite, a time limit, a signal.

All three are looked at in one place, before any other callback of a step. A run that is stopped by
`minutes`, SIGTERM or SIGINT stops at the end of the step that is being made: `SaveCheckpoints`
writes a checkpoint of it, and the same command goes on from there, so that nothing goes backwards.
A second signal ends the process at once.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import lightning.pytorch as lightning
import torch

from twosides.training.finite import NEVER, FirstStep, local, lowest
from twosides.training.settings import Settings

REASONS = ("", "the time limit", "SIGTERM", "SIGINT")
"""Why a run was stopped, by number: processes agree on a number."""
_SIGNALS = {signal.SIGTERM: 2, signal.SIGINT: 3}


class Guard(lightning.Callback):
    """Ends a run in order, on all processes at the same step.

    One process looks at the clock and at its signals after every step. Several have to agree, which
    takes a message, so they look where the log is written and before anything else is.
    """

    def __init__(self, settings: Settings) -> None:
        """The settings say how long, and when what is written."""
        self.settings, self.seen, self.stopped = settings, 0, ""
        self.waits = True  # whether reading a number of the device makes the host wait
        self._asked, self._began = 0, 0.0
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock and listen."""
        self.first, self.seen = FirstStep(pl_module.device), trainer.global_step
        self.waits = pl_module.device.type != "cpu" or trainer.world_size > 1
        self._began = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in _SIGNALS}

    def _hear(self, number: int, frame: Any) -> None:
        """Note a signal; at the second one, do what was done before this run."""
        if self._asked in _SIGNALS.values():
            self._restore()
            return signal.raise_signal(number)
        self._asked = _SIGNALS[signal.Signals(number)]

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the step that was made, after its last micro-batch."""
        step, settings = trainer.global_step, self.settings
        if step == self.seen:
            return
        self.seen = step
        # A loss scaler (float16) skips steps with infinite gradients, and finds its scale by them.
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        losses = pl_module.take_step_losses()
        self.first.note(step, losses, None if scaled else local(pl_module.gradient_norm))
        if settings.minutes is not None and not self._asked:
            self._asked = int(time.monotonic() - self._began > 60 * settings.minutes)
        alone = trainer.world_size == 1
        if not self.waits or (alone and self._asked) or self._writes(step):
            self.look(trainer)

    def _writes(self, step: int) -> bool:
        """Whether something is written after this step."""
        s = self.settings
        every = (s.log_every, s.checkpoint_every, s.picture_every, s.validate_every)
        every += (s.snapshot_every,)
        return step >= s.steps or any(n is not None and step % n == 0 for n in every)

    def look(self, trainer: Any) -> None:
        """Read what was noted: ValueError that names a step, or an orderly stop."""
        asked = torch.tensor([-self._asked], device=self.first.steps.device)
        loss, gradient, stop = lowest(torch.cat([self.first.steps, asked])).tolist()
        if min(loss, gradient) < NEVER:
            what, step = ("loss", loss) if loss <= gradient else ("gradient", gradient)
            raise ValueError(
                f"the {what} of step {step} is not finite; the last checkpoint stays, and the same "
                "command goes on from it. Lower the learning rate, or look for NaN in the data "
                "with `twosides data`"
            )
        if stop:
            self.stopped, trainer.should_stop = REASONS[-stop], True

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Listen no more."""
        self._restore()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Listen no more."""
        self._restore()


def deaf(worker: int) -> None:
    """Processes that read data leave signals to the one that trains, which ends them."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
