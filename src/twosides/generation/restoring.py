"""Samples of a model under a condition: what `twosides restore` and `sample --reward` run."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from twosides.conditioning import nested
from twosides.data.decode import MAX_BYTES, Frame, open_image
from twosides.denoiser import Around, BaseDenoiser, as_denoiser
from twosides.display import pictures
from twosides.display.progress import Progress, bar
from twosides.generation.notes import Notes, load_model, read_notes
from twosides.generation.request import Request
from twosides.generation.samples import guide, label_tensor, schedule_to_start_on
from twosides.naming import unknown
from twosides.outputs import Estimate
from twosides.posteriors.measurement import Measurement
from twosides.posteriors.operators import OPERATORS, Operator, inpaint
from twosides.posteriors.posterior import posterior
from twosides.posteriors.steering import Steered, steer
from twosides.sampling.named import plan, sampler_named
from twosides.sampling.plan import Plan
from twosides.sampling.sample import sample
from twosides.schedules import Level
from twosides.storage.files import write_file
from twosides.storage.reading import read_file
from twosides.storage.trust import import_object

COUNT = 4  # samples of which each is restored or steered, if nobody says how many


def restore(
    folder: Path,
    damaged: Path,
    out: Path,
    request: Request,
    *,
    operator: str,
    noise: float,
    method: str = "mmps",
    particles: int = 1,
    trust_code: bool = False,
) -> tuple[Tensor, str]:
    """Pictures that a damaged one may have been, into a .png or .npy; they, and a line about them.

    folder: the model's or run's.
    damaged: a picture as the operator leaves it, or a .npy of what it makes of one sample.
    out: the file. A .png shows what was damaged first.
    request: how to sample, and how many. Without labels, a model with classes is told none.
    operator: as in `operator_named`.
    noise: the deviation of the damage's noise, where black is -1 and white 1.
    method: of `posterior`.
    particles: for each picture; 1 for none.
    trust_code: whether the network's class and the operator may be imported.
    """
    _accept(out)
    if particles < 1:
        raise ValueError(f"particles must be at least 1, got {particles}")
    notes = read_notes(folder)
    notes.refuse_captions()
    apply = operator_named(operator, notes.shape, trust_code=trust_code)
    value = _value(damaged, apply, notes.shape, operator)[None]
    seen = Measurement(apply, value, noise)
    run = _Run(notes, request, load_model(folder, trust_code=trust_code), unlabelled=True)
    given = posterior(run.prior, seen, method)
    with bar("restoring", run.plan.nfe) as run.tell:
        if particles > 1:
            drawn = steer(given, run.shape, **run.options(particles))
            x, told = drawn.sample, f"; {_words(drawn)}"
        else:
            x, told = sample(given, run.shape, **run.options()), ""
    residual = seen.residual(seen.predict(x)).square().mean().sqrt()
    shown = torch.cat([_shown(value, x), x]) if out.suffix == ".png" else x
    write_file(
        out, pictures.png(pictures.sheet(shown)) if out.suffix == ".png" else pictures.npy(x)
    )
    return x, f"{request}; what they would look like differs by {float(residual):.3g}{told}"


def steer_model(
    folder: Path,
    out: Path,
    request: Request,
    *,
    reward: str,
    particles: int = 16,
    trust_code: bool = False,
) -> tuple[Tensor, str]:
    """Samples of p(x) exp(reward(x)) of a model, into a .png or .npy; they, and a line about them.

    reward: `package.module:function`, from samples (B, ...) in the units of the data to (B,).
    """
    _accept(out)
    notes = read_notes(folder)
    notes.refuse_captions()
    function = import_object(reward, "reward", trust_code=trust_code)
    if not callable(function):
        raise ValueError(f"{reward} is no function of samples")
    run = _Run(notes, request, load_model(folder, trust_code=trust_code), unlabelled=False)
    with bar("steering", run.plan.nfe) as run.tell:
        drawn = steer(
            run.prior, run.shape, reward=cast("Operator", function), **run.options(particles)
        )
    x = drawn.sample
    write_file(out, pictures.png(pictures.sheet(x)) if out.suffix == ".png" else pictures.npy(x))
    return x, f"{request}; {_words(drawn)}"


def operator_named(name: str, shape: tuple[int, ...], *, trust_code: bool = False) -> Operator:
    """The operator `inpaint:mask.png | downsample:4 | blur:2 | crop:8 | module:function`.

    shape: of a sample of the model, (C, H, W), which the mask must have.

    A mask is white where pixels are known. ValueError for anything else, and for a function that is
    not trusted.
    """
    kind, _, given = name.partition(":")
    if kind == "inpaint":
        return inpaint(_picture(Path(given), (1, *shape[1:]), f"the mask of {name}") > 0)
    if kind in OPERATORS:
        try:
            number = float(given)
        except ValueError:
            raise ValueError(f"{name}: {kind} takes a number, such as {kind}:4") from None
        return OPERATORS[kind](int(number) if number == int(number) else number)
    if ":" not in name:
        raise unknown("operator", name, ["inpaint:mask.png", *(f"{k}:4" for k in OPERATORS)])
    made = import_object(name, "operator", trust_code=trust_code)
    if not callable(made):
        raise ValueError(f"{name} is no function of a batch of samples")
    return cast("Operator", made)


class _Run:
    """What a model and a request come to: a prior, the plan, shapes and conditioning."""

    def __init__(self, notes: Notes, request: Request, denoiser: Any, *, unlabelled: bool) -> None:
        sampler = sampler_named(request.sampler)
        if request.device not in ("auto", "cpu"):
            raise ValueError("restoring and rewards compute on the CPU; leave device out")
        where = request.schedule
        where = where or schedule_to_start_on(denoiser, sampler, request.steps, request.rule)
        self.plan: Plan = plan(sampler, where or denoiser.schedule, request.steps)
        self.tell: Progress = lambda done, total: None
        guided = guide(denoiser, request.scale, notes.null, request.rule)
        self.prior = _Counted(as_denoiser(guided), self)
        self.seed, count = request.seed, request.count or COUNT
        self.shape = (count, *notes.shape)
        names = notes.classes if request.labels is None and not unlabelled else request.labels
        self.told = dict[str, Any]()
        if names:
            cycle = label_tensor(names, notes.classes)
            self.told = {"class_labels": cycle[torch.arange(count) % len(cycle)]}
        elif notes.classes and not notes.null:
            raise ValueError("this model was not trained without classes; say which: labels='A'")
        elif notes.classes:
            self.told = {name: torch.full((count,), value) for name, value in notes.null.items()}

    def options(self, particles: int = 0) -> dict[str, Any]:
        """What `sample` is told, or `steer`."""
        common = {"sampler": self.plan, "seed": self.seed, **nested(self.told)}
        return {**common, "particles": particles} if particles else common


class _Counted(Around):
    """A denoiser that tells how often it was asked."""

    def __init__(self, denoiser: BaseDenoiser, run: _Run) -> None:
        super().__init__(denoiser)
        self.run, self.asked = run, 0

    def forward(self, z: Tensor, level: Level, **conditioning: Any) -> Estimate:
        estimate = self.denoiser(z, level, **conditioning)
        self.asked = min(self.asked + 1, self.run.plan.nfe)
        self.run.tell(self.asked, self.run.plan.nfe)
        return estimate


def _accept(out: Path) -> None:
    if out.suffix not in (".png", ".npy"):
        raise ValueError(f"{out}: samples are written as .png or .npy, not {out.suffix!r}")


def _value(
    path: Path, apply: Callable[[Tensor], Tensor], shape: tuple[int, ...], name: str
) -> Tensor:
    """What was measured, of the shape that the operator gives."""
    wanted = tuple(apply(torch.zeros(1, *shape)).shape[1:])
    if path.suffix == ".npy":
        value = np.load(io.BytesIO(read_file(path, MAX_BYTES)), allow_pickle=False)
        if value.shape != wanted:
            raise ValueError(f"{path} has the shape {value.shape}; {name} gives {wanted}")
        return torch.from_numpy(value.astype(np.float32))
    value = _picture(path, wanted, f"{path}, of the operator {name},")
    return apply(value[None])[0] if name.startswith("inpaint:") else value


def _picture(path: Path, shape: tuple[int, ...], what: str) -> Tensor:
    """A picture of this very shape, in [-1, 1]."""
    if len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2]:
        raise ValueError(f"{what} would have the shape {shape}, and is no square picture; use .npy")
    data = read_file(path, MAX_BYTES)
    size = open_image(data).size
    if size != (shape[2], shape[1]):
        raise ValueError(
            f"{what} has {size[0]} x {size[1]} pixels, and must have {shape[2]} x {shape[1]}"
        )
    return Frame(shape[1], grey=shape[0] == 1).read(data)


def _shown(value: Tensor, x: Tensor) -> Tensor:
    """The damaged picture in the size of the others."""
    if value.ndim != 4 or value.shape[1] != x.shape[1]:
        return x[:0]
    return torch.nn.functional.interpolate(value, x.shape[2:], mode="nearest")


def _words(drawn: Steered) -> str:
    least = float((drawn.ess.min(0).values / drawn.weights.shape[1]).mean())
    return (
        f"of {drawn.weights.shape[1]} particles {int(drawn.distinct.min())} or more differ in the "
        f"end, the smallest effective share is {least:.0%}"
    )
