"""How long, how fast and on how many processes to train."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from twosides.naming import unknown
from twosides.training.ema import gamma_of
from twosides.training.optimizers import DECAYS, OPTIMIZERS

STRATEGIES = ("auto", "ddp", "fsdp")
# Settings on which the result of a run does not depend: it may go on for longer, or elsewhere.
_FREE = (
    "steps",
    "minutes",
    "checkpoint_every",
    "picture_every",
    "validate_every",
    "log_every",
    "devices",
    "nodes",
    "strategy",
    "accumulate",
    "workers",
    "peak_tflops",
)
# Settings that were added later. Earlier runs had these values and did not record them.
_LATER = {"optimizer": "adamw", "decay": "constant"}


@dataclass(frozen=True)
class Settings:
    """How long, how fast and on how many processes to train.

    `batch` is the number of samples of one optimizer step, over all processes and the `accumulate`
    micro-batches that each of them takes one after another. `strategy`: "ddp" copies the network to
    every process, "fsdp" shards it (FSDP2), "auto" is one process or ddp. `workers` processes read
    the data. `precision` is Lightning's: "32-true", "bf16-mixed", "16-mixed", "bf16-true".

    `null` names the conditioning that is dropped with probability `dropout` and the value it then
    takes, for classifier-free guidance. `minutes` ends training early. `sigma_rel` is the relative
    width of the average whose weights become the model; every `snapshot_every` steps two averages
    are stored, of which `twosides ema` makes those of other widths. Where `picture_every` is None,
    no pictures are drawn. `clip_gradients` bounds the norm of the whole gradient (infinity: never).
    `optimizer` is "adamw", "adam", "sgd" (momentum 0.9), or a class that is called with the
    parameters and lr=; after `warmup` steps the learning rate follows `decay` to the last step:
    "constant", "linear" or "cosine", both down to 0. `peak_tflops` is what one device could do, for
    the log's mfu.
    """

    steps: int = 1000
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 50
    seed: int = 0
    sigma_rel: float = 0.1
    null: Mapping[str, int | Tensor] = field(default_factory=dict)
    dropout: float = 0.1
    minutes: float | None = None
    checkpoint_every: int = 200
    picture_every: int | None = 500
    snapshot_every: int | None = None
    validate_every: int = 500
    log_every: int = 10
    clip_gradients: float = 1.0
    precision: str = "32-true"
    devices: int | str = "auto"
    nodes: int = 1
    strategy: str = "auto"
    accumulate: int = 1
    workers: int = 0
    peak_tflops: float | None = None
    optimizer: str | Callable[..., Any] = "adamw"
    decay: str = "constant"

    def __post_init__(self) -> None:
        """ValueError for counts and rates that make no sense."""
        counts = ["steps", "batch", "nodes", "accumulate", "checkpoint_every", "validate_every"]
        rare = ("picture_every", "snapshot_every")  # None is never
        counts += ["log_every", *(name for name in rare if getattr(self, name) is not None)]
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "warmup", "workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("learning_rate", "minutes", "peak_tflops"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if not self.clip_gradients > 0:
            raise ValueError(f"clip_gradients must be positive, got {self.clip_gradients}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        gamma_of(self.sigma_rel)
        if self.devices != "auto" and not (isinstance(self.devices, int) and self.devices >= 1):
            raise ValueError(f"devices must be 'auto' or at least 1, got {self.devices!r}")
        if self.strategy not in STRATEGIES:
            raise unknown("strategy", self.strategy, STRATEGIES)
        if self.decay not in DECAYS:
            raise unknown("decay of the learning rate", self.decay, DECAYS)
        if isinstance(self.optimizer, str) and self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"{unknown('optimizer', self.optimizer, OPTIMIZERS)}; for any other pass its class"
            )
        self.micro_batch(1)

    def micro_batch(self, world: int) -> int:
        """The samples that a process takes at a time; ValueError if the batch cannot be shared.

        world: the number of processes.
        """
        shares = world * self.accumulate
        if self.batch % shares:
            raise ValueError(
                f"a batch of {self.batch} cannot be shared by {world} processes with "
                f"{self.accumulate} micro-batches each; choose a multiple of {shares}"
            )
        return self.batch // shares

    def identity(self) -> dict[str, Any]:
        """The settings that a run must keep when it is continued, as JSON."""
        kept = {name: value for name, value in asdict(self).items() if name not in _FREE}
        if not isinstance(self.optimizer, str):
            kind: Any = self.optimizer
            kept["optimizer"] = f"{kind.__module__}:{kind.__qualname__}"
        if self.decay != "constant":  # a decay depends on which step is the last
            kept["steps"] = self.steps
        for name, usual in _LATER.items():
            if kept[name] == usual:
                del kept[name]
        return {**kept, "null": {name: _digest(value) for name, value in self.null.items()}}


def _digest(null: int | Tensor) -> int | str:
    """A null value as JSON: a number itself, a tensor by its SHA-256."""
    return null if isinstance(null, int) else hashlib.sha256(null.numpy().tobytes()).hexdigest()
