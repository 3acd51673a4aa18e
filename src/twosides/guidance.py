"""Guidance: functions from denoisers to denoisers.

A denoiser estimates a pair (x, eps). Classifier-free guidance and autoguidance mix a strong and a
weak pair with weights that sum to one,

    guided = weak + scale (strong - weak),

so they are the same in x, eps, u, v and score, and keep `z = alpha x + sigma eps`. A level is
(logsnr, alpha, sigma); a null value is what a network is told in the place of its conditioning
(`twosides.conditioning`). Other formulas than this one are *rules* (`twosides.mixing`).

Scales are not to be confused: a scale of 1 here is no guidance, as in diffusers' `guidance_scale`
and in Imagen's paper; Ho and Salimans' own w is this scale minus 1.

    Classifier-Free Diffusion Guidance, Ho and Salimans 2022, arxiv.org/abs/2207.12598
    Applying Guidance in a Limited Interval, Kynkaanniemi+ 2024, arxiv.org/abs/2404.07724
    Common Diffusion Noise Schedules ... Are Flawed, Lin+ 2023, arxiv.org/abs/2305.08891
    Guiding a Diffusion Model with a Bad Version of Itself, Karras+ 2024, arxiv.org/abs/2406.02507
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from twosides.conditioning import nullified
from twosides.denoiser import Around, Denoises, as_denoiser
from twosides.mixing import Rule, common_coupling, rescaled
from twosides.outputs import Estimate
from twosides.schedules import Level, along_batch


class Guided(Around):
    """The denoiser `weak + scale (strong - weak)` in an interval of logsnr, `strong` outside.

    The rules then change the guided pair one after the other.
    """

    def __init__(
        self,
        strong: Denoises,
        weak: Denoises,
        scale: float | Callable[[Level], Any],
        *,
        null: dict[str, Any],
        interval: tuple[float, float],
        rules: Sequence[Rule] = (),
    ) -> None:
        """Keep the parts, which `classifier_free` and `autoguidance` explain.

        ValueError for a number as scale that is not finite, for an interval that is reversed, and
        for two models that standardise data differently.
        """
        super().__init__(as_denoiser(strong))
        if not callable(scale) and not math.isfinite(scale):
            raise ValueError(f"guidance scale must be a finite number, got {scale}")
        if not interval[0] <= interval[1]:
            raise ValueError(f"interval is (logsnr_low, logsnr_high), got {interval}")
        self.weak, self.null = as_denoiser(weak), null
        self.coupling = common_coupling([self.denoiser, self.weak])
        self.scale, self.interval, self.rules = scale, interval, rules

    def forward(self, z: Tensor, level: Level, **conditioning: Any) -> Estimate:
        """The guided (x, eps)."""
        strong = self.denoiser(z, level, **conditioning)
        scale = self._scale(level, z)
        if isinstance(scale, float) and scale == 1.0:
            return strong
        weak = self.weak(z, level, **nullified(conditioning, self.null))
        x = weak.x + scale * (strong.x - weak.x)
        eps = weak.eps + scale * (strong.eps - weak.eps)
        guided = Estimate(x, eps)
        for rule in self.rules:
            guided = rule.apply(guided, strong, weak, scale, level, self.schedule)
        return guided

    def _scale(self, level: Level, z: Tensor) -> float | Tensor:
        """The scale at a level, 1 outside of the interval; a tensor that fits z for levels (B,)."""
        scale, (low, high) = self.scale, self.interval
        scale = scale(level) if callable(scale) else scale
        if isinstance(level.logsnr, Tensor) and level.logsnr.ndim:
            inside = (level.logsnr >= low) & (level.logsnr <= high)
            return along_batch(torch.where(inside, scale, 1.0), z)
        return float(scale) if low <= float(level.logsnr) <= high else 1.0


def classifier_free(
    denoiser: Denoises,
    scale: float | Callable[[Level], Any],
    *,
    null: dict[str, Any],
    interval: tuple[float, float] = (-math.inf, math.inf),
    rescale: float = 0.0,
    rule: Rule | None = None,
) -> Guided:
    """Classifier-free guidance [Ho & Salimans 2022]: `null + scale (conditional - null)`.

    denoiser: a model that was trained with part of its conditioning dropped.
    scale: 1 is the conditional estimate, 0 the null one, and more goes beyond the conditional one.
        It is a number, or a function of the level, such as `lambda level: 1 + 4 * level.sigma`.
    null: the names of the conditioning that is dropped, and the null values it was trained with:
        `null={"class_labels": 26}`. A number fills the tensor, one row is that of all samples.
    interval: the log-SNRs (low, high) between which the estimate is guided, by default all. In
        sampling, the null call is not made outside of it [Kynkaanniemi+ 2024].
    rescale: in [0, 1], how far the standard deviation of each sample's x is brought back to that of
        the conditional x [Lin+ 2023, eq. 15-16, applied to x, so that it does not depend on the
        schedule]; by default not at all.
    rule: another way to mix the two estimates, of `twosides.mixing`: `projected()`, `zero_star()`.

        >>> import twosides as ts
        >>> labelled = ts.Denoiser(lambda z, t, label: z * label[:, None], output="x")
        >>> guided = classifier_free(labelled, 2.0, null={"label": 1.0})
        >>> guided(torch.ones(1, 2), ts.FlowMatching().at(0.5), label=torch.tensor([3.0])).x
        tensor([[5., 5.]])
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale is a fraction in [0, 1], got {rescale}")
    rules = [*([rule] if rule else []), *([rescaled(rescale)] if rescale else [])]
    return Guided(denoiser, denoiser, scale, null=null, interval=interval, rules=rules)


def autoguidance(
    denoiser: Denoises,
    weak: Denoises,
    scale: float | Callable[[Level], Any],
    *,
    interval: tuple[float, float] = (-math.inf, math.inf),
) -> Guided:
    """Autoguidance [Karras+ 2024]: `weak + scale (denoiser - weak)`, with the same conditioning.

    denoiser: the model to guide.
    weak: a smaller or less trained model, in any notation.
    scale, interval: as in `classifier_free`.

    ValueError for two models that standardise data differently.
    """
    return Guided(denoiser, weak, scale, null={}, interval=interval)
