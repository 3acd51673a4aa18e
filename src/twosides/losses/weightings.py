"""Weightings: the w(logsnr) in the objective `integral of w E|eps_hat - eps|^2 dlogsnr`.

Every published loss is a weighting. With an output y, the factor c of the loss as published and
levels drawn from p,

    w = p c kappa_y,    |y_hat - y|^2 = kappa_y |eps_hat - eps|^2

so most are `OutputMSE(output, schedule, density)`, the plain error of an output, times a factor:

| published as                                  | here                                          |
|-----------------------------------------------|-----------------------------------------------|
| eps, v, u, x, F error (DDPM, EDM, SD3, InDI)  | `OutputMSE(...)`                              |
| variational bound, VDM; SiT's "likelihood"    | `ELBO()`                                      |
| VDM++, SiD2: sigmoid(bias - logsnr)           | `Sigmoid(bias)`                               |
| soft-min-SNR, P2 with gamma 1                 | error of eps times `Sigmoid`                  |
| Min-SNR-gamma                                 | error of eps times `MinSNR(gamma)`            |
| P2                                            | error of eps times `P2(k, gamma)`             |
| truncated SNR, max(SNR, 1) on x               | error of eps times `TruncatedSNR()`           |
| debiased, 1/sqrt(SNR) on eps                  | error of eps times `Power(-1/2)`              |
| EDM-monotonic                                 | `Monotonic(error of F)`                       |
| a resolution shift of the weighting           | `weighting.shifted(factor)`                   |
| anything else                                 | `LogFunction(function)`                       |

Two recipes train the same model exactly when their weightings are proportional. Where w does not
rise with logsnr the loss is the variational bound of data with added noise [Kingma & Gao 2023]. A
weighting states `log w`, so that nothing overflows in the tails. It is not to be confused with the
density of the levels (`densities`).

    >>> import twosides as ts
    >>> w = ts.recipes["eps-cosine"].weighting * MinSNR(5)
    >>> w.log(torch.tensor([0.0, 5.0], dtype=torch.float64)).exp()
    tensor([0.1593, 0.0009], dtype=torch.float64)
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from twosides.losses.densities import Density
from twosides.outputs import Output, output_named
from twosides.schedules import Schedule

RANGE = 60.0  # Monotonic looks for the largest weight at logsnr in [-RANGE, RANGE]


class Weighting(abc.ABC):
    """A weighting w(logsnr) >= 0; only its shape matters, not a constant factor."""

    @abc.abstractmethod
    def log(self, logsnr: Tensor) -> Tensor:
        """The logarithm `log w(logsnr)`, for levels in float64; -inf where nothing is trained."""

    def __mul__(self, other: Weighting) -> Weighting:
        """The product of the two weightings."""
        return Product((self, other))

    def shifted(self, factor: float) -> Weighting:
        """`w(logsnr + 2 log(factor))`: the same weights at levels noisier by the factor."""
        return ShiftedWeighting(self, factor)


@dataclass(frozen=True)
class OutputMSE(Weighting):
    """The plain mean squared error of an output, at levels drawn from a density: `w = p kappa`.

    For u on flow matching w is exp(-logsnr/2)/2, for v on the cosine schedule exp(-logsnr/2)/pi. A
    level that is never drawn has no weight.

    output: the output whose error is taken, a name or an Output.
    schedule: the schedule, on which an output such as "velocity" depends.
    density: the density of the levels.
    """

    output: str | Output
    schedule: Schedule
    density: Density

    def log(self, logsnr: Tensor) -> Tensor:
        """`log p + log kappa`."""
        drawn = self.density.log_prob(logsnr)
        never = torch.isneginf(drawn)
        # A schedule has no levels outside of its range, so one inside stands in for them.
        level = self.schedule.level(torch.where(never, self._inside, logsnr))
        kappa = output_named(self.output, self.schedule).log_kappa(level)
        return torch.where(never, -math.inf, drawn + kappa)

    @functools.cached_property
    def _inside(self) -> float:
        return float(self.density.logsnr(torch.tensor(0.5, dtype=torch.float64)))

    def __str__(self) -> str:
        return f"mse({output_named(self.output, self.schedule).name})"


@dataclass(frozen=True)
class ELBO(Weighting):
    """The variational bound, `w = 1/2` (nats) [Kingma+ 2021]."""

    def log(self, logsnr: Tensor) -> Tensor:
        """`-log 2`."""
        return torch.full_like(logsnr, -math.log(2))

    def __str__(self) -> str:
        return "1/2"


@dataclass(frozen=True)
class Sigmoid(Weighting):
    """The weighting `w = sigmoid(bias - logsnr)` [Kingma & Gao 2023, Hoogeboom+ 2024].

    As a factor it is soft-min-SNR, `gamma / (gamma + SNR)`, with gamma = exp(bias).

    bias: the log-SNR at which the weight has fallen to 1/2; 2 by default, as in Kingma & Gao 2023.
    """

    bias: float = 2.0

    def __post_init__(self) -> None:
        """ValueError for a bias that is not finite."""
        if not math.isfinite(self.bias):
            raise ValueError(f"a sigmoid needs a finite bias, got {self.bias}")

    def log(self, logsnr: Tensor) -> Tensor:
        """`log sigmoid(bias - logsnr)`."""
        return torch.nn.functional.logsigmoid(self.bias - logsnr)

    def __str__(self) -> str:
        return f"sigmoid({self.bias:.4g} - logsnr)"


def soft_min_snr(gamma: float = 5.0) -> Sigmoid:
    """The factor `gamma / (gamma + SNR)` on the error of eps, gamma > 0 [Crowson+ 2024]."""
    if not 0 < gamma < math.inf:
        raise ValueError(f"soft-min-SNR needs a finite gamma > 0, got {gamma}")
    return Sigmoid(math.log(gamma))


@dataclass(frozen=True)
class MinSNR(Weighting):
    """The factor `min(1, gamma / SNR)` on the error of eps [Hang+ 2023].

    On the error of x it is min(SNR, gamma), on that of v min(SNR, gamma) / (SNR + 1): the same
    weighting.

    gamma: the SNR up to which eps has its full weight, > 0; 5 in the paper.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        """ValueError for a gamma that is not positive and finite."""
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"Min-SNR needs a finite gamma > 0, got {self.gamma}")

    def log(self, logsnr: Tensor) -> Tensor:
        """`min(0, log(gamma) - logsnr)`."""
        return (math.log(self.gamma) - logsnr).clamp(max=0)

    def __str__(self) -> str:
        return f"min(1, {self.gamma:.4g}/snr)"


@dataclass(frozen=True)
class P2(Weighting):
    """The factor `(k + SNR)^-gamma` on the error of eps [Choi+ 2022].

    k: > 0; 1 in the paper. k = gamma = 1 is `Sigmoid(0)`.
    gamma: the power, finite; 1 in the paper, and 0 for no factor.
    """

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        """ValueError for a k that is not positive, or values that are not finite."""
        if not (0 < self.k < math.inf and math.isfinite(self.gamma)):
            raise ValueError(
                f"P2 needs a finite k > 0 and a finite gamma, got {self.k}, {self.gamma}"
            )

    def log(self, logsnr: Tensor) -> Tensor:
        """`-gamma log(k + exp(logsnr))`."""
        if self.gamma == 0:
            return torch.zeros_like(logsnr)
        return -self.gamma * torch.logaddexp(torch.full_like(logsnr, math.log(self.k)), logsnr)

    def __str__(self) -> str:
        return f"({self.k:.4g} + snr)^-{self.gamma:.4g}"


@dataclass(frozen=True)
class TruncatedSNR(Weighting):
    """The factor `max(SNR, 1)` on the error of x, `max(1, 1 / SNR)` on eps [Salimans & Ho 2022]."""

    def log(self, logsnr: Tensor) -> Tensor:
        """`max(0, -logsnr)`."""
        return (-logsnr).clamp(min=0)

    def __str__(self) -> str:
        return "max(1, 1/snr)"


@dataclass(frozen=True)
class Power(Weighting):
    """The factor `SNR^exponent` on the error of eps.

    exponent: -1/2 for debiased estimation [Yu+ 2023]; -1 for the error of x.
    """

    exponent: float

    def __post_init__(self) -> None:
        """ValueError for an exponent that is not finite."""
        if not math.isfinite(self.exponent):
            raise ValueError(f"a power of the SNR needs a finite exponent, got {self.exponent}")

    def log(self, logsnr: Tensor) -> Tensor:
        """`exponent logsnr`."""
        return self.exponent * logsnr if self.exponent else torch.zeros_like(logsnr)

    def __str__(self) -> str:
        return f"snr^{self.exponent:.4g}"


@dataclass(frozen=True)
class Product(Weighting):
    """The product of weightings: the error of an output times the factors of a paper."""

    factors: tuple[Weighting, ...]

    def log(self, logsnr: Tensor) -> Tensor:
        """The sum of the logarithms; a level without weight in one factor has none."""
        logs = torch.stack([factor.log(logsnr) for factor in self.factors])
        return torch.where(torch.isneginf(logs).any(0), -math.inf, logs.sum(0))

    def __str__(self) -> str:
        return " ".join(map(str, self.factors))


@dataclass(frozen=True)
class ShiftedWeighting(Weighting):
    """The weighting `base` at `logsnr + 2 log(factor)`; the shift of a density moves p alone.

    base: the weighting that is moved.
    factor: the shift, > 0; a factor > 1 is noisier.
    """

    base: Weighting
    factor: float

    def __post_init__(self) -> None:
        """ValueError for factors that are not positive."""
        if not 0 < self.factor < math.inf:
            raise ValueError(f"a weighting is shifted by a positive factor, got {self.factor}")

    def log(self, logsnr: Tensor) -> Tensor:
        """The base's logarithm at `logsnr + 2 log(factor)`."""
        return self.base.log(logsnr + 2 * math.log(self.factor))

    def __str__(self) -> str:
        return f"{self.base} at {self.factor:.4g} times the noise"


@dataclass(frozen=True)
class Monotonic(Weighting):
    """The weighting `base`, with its largest weight at all noisier levels [Kingma & Gao 2023].

    Of the error of F at EDM's levels this makes EDM-monotonic.

    base: a weighting with one peak.
    """

    base: Weighting

    @functools.cached_property
    def peak(self) -> float:
        """The log-SNR of the largest weight, by golden sections; it may be the last level."""
        grid = torch.linspace(-RANGE, RANGE, 4801, dtype=torch.float64)
        best = int(self.base.log(grid).argmax())
        if best in (0, len(grid) - 1):
            raise ValueError(
                f"{self.base} has no peak inside logsnr [-{RANGE:g}, {RANGE:g}], so there is "
                "nothing to make monotonic"
            )
        low, high, golden = grid[best - 1], grid[best + 1], 0.5 * (5**0.5 - 1)
        for _ in range(60):
            inner = torch.stack([torch.lerp(high, low, golden), torch.lerp(low, high, golden)])
            left, right = self.base.log(inner)
            low, high = (inner[0], high) if left < right else (low, inner[1])
        tried = torch.stack([low, high, grid[best]])  # the weight may be 0 at one end
        return float(tried[self.base.log(tried).argmax()])

    def log(self, logsnr: Tensor) -> Tensor:
        """The base's logarithm at `max(logsnr, peak)`."""
        return self.base.log(logsnr.clamp(min=self.peak))

    def __str__(self) -> str:
        return f"monotonic {self.base}"


@dataclass(frozen=True)
class LogFunction(Weighting):
    """Any weighting, given as the function `log w` of a tensor of log-SNRs."""

    function: Callable[[Tensor], Tensor]

    def log(self, logsnr: Tensor) -> Tensor:
        """The value of the function."""
        return self.function(logsnr)

    def __str__(self) -> str:
        return "a function"
