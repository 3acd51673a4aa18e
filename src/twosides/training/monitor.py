"""What is looked at while a network trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twosides.denoiser import Denoiser


@dataclass(frozen=True)
class Monitor:
    """What a run shows on its way; it changes nothing that is learned.

        fit(network, data, "sd3", "run", monitor=Monitor(validation=held_out))

    validation: a map-style data set, or whatever else `dataset_of` takes that has a length. Every
        `validate_every` steps the error of the averaged weights on it is measured, level by level.
    draw: makes a PNG's bytes of the averaged denoiser, every `picture_every` steps.
    loggers: more of Lightning's, beside TensorBoard.
    """

    validation: Any = None
    draw: Callable[[Denoiser], bytes] | None = None
    loggers: Sequence[Any] = ()
