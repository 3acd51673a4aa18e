"""The reasons that end a run before its last step: NaN or infinity, a time limit, a signal.

All three are checked in one place, before any other callback of a step. A run that is stopped by
`minutes`, SIGTERM or SIGINT stops at the end of the step that is being made: `SaveCheckpoints`
writes a checkpoint of it, and the same command continues from there, so that no work is lost. A
second signal ends the process at once.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import lightning.pytorch as lightning
import torch

from twosides.training.finite import NEVER, FirstStep, local, minimum_of_processes
from twosides.training.settings import Settings

REASONS = ("", "the time limit", "SIGTERM", "SIGINT")
"""The reasons to stop. Processes agree on one by its index."""
_SIGNALS = {signal.SIGTERM: 2, signal.SIGINT: 3}


class Guard(lightning.Callback):
    """The callback that ends a run in order, on all processes at the same step.

    A single process checks the clock and its signals after every step. Several have to agree, which
    takes a message, so they check where the log is written and before anything else is written.
    """

    def __init__(self, settings: Settings) -> None:
        """Prepare to guard.

        settings: they state the time limit, and at which steps something is written.
        """
        self.settings, self.seen, self.stopped = settings, 0, ""
        self.waits = True  # whether reading a number of the device makes the host wait
        self._asked, self._began = 0, 0.0
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock, and handle signals."""
        self.first, self.seen = FirstStep(pl_module.device), trainer.global_step
        self.waits = pl_module.device.type != "cpu" or trainer.world_size > 1
        self._began = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}

    def _note(self, number: int, frame: Any) -> None:
        """Note a signal; at the second one, do what was done before this run."""
        if self._asked in _SIGNALS.values():
            self._restore()
            return signal.raise_signal(number)
        self._asked = _SIGNALS[signal.Signals(number)]

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the step that was made, after its last micro-batch."""
        step, settings = trainer.global_step, self.settings
        if step == self.seen:
            return
        self.seen = step
        # The loss scaler of float16 skips steps with infinite gradients, by which it finds its
        # scale.
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
        """Read the numbers on the device: ValueError that names a step, or an orderly stop."""
        asked = torch.tensor([-self._asked], device=self.first.steps.device)
        noted = torch.cat([self.first.steps, asked])
        loss, gradient, stop = minimum_of_processes(noted).tolist()
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
        """Restore the handlers of signals."""
        self._restore()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Restore the handlers of signals."""
        self._restore()


def ignore_signals(worker: int) -> None:
    """Ignore signals in a process that reads data: the process that trains ends it."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
