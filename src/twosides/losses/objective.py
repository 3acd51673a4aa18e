"""The loss: `integral of w(logsnr) E|eps_hat - eps|^2 dlogsnr`, estimated one level per sample.

Levels are drawn from p, the error is measured on whatever the network outputs, and weighted by

    w / (p kappa),   computed as exp(log w - log p - log kappa)

which is 1 when the recipe is "plain mean squared error of the output at its own levels". Densities
and weightings that adapt learn from the losses by `observe`, which a training loop calls after each
step.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from twosides.denoiser import BaseDenoiser, Denoises, as_denoiser
from twosides.losses.densities import Density
from twosides.losses.learned import LevelBins, Uncertainty
from twosides.losses.masks import mean_square
from twosides.losses.weightings import OutputMSE, Weighting
from twosides.outputs import output_named
from twosides.randomness import PerSample, Shared, fresh_seed
from twosides.schedules import Level

Randomness = torch.Generator | PerSample | None


class Losses(NamedTuple):
    """The losses of a batch (B,).

    loss: the weighted loss of each sample.
    logsnr: the level at which it was measured, on the CPU.
    error: the (masked) mean squared error of the network's output, over a sample's elements.
    eps_error: the mean squared error of eps.
    """

    loss: Tensor
    logsnr: Tensor
    error: Tensor
    eps_error: Tensor


@dataclass(frozen=True)
class Objective:
    """A weighting, and the density from which levels are drawn.

    weighting: how much the error of a level counts.
    density: the distribution of the levels.
    stratified: whether the levels of a batch are spread evenly over the density, which cuts the
        variance of the loss several times and leaves its mean [Kingma+ 2021, appendix I.1].

        >>> import twosides as ts
        >>> objective = ts.recipes["sd3"].objective()
        >>> oracle, g = ts.oracle.GaussianMixture.ring(8), torch.Generator().manual_seed(0)
        >>> objective(oracle, oracle.sample(64, seed=0), generator=g).shape
        torch.Size([64])
    """

    weighting: Weighting
    density: Density
    stratified: bool = True

    def __post_init__(self) -> None:
        """ValueError for parts that learn from different bins."""
        if len(set(_bins((self.weighting, self.density)))) > 1:
            raise ValueError(
                f"{self.weighting} and {self.density} learn from different bins; share one"
            )

    @functools.cached_property
    def bins(self) -> LevelBins | None:
        """The running means that are learned, a module to checkpoint; None if there are none."""
        return next(_bins((self.weighting, self.density)), None)

    def observe(self, losses: Losses) -> None:
        """Learn from one step's losses, after it: those of the whole batch, on every process."""
        if self.bins is None:
            return
        stated = self.weighting
        stated = stated.base if isinstance(stated, Uncertainty) else stated
        logsnr = losses.logsnr.to("cpu", torch.float64)
        error = losses.eps_error.to("cpu", torch.float64)
        self.bins.update(logsnr, loss=stated.log(logsnr).exp() * error, error=error)

    def __call__(
        self,
        denoiser: Denoises,
        x: Float[Tensor, " batch *event"],
        *,
        generator: Randomness = None,
        loss_mask: Tensor | None = None,
        **conditioning: Any,
    ) -> Float[Tensor, " batch"]:
        """Per-sample losses, mean over the elements of a sample; take `.mean()` for the batch's.

        generator: a torch.Generator, or a PerSample whose noise and levels depend only on (seed,
        step, index); by default fresh noise. The global generator is never used.
        loss_mask: weights of the elements, 0 for padding, see `losses.masks`; not for the network.
        """
        return self.evaluate(
            denoiser, x, generator=generator, loss_mask=loss_mask, **conditioning
        ).loss

    def evaluate(
        self,
        denoiser: Denoises,
        x: Float[Tensor, " batch *event"],
        *,
        generator: Randomness = None,
        loss_mask: Tensor | None = None,
        **conditioning: Any,
    ) -> Losses:
        """The losses with the levels they were measured at."""
        x = exact(x)
        draw = _randomness(generator, x)
        u = draw.strata() if self.stratified else draw.uniform()
        logsnr = self.density.logsnr(u)
        denoiser = as_denoiser(denoiser)
        level = denoiser.schedule.level(logsnr)
        eps = draw.normal(x.shape[1:], x.dtype, x.device)
        x = denoiser.standardise(x)
        answer = denoiser.answer(level.mix(x, eps), level, **conditioning)
        target = denoiser.output.of(x, eps, level)
        log_kappa = denoiser.output.log_kappa(level)
        error = mean_square(answer - target, loss_mask)
        log_weight = self._log_weight(denoiser, level, log_kappa)
        to_loss, to_eps = torch.stack([log_weight, -log_kappa]).exp().to(error.device, error.dtype)
        return Losses(to_loss * error, logsnr, error, to_eps * error.detach())

    def at(self, step: int) -> Objective:
        """The objective of a training step: always this one. See `Staged`."""
        return self

    def _log_weight(self, denoiser: BaseDenoiser, level: Level, log_kappa: Tensor) -> Tensor:
        """`log w - log p - log kappa` of the denoiser's output."""
        if self._plain(denoiser):
            return torch.zeros_like(log_kappa)  # also at zero SNR, where parts are infinite
        weight = self.weighting.log(level.logsnr)
        ratio = weight - self.density.log_divisor(level.logsnr) - log_kappa
        return torch.where(torch.isneginf(weight), weight, ratio)

    def _plain(self, denoiser: BaseDenoiser) -> bool:
        """Whether this is the plain error of the denoiser's own output."""
        w = self.weighting
        if not isinstance(w, OutputMSE) or w.schedule != denoiser.schedule:
            return False
        return output_named(w.output, w.schedule) == denoiser.output and w.density == self.density


@dataclass(frozen=True)
class Staged:
    """One objective up to a training step and another from it on.

    first, then: the two objectives.
    step: the first step of the second, counted from 0. As the objective is a function of the step,
        a run that is resumed continues with the right one.
    """

    first: Objective
    then: Objective
    step: int

    def at(self, step: int) -> Objective:
        """The objective of a training step (counted from 0)."""
        return self.first if step < self.step else self.then

    @property
    def weighting(self) -> Weighting:
        """The weighting that is trained in the end."""
        return self.then.weighting

    @property
    def density(self) -> Density:
        """The density of the levels in the end."""
        return self.then.density


def exact(x: Tensor) -> Tensor:
    """The data in float32 at least, which is then the dtype of z, of the target and of the loss.

    In float16 and bfloat16, in which latents are often kept, the noisy z and the target would be
    rounded, and near convergence the gradient is smaller than that rounding.
    """
    if not x.is_floating_point():
        raise TypeError(f"data must be floating point, got {x.dtype}; scale images to [-1, 1]")
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _bins(part: Any) -> Iterator[LevelBins]:
    """The running means that a weighting or a density contains."""
    if isinstance(part, LevelBins):
        yield part
    elif isinstance(part, tuple) or is_dataclass(part):
        inner = part if isinstance(part, tuple) else [getattr(part, f.name) for f in fields(part)]
        for each in inner:
            yield from _bins(each)


def _randomness(generator: Randomness, x: Tensor) -> PerSample | Shared:
    if isinstance(generator, PerSample):
        if len(generator.indices) != len(x):
            raise ValueError(f"{len(generator.indices)} seeds were given for {len(x)} samples")
        return generator
    if generator is None:
        generator = torch.Generator().manual_seed(fresh_seed() & (2**63 - 1))
    return Shared(generator, len(x))
