"""Other ways to mix estimates than classifier-free guidance: rules, and more than two denoisers.

A *guidance rule* is a function of what a strong and a weak estimate say, o and w, and of the scale
s; guidance itself is `w + s (o - w)`. Unlike it, a rule depends on the output in which it acts, the
one its paper has unless another is asked for: the same rule in u, for flow models, and in eps or v,
for diffusion, is the same formula of other numbers. At scale 1 each gives the strong estimate.

| rule | formula, the norm and the product being those of a sample | acts in |
|---|---|---|
| `projected` (APG) | `o + (s - 1) (d_orthogonal + eta d_parallel)`, d = o - w beside o | x |
| `zero_star` (CFG-Zero*) | `c w + s (o - c w)`, `c = o . w / w . w` | u |
| `tangential` (TCFG) | guidance with w's part along the main axis of o and w for w | eps |
| `magnitude` (MAMBO-G) | guidance with `1 + (s - 1) exp(-k norm(o - w) / norm(w))` for s | u |
| `rescaled` | what was guided, with part of its spread brought back to o's | x |

    Eliminating Oversaturation and Artifacts of High Guidance Scales, Sadat+ 2024,
    arxiv.org/abs/2410.02416 (APG)
    CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching, Fan+ 2025,
    arxiv.org/abs/2503.18886
    TCFG: Tangential Damping Classifier-free Guidance, Kwon+ 2025, arxiv.org/abs/2503.18137
    MAMBO-G: Magnitude-Aware Mitigation for Boosted Guidance, arxiv.org/abs/2508.03442
    Common Diffusion Noise Schedules ... Are Flawed, Lin+ 2023, arxiv.org/abs/2305.08891
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from twosides.denoiser import Around, BaseDenoiser, Denoises, as_denoiser
from twosides.outputs import Estimate, Output, output_named
from twosides.schedules import Level, Schedule, along_batch

# mix(guided, strong, weak, scale): tensors of one output, and what becomes of the first.
Mix = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


@dataclass(frozen=True)
class Rule:
    """A guidance rule.

    mix: a function of what classifier-free guidance, the strong and the weak estimate say in an
        output, and of the scale (a number, or one that fits the tensors), to what is said instead.
    output: the output, such as "x", "u" or "eps".
    """

    mix: Mix
    output: str | Output = "x"

    def apply(
        self,
        guided: Estimate,
        strong: Estimate,
        weak: Estimate,
        scale: Any,
        level: Level,
        schedule: Schedule,
    ) -> Estimate:
        """The pair after the rule, with `z = alpha x + sigma eps` as before.

        ValueError where the output says nothing of the pair, x at zero noise, eps at zero SNR.
        """
        output = output_named(self.output, schedule)
        says, o, w = (output.of(*estimate, level) for estimate in (guided, strong, weak))
        change = self.mix(says, o, w, scale) - says
        x, eps = output.solve(level).apply(torch.zeros_like(change), change)
        return Estimate(guided.x + x, guided.eps + eps)


def projected(eta: float = 0.0, longest: float = math.inf, output: str | Output = "x") -> Rule:
    """Adaptive projected guidance without its momentum [Sadat+ 2024, eq. 8 and 9].

    eta: what is left of the part of the difference that is parallel to the strong estimate, which
        saturates colours; 1 leaves all of it.
    longest: the difference is shortened to this length, > 0.
    """
    if not longest > 0:
        raise ValueError(f"the longest difference is positive, got {longest}")
    return Rule(partial(_projected, eta=eta, longest=longest), output)


def zero_star(output: str | Output = "u") -> Rule:
    """CFG-Zero* [Fan+ 2025]: the weak estimate in the length that fits the strong one best.

    The paper also leaves out the first steps; a schedule that starts later does that.
    """
    return Rule(_zero_star, output)


def tangential(output: str | Output = "eps") -> Rule:
    """Tangential damping [Kwon+ 2025]: of the weak estimate, the part that both have in common.

    The main axis of the pair is its first right singular vector, `cos(t) o + sin(t) w` up to its
    length, with `tan(2 t) = 2 o . w / (o . o - w . w)`, so that no decomposition is needed.
    """
    return Rule(_tangential, output)


def magnitude(damping: float = 8.0, output: str | Output = "u") -> Rule:
    """Magnitude-aware guidance [MAMBO-G]: the less, the larger the difference is beside `weak`.

    damping: k, >= 0; 0 is plain guidance.
    """
    if not 0 <= damping < math.inf:
        raise ValueError(f"damping is at least 0 and finite, got {damping}")
    return Rule(partial(_magnitude, damping=damping), output)


def rescaled(fraction: float = 0.7, output: str | Output = "x") -> Rule:
    """The deviation of each sample brought back to the strong estimate's [Lin+ 2023, eq. 15-16].

    fraction: how much of it, in [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"the fraction to rescale is in [0, 1], got {fraction}")
    return Rule(partial(_rescaled, fraction=fraction), output)


# What the rules compute; functions of the module, so that a guided denoiser can be pickled.


def _projected(
    guided: Tensor, strong: Tensor, weak: Tensor, scale: Any, *, eta: float, longest: float
) -> Tensor:
    change = strong - weak
    change = change * (longest / _norm(change)).clamp(max=1.0)
    square = _dot(strong, strong)
    parallel = torch.where(square > 0, _dot(change, strong) / square, 0.0) * strong
    return strong + (scale - 1) * (change + (eta - 1) * parallel)


def _zero_star(guided: Tensor, strong: Tensor, weak: Tensor, scale: Any) -> Tensor:
    square = _dot(weak, weak)
    fitted = torch.where(square > 0, _dot(strong, weak) / square, 1.0) * weak
    return fitted + scale * (strong - fitted)


def _tangential(guided: Tensor, strong: Tensor, weak: Tensor, scale: Any) -> Tensor:
    both, gap = 2 * _dot(strong, weak), _dot(strong, strong) - _dot(weak, weak)
    length = torch.hypot(both, gap)
    one = length == 0
    cross = torch.where(one, 0.0, both / length) / 2
    own = torch.where(one, 1.0, 1 - gap / length) / 2
    common = cross * strong + own * weak
    return common + scale * (strong - common)


def _magnitude(
    guided: Tensor, strong: Tensor, weak: Tensor, scale: Any, *, damping: float
) -> Tensor:
    change, length = strong - weak, _norm(weak)
    ratio = torch.where(length > 0, _norm(change) / length, math.inf)
    return weak + (1 + (scale - 1) * torch.exp(-damping * ratio)) * change


def _rescaled(
    guided: Tensor, strong: Tensor, weak: Tensor, scale: Any, *, fraction: float
) -> Tensor:
    was, wanted = (o.flatten(1).std(1, correction=0) for o in (guided, strong))
    ratio = torch.where(was > 0, wanted / was, 1.0)
    return guided + along_batch(fraction * (ratio - 1), guided) * guided


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The product of each sample, of a shape that fits it."""
    return along_batch((a * b).flatten(1).sum(1), a)


def _norm(a: Tensor) -> Tensor:
    return _dot(a, a).sqrt()


class Told(Around):
    """A denoiser that is told some conditioning by us; see `told`."""

    def __init__(self, denoiser: BaseDenoiser, conditioning: dict[str, Any]) -> None:
        """See `told`."""
        super().__init__(denoiser)
        self.conditioning = conditioning

    def forward(self, z: Tensor, level: Level, **conditioning: Any) -> Estimate:
        """(x, eps) under both conditionings, ours before the caller's."""
        rows = {
            name: value.expand(len(z), *value.shape[1:])
            if isinstance(value, Tensor) and value.ndim and len(value) == 1
            else value
            for name, value in self.conditioning.items()
        }
        return self.denoiser(z, level, **{**conditioning, **rows})


def told(denoiser: Denoises, **conditioning: Any) -> BaseDenoiser:
    """The denoiser with some of its conditioning fixed, such as a prompt's embedding or a class.

    conditioning: tensors with one row for all samples or one for each, and anything else as it is.
    """
    return Told(as_denoiser(denoiser), conditioning)


class Combined(Around):
    """`sum_i w_i denoiser_i`; see `combined`."""

    def __init__(self, parts: Sequence[tuple[BaseDenoiser, Any]]) -> None:
        """See `combined`."""
        super().__init__(parts[0][0])
        self.others = nn.ModuleList(
            part if isinstance(part, nn.Module) else Around(part) for part, _ in parts[1:]
        )
        self.weights = [weight for _, weight in parts]

    def forward(self, z: Tensor, level: Level, **conditioning: Any) -> Estimate:
        """The combined (x, eps); each denoiser is told the same."""
        x, eps = torch.zeros_like(z), torch.zeros_like(z)
        for part, weight in zip((self.denoiser, *self.others), self.weights, strict=True):
            estimate = part(z, level, **conditioning)
            weight = along_batch(weight(level), z) if callable(weight) else weight
            weight = weight.to(z) if isinstance(weight, Tensor) else weight
            x, eps = x + weight * estimate.x, eps + weight * estimate.eps
        return Estimate(x, eps)


def combined(parts: Sequence[tuple[Denoises, Any]]) -> BaseDenoiser:
    """`sum_i w_i denoiser_i` of any number of denoisers, the same in every output.

    parts: (denoiser, weight) pairs. A weight is a number, a tensor that fits a sample (a region),
        or a function of the level. Together they are 1, or z would not be alpha x + sigma eps.

    Two prompts and a negative one are weights 2, 2 and -3 of denoisers that are `told` each; an
    instruction to edit an image [InstructPix2Pix, Brooks+ 2022, arxiv.org/abs/2211.09800, eq. 3] is
    1 - s_image, s_image - s_text and s_text of those told nothing, the image, and both; and a
    network weakened by hooks (skipped layers, perturbed attention) is one of two. ValueError for
    weights that do not sum to 1.

        >>> import twosides as ts
        >>> left, right = (ts.oracle.GaussianMixture.gaussian([m], [[1.0]]) for m in (-1.0, 1.0))
        >>> between = combined([(left, 0.25), (right, 0.75)])
        >>> between(torch.zeros(1, 1), ts.FlowMatching().at(1.0)).x
        tensor([[0.5000]])
    """
    if not parts:
        raise ValueError("combined needs (denoiser, weight) pairs, got none")
    total = sum(torch.as_tensor(w, dtype=torch.float64) for _, w in parts if not callable(w))
    stated = not any(callable(weight) for _, weight in parts)
    if stated and not torch.allclose(torch.as_tensor(total), torch.ones(1).double(), atol=1e-5):
        raise ValueError(f"the weights of combined denoisers sum to 1, these to {total}")
    return Combined([(as_denoiser(denoiser), weight) for denoiser, weight in parts])
