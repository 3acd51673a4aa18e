"""How samples are wanted: one object that samples, shards, workers, pipelines and reports take.

A request is made of names once, where a user's words come in:

    request = Request.of(sampler="dpmpp-2m", noise="eta(1)", steps=12, labels="AB", seed=3)

and is handed on as it is. Which model is sampled, where the samples go, and whether the model's
code is trusted are no part of it.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, fields
from typing import Any

from twosides.mixing import rule_named
from twosides.naming import unknown
from twosides.sampling.grids import Grid
from twosides.sampling.named import sampler_named
from twosides.sampling.noise import Stochasticity
from twosides.sampling.presets import samplers
from twosides.sampling.sampler import Sampler
from twosides.schedules import Schedule, schedule_named
from twosides.storage import parts
from twosides.storage.devices import device_named

WHOLE = {"steps": 1, "seed": 0, "count": 1}  # the fields that are whole numbers, and the least


@dataclass(frozen=True)
class Request:
    """How to sample.

    sampler: the name of a preset, with numbers if it takes some, or a Sampler. On a diffusers
        pipeline a name keeps the pipeline's own grid, a Sampler brings its grid along.
    steps: at least 1, of the sampler.
    schedule: the noise schedule to sample on, by default (None) the model's own.
    guidance: the scale of classifier-free guidance; by default (None) a pipeline's own, and 1,
        which is none, of a model.
    rule: how guidance mixes its two estimates, a name of `mixing.RULES`, with numbers if it takes
        some, such as "apg" or "rescale(0.5)"; by default (None) as classifier-free guidance does.
    labels: the classes to draw, repeated over the samples: a letter each ("AB"), words with commas
        ("cat,dog"), or a tuple of names; by default (None) all classes in turn.
    prompt: the text to draw, for pipelines that read text and models trained on captions.
    negative_prompt: the text that guidance leads away from, by default the empty one.
    seed: at least 0; sample i depends on (seed, i) only.
    count: the number of samples, at least 1; by default (None) what suits the model and the rest.
    device: where the network computes: "auto", the accelerator if there is one and else the CPU, or
        one by its name, "cpu", "cuda:1", "mps", ...
    """

    sampler: str | Sampler = "ddim"
    steps: int = 20
    schedule: Schedule | None = None
    guidance: float | None = None
    labels: str | tuple[str, ...] | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    seed: int = 0
    count: int | None = None
    device: str = "auto"
    rule: str | None = None

    @classmethod
    def of(
        cls,
        sampler: str | Sampler = "ddim",
        *,
        noise: str | Stochasticity | None = None,
        grid: str | Grid | None = None,
        schedule: str | Schedule | None = None,
        **others: Any,
    ) -> Request:
        """A request from names; `others` are its fields. TypeError for one that it has not.

        >>> Request.of("ddim", schedule="flow-matching", seed=3).schedule
        FlowMatching()
        """
        known = [field.name for field in fields(cls)] + ["noise", "grid"]
        for name in others.keys() - known:
            raise TypeError(str(unknown("option of sampling", name, known)))
        whole = noise is None and grid is None
        chosen = sampler if whole else sampler_named(sampler, noise, grid)
        where = schedule_named(schedule) if schedule is not None else None
        for name in WHOLE.keys() & others.keys():
            if others[name] is not None:
                others[name] = _whole(name, others[name], WHOLE[name])
        return cls(chosen, schedule=where, **others)

    def __post_init__(self) -> None:
        """ValueError for what no model could do."""
        # Now, so that wrong names are said here.
        sampler_named(self.sampler)
        device_named(self.device)
        for name, least in WHOLE.items():
            value = getattr(self, name)
            if value is not None:
                _whole(name, value, least)
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, got {self.guidance}")
        if self.rule is not None:
            rule_named(self.rule)
            if self.guidance in (None, 1.0):
                raise ValueError(
                    f"the rule {self.rule} mixes the two estimates of guidance; pass guidance=4.0"
                )
        if self.labels is not None:
            if not self.labels:
                raise ValueError(
                    "no label was given: labels are one letter or more, or words with commas; "
                    "leave them out for all classes in turn"
                )
        if self.negative_prompt is not None and self.prompt is None:
            raise ValueError(
                "a negative prompt is what guidance leads away from a prompt; say that too: "
                "prompt='a red hat'"
            )

    @property
    def scale(self) -> float:
        """The guidance scale of a model, for which none was asked if none was given."""
        return 1.0 if self.guidance is None else self.guidance

    def to_json(self) -> dict[str, Any]:
        """For a file or another process: a preset as its name, all else by classes and numbers."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        known = isinstance(self.sampler, str) and self.sampler in (*samplers, "auto")
        sampler = self.sampler if known else parts.describe(sampler_named(self.sampler))
        if self.rule is None:  # as before there were rules, so that runs of then go on
            del values["rule"]
        return {**values, "sampler": sampler, "schedule": parts.describe(self.schedule)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Request:
        """The request that `to_json` wrote."""
        names = ("sampler", "schedule", "labels")
        restored = {name: parts.restore(values[name]) for name in names}
        return cls(**{**values, **restored})

    def __str__(self) -> str:
        """In words, for the line that a command ends with.

        >>> print(Request("ddim", 10, guidance=1.5))
        ddim, 10 steps, seed 0, guidance 1.5
        """
        sampler = self.sampler
        if isinstance(sampler, Sampler):
            sampler = f"{sampler.solver} on {sampler.grid} with {sampler.stochasticity}"
        scale = f", guidance {self.guidance:g}" if self.guidance is not None else ""
        scale += f" by {self.rule}" if self.rule is not None else ""
        return f"{sampler}, {self.steps} steps, seed {self.seed}{scale}"


def _whole(name: str, value: Any, least: int) -> int:
    """The value as an int; ValueError if it is none, or too small."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        kind = "non-negative" if least == 0 else f"at least {least}"
        raise ValueError(f"{name} must be {kind}, a whole number, got {value!r}")
    return number
