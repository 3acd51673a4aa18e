"""Other ways to mix estimates than classifier-free guidance: rules, and more than two denoisers.

Guidance mixes a strong and a weak estimate. A *guidance rule* replaces its formula
`w + s (o - w)`, in which s is the scale, and o and w are the strong and the weak estimate as values
of one output: x, eps, u and so on (`twosides.outputs`). Guidance gives the same pair (x, eps) in
every output. A rule does not: in u, for flow models, and in eps or v, for diffusion, the same
formula is applied to other numbers. So each rule acts in the output that its paper has, unless
another is asked for. At scale 1 each rule gives the strong estimate.

| rule | formula; norms and products are taken over each sample | acts in |
|---|---|---|
| `projected` (APG) | `o + (s - 1) (d_orthogonal + eta d_parallel)`, d = o - w relative to o | x |
| `zero_star` (CFG-Zero*) | `c w + s (o - c w)`, `c = o . w / w . w` | u |
| `tangential` (TCFG) | guidance from the part of w along the main axis of o and w | eps |
| `magnitude` (MAMBO-G) | guidance with the scale `1 + (s - 1) exp(-k norm(o - w) / norm(w))` | u |
| `rescaled` | the guided estimate, with a part of its spread brought back to that of o | x |

    Eliminating Oversaturation and Artifacts of High Guidance Scales, Sadat+ 2024,
    arxiv.org/abs/2410.02416 (APG)
    CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching, Fan+ 2025,
    arxiv.org/abs/2503.18886
    TCFG: Tangential Damping Classifier-free Guidance, Kwon+ 2025, arxiv.org/abs/2503.18137
    MAMBO-G: Magnitude-Aware Mitigation for Boosted Guidance, Zhu+ 2025, arxiv.org/abs/2508.03442
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
from twosides.naming import split_call, unknown
from twosides.outputs import Estimate, Output, output_named
from twosides.schedules import Level, Schedule, along_batch

# A function of (guided, strong, weak, scale), three estimates as values of one output and a scale,
# that returns the value in place of `guided`.
Mix = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


@dataclass(frozen=True)
class Rule:
    """A guidance rule, which `twosides.guidance.classifier_free` takes.

    mix: a function of (guided, strong, weak, scale) that returns the value in place of `guided`.
        The first three are tensors (B, ...), values of `output`: of guidance `w + s (o - w)`, or of
        the rule before this one, of the strong and of the weak estimate. The scale is a number, or
        a tensor that fits them. A function of a module can be pickled, a lambda cannot.
    output: the output in which the rule acts, such as "x", "u" or "eps", or an Output.
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
        """The pair (x, eps) after the rule, with `z = alpha x + sigma eps` as before.

        guided: the guided pair so far.
        strong: the pair of the strong denoiser.
        weak: the pair of the weak denoiser.
        scale: the guidance scale, a number, or a tensor that fits the pairs.
        level: the level of z, (logsnr, alpha, sigma).
        schedule: the schedule whose velocity the output "velocity" means.

        ValueError where the output does not determine the pair, as x at zero noise and eps at zero
        SNR.
        """
        output = output_named(self.output, schedule)
        # z stays, so the change of the output alone determines the changes of x and eps.
        says, o, w = (output.of(*estimate, level) for estimate in (guided, strong, weak))
        change = self.mix(says, o, w, scale) - says
        x, eps = output.solve(level).apply(torch.zeros_like(change), change)
        return Estimate(guided.x + x, guided.eps + eps)


def projected(eta: float = 0.0, longest: float = math.inf, output: str | Output = "x") -> Rule:
    """Adaptive projected guidance, APG, without its momentum [Sadat+ 2024, eq. 8 and 9].

    The momentum is a memory of earlier calls, with which an estimate would depend on the sampler.

    eta: the factor of that part of the difference strong - weak which is parallel to the strong
        estimate. By default 0, since this part saturates colours; 1 leaves all of it. Not to be
        confused with the eta of samplers, which is a measure of noise.
    longest: the norm to which a longer difference is shortened, > 0; by default none is.
    output: the output in which the rule acts.

    ValueError for a length that is not positive.

        >>> import twosides as ts
        >>> labelled = ts.Denoiser(lambda z, t, label: z * label[:, None], output="x")
        >>> null, rule = {"label": 1.0}, projected()
        >>> guided = ts.guidance.classifier_free(labelled, 2.0, null=null, rule=rule)
        >>> guided(torch.ones(1, 2), ts.FlowMatching().at(0.5), label=torch.tensor([3.0])).x
        tensor([[3., 3.]])

    Here the difference of 3 z and z is parallel to 3 z, so that nothing is left of it.
    """
    if not longest > 0:
        raise ValueError(f"the longest difference is positive, got {longest}")
    return Rule(partial(_projected, eta=eta, longest=longest), output)


def zero_star(output: str | Output = "u") -> Rule:
    """CFG-Zero* [Fan+ 2025]: guidance from c w, the multiple of w that is nearest to o.

    The paper also leaves out the first steps. A schedule that starts later does that.

    output: the output in which the rule acts.
    """
    return Rule(_zero_star, output)


def tangential(output: str | Output = "eps") -> Rule:
    """Tangential damping, TCFG [Kwon+ 2025]: guidance from the part of w along a common axis.

    The axis is the first right singular vector of the matrix with the rows o and w. It is
    `cos(t) o + sin(t) w` up to its length, with `tan(2 t) = 2 o . w / (o . o - w . w)`, so that no
    decomposition has to be computed.

    output: the output in which the rule acts.
    """
    return Rule(_tangential, output)


def magnitude(damping: float = 8.0, output: str | Output = "u") -> Rule:
    """Magnitude-aware guidance, MAMBO-G [Zhu+ 2025]: less guidance where it would change w much.

    The guidance scale s becomes `1 + (s - 1) exp(-k norm(o - w) / norm(w))`.

    damping: k, >= 0; 0 is plain guidance. The authors use the default, 8, in diffusers.
    output: the output in which the rule acts.

    ValueError for a damping that is negative or not finite.
    """
    if not 0 <= damping < math.inf:
        raise ValueError(f"damping is at least 0 and finite, got {damping}")
    return Rule(partial(_magnitude, damping=damping), output)


def rescaled(fraction: float = 0.7, output: str | Output = "x") -> Rule:
    """The spread of each guided sample brought back to that of o [Lin+ 2023, eq. 15-16].

    The spread is the standard deviation over the numbers of a sample, which guidance enlarges.

    fraction: how far the spread is brought back, in [0, 1]; 0.7 is the paper's choice.
    output: the output in which the rule acts. In x, unlike the paper's, the result does not depend
        on the schedule.

    ValueError for a fraction outside of [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"the fraction to rescale is in [0, 1], got {fraction}")
    return Rule(partial(_rescaled, fraction=fraction), output)


# The formulas of the rules. They are functions of the module, so that a guided denoiser can be
# pickled. Where a norm that they divide by is 0, its limit or a harmless value takes its place.


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
    """The inner product of each sample, of a shape (B, 1, ...) that fits a."""
    return along_batch((a * b).flatten(1).sum(1), a)


def _norm(a: Tensor) -> Tensor:
    """The norm of each sample, of a shape (B, 1, ...) that fits a."""
    return _dot(a, a).sqrt()


RULES: dict[str, Callable[..., Rule]] = {
    "apg": projected,
    "cfg-zero*": zero_star,
    "tcfg": tangential,
    "mambo-g": magnitude,
    "rescale": rescaled,
}
"""The rules by the names of their papers."""


def rule_named(text: str) -> Rule:
    """The rule of a name, with the numbers that its function takes first, if there are any.

    text: a row of `RULES`, such as "apg" or "rescale(0.5)". ValueError for others.

        >>> rule_named("tcfg").output
        'eps'
    """
    name, numbers = split_call(text)
    if name not in RULES:
        raise unknown("guidance rule", name, RULES)
    try:
        return RULES[name](*numbers)
    except TypeError:
        raise ValueError(f"guidance rule {text!r} has more numbers than {name} takes") from None


class Told(Around):
    """A denoiser that is always told some conditioning, as `told` makes it."""

    def __init__(self, denoiser: BaseDenoiser, conditioning: dict[str, Any]) -> None:
        """Keep the denoiser, and the conditioning by its names."""
        super().__init__(denoiser)
        self.conditioning = conditioning

    def forward(self, z: Tensor, level: Level, **conditioning: Any) -> Estimate:
        """(x, eps) under both conditionings; where a name is in both, the fixed one counts."""
        rows = {
            name: value.expand(len(z), *value.shape[1:])
            if isinstance(value, Tensor) and value.ndim and len(value) == 1
            else value
            for name, value in self.conditioning.items()
        }
        return self.denoiser(z, level, **{**conditioning, **rows})


def told(denoiser: Denoises, **conditioning: Any) -> BaseDenoiser:
    """The denoiser with some of its conditioning fixed, such as a prompt's embedding or a class.

    denoiser: the denoiser that takes the conditioning.
    conditioning: tensors with one row for all samples or a row for each, and any other values,
        which are passed on as they are. They take precedence over what a caller passes.

        >>> import twosides as ts
        >>> labelled = ts.Denoiser(lambda z, t, label: z * label[:, None], output="x")
        >>> second = told(labelled, label=torch.tensor([2.0]))
        >>> second(torch.ones(1, 2), ts.FlowMatching().at(0.5)).x
        tensor([[2., 2.]])
    """
    return Told(as_denoiser(denoiser), conditioning)


class Combined(Around):
    """The denoiser `sum_i w_i denoiser_i`, as `combined` makes it."""

    def __init__(self, parts: Sequence[tuple[BaseDenoiser, Any]]) -> None:
        """Keep the denoisers and weights; schedule and units are those of the first denoiser."""
        super().__init__(parts[0][0])
        self.others = nn.ModuleList(
            part if isinstance(part, nn.Module) else Around(part) for part, _ in parts[1:]
        )
        self.weights = [weight for _, weight in parts]
        self.coupling = common_coupling([part for part, _ in parts])

    def forward(self, z: Tensor, level: Level, **conditioning: Any) -> Estimate:
        """The combined (x, eps); each denoiser is told the same conditioning."""
        x, eps = torch.zeros_like(z), torch.zeros_like(z)
        weights = [weight(level) if callable(weight) else weight for weight in self.weights]
        _check_sum(weights)
        for part, weight in zip((self.denoiser, *self.others), weights, strict=True):
            estimate = part(z, level, **conditioning)
            if isinstance(weight, Tensor):
                own = along_batch(weight, z) if weight.shape == (len(z),) else weight
                weight = own.to(z)
            x, eps = x + weight * estimate.x, eps + weight * estimate.eps
        return Estimate(x, eps)


def combined(parts: Sequence[tuple[Denoises, Any]]) -> BaseDenoiser:
    """The denoiser `sum_i w_i denoiser_i` of any number of denoisers, the same in every output.

    It has several uses. Two prompts and a negative one are three denoisers, each `told` its prompt,
    with the weights 2, 2 and -3. An instruction to edit an image [InstructPix2Pix, Brooks+ 2022,
    arxiv.org/abs/2211.09800, eq. 3] is three denoisers, told nothing, the image, and both, with the
    weights 1 - s_image, s_image - s_text and s_text. A network and the same network weakened by
    hooks (skipped layers, perturbed attention) are two.

    parts: (denoiser, weight) pairs, at least one. The denoisers estimate data in the same units. A
        weight is a number, a tensor that fits a sample (a region), or a function of the level. The
        weights sum to 1, or else z would not be alpha x + sigma eps.

    ValueError for no pairs, for denoisers that standardise data differently, and for weights that
    do not sum to 1, those that are functions in the call. Tensors on an accelerator are not looked
    at, because that would stall its queue.

        >>> import twosides as ts
        >>> left, right = (ts.oracle.GaussianMixture.gaussian([m], [[1.0]]) for m in (-1.0, 1.0))
        >>> between = combined([(left, 0.25), (right, 0.75)])
        >>> between(torch.zeros(1, 1), ts.FlowMatching().at(1.0)).x
        tensor([[0.5000]])
    """
    if not parts:
        raise ValueError("combined needs (denoiser, weight) pairs, got none")
    if not any(callable(weight) for _, weight in parts):
        _check_sum([weight for _, weight in parts])
    return Combined([(as_denoiser(denoiser), weight) for denoiser, weight in parts])


def _check_sum(weights: Sequence[Any]) -> None:
    """ValueError for weights that do not sum to 1, unless one lies on an accelerator."""
    if any(isinstance(weight, Tensor) and weight.device.type != "cpu" for weight in weights):
        return
    total = sum(torch.as_tensor(weight, dtype=torch.float64) for weight in weights)
    if not torch.allclose(torch.as_tensor(total), torch.ones(1).double(), atol=1e-5):
        raise ValueError(f"the weights of combined denoisers sum to 1, these to {total}")


def common_coupling(denoisers: Sequence[BaseDenoiser]) -> str:
    """The coupling of denoisers that are mixed: "independent" only if it is that of all.

    ValueError for denoisers that standardise data differently.
    """
    for probe in torch.tensor([0.0, 1.0], dtype=torch.float64):
        first, *others = (each.standardise(probe) for each in denoisers)
        for other in others:
            if not torch.equal(first.cpu(), other.cpu()):
                raise ValueError(
                    "the denoisers standardise data differently: their data_mean or data_std "
                    f"differ, and the number {probe:g} becomes {first} and {other}. Their "
                    "estimates are in different units and cannot be mixed"
                )
    couplings = (each.coupling for each in denoisers)
    return next((name for name in couplings if name != "independent"), "independent")
