"""Coordinates of the overshoot: one quantity, which papers state in many ways.

With Delta the log-SNR that a step gains (`route`):

| class          | papers                       | overshoot q of a step                            |
|----------------|------------------------------|--------------------------------------------------|
| `Eta`          | the post, reverse SDE        | eta^2 Delta                                      |
| `Churn`        | the post, gDDPM              | c Delta / (1 - c)                                |
| `Tau`          | SA-Solver                    | tau^2 Delta                                      |
| `DDIMEta`      | DDIM, Euler ancestral        | -log(1 - eta^2 (1 - exp(-Delta)))                |
| `Epsilon`      | flow matching, epsilon_t     | integral of epsilon^2 / sigma^2 dt               |
| `Diffusion`    | SiT, D = epsilon^2 / 2       | integral of 2 D / sigma^2 dt                     |
| `Rectified`    | LTX, ComfyUI's RF ancestral  | 2 log((1 - d) s / ((1 - s) d)), see there        |
| `Overshoot`    |                              | q                                                |
| `EDMChurn`     | EDM, S_churn (gamma)         | 2 log(1 + gamma), of the level it falls from     |

The strength of the noise is q / Delta for short steps, which is eta^2: `Eta(0)` is the ODE and
`Eta(1)` the exact time reversal of the forward process, DDPM. Values may be functions of the time
of the schedule; each is then held over a step.

    >>> from twosides.schedules import FlowMatching
    >>> step = Step.between(FlowMatching(), 0.6, 0.5)
    >>> convert(Churn(0.5), Eta, step).value
    1.0
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, TypeVar

import numpy as np

from twosides.sampling.frames import unit
from twosides.sampling.noise.route import Leg, Step, Stochasticity
from twosides.schedules import Level, Schedule

Value = float | Callable[[float], float]


class Coordinate(Stochasticity):
    """An overshoot that a number states, or a function of time.

    A new coordinate states q of a value, the inverse, and which values are allowed.
    """

    value: Value
    allowed: ClassVar[Callable[[float], bool]] = staticmethod(lambda value: 0 <= value < math.inf)
    range: ClassVar[str] = "finite and >= 0"

    @staticmethod
    @abc.abstractmethod
    def q_of(value: float, step: Step) -> float:
        """The overshoot of a step with this value, which is not 0."""

    @staticmethod
    @abc.abstractmethod
    def value_of(q: float, step: Step) -> float:
        """The value with this overshoot: the inverse."""

    def at(self, step: Step) -> float:
        """The value at the start of a step; ValueError where it is not allowed."""
        value = float(self.value(step.time) if callable(self.value) else self.value)
        if not type(self).allowed(value):
            raise ValueError(f"{type(self).__name__} must be {self.range}, got {value}")
        return value

    def overshoot(self, step: Step) -> float:
        """q of a step. A value of 0 is no noise, over an infinite step too."""
        value = self.at(step)
        return self.q_of(value, step) if value else 0.0


@dataclass(frozen=True)
class Eta(Coordinate):
    """The eta of the reverse SDE: 0 is the ODE, 1 is DDPM. The diffusion is epsilon = eta g.

    Not to be confused with the eta of DDIM, which is `DDIMEta`.
    """

    value: Value = 1.0
    q_of = staticmethod(lambda value, step: value**2 * step.gain)
    value_of = staticmethod(lambda q, step: math.sqrt(q / step.gain))


@dataclass(frozen=True)
class Tau(Eta):
    """The tau of SA-Solver [Xue+ 2023]: the eta of the reverse SDE under another name."""


@dataclass(frozen=True)
class Churn(Coordinate):
    """The churn c of the post, in [0, 1): `eta^2 = c / (1 - c)`, so that 1/2 is DDPM.

    A step goes on by DDIM to logsnr + Delta / (1 - c). Not to be confused with S_churn of EDM,
    which is `EDMChurn`.
    """

    value: Value = 0.5
    allowed = staticmethod(lambda value: 0 <= value < 1)
    range = "a fraction in [0, 1), where 0.5 is DDPM"
    q_of = staticmethod(lambda value, step: value / (1 - value) * step.gain)
    value_of = staticmethod(lambda q, step: q / (q + step.gain))


@dataclass(frozen=True)
class DDIMEta(Coordinate):
    """The eta of DDIM, in [0, 1] [Song+ 2020, eq. 16]: also k-diffusion's Euler ancestral.

    The injected variance is eta^2 times that of DDPM. It is `Eta` at 0, at 1 and for short steps.
    """

    value: Value = 1.0
    allowed = staticmethod(lambda value: 0 <= value <= 1)
    range = "in [0, 1]; Eta may be larger"

    @staticmethod
    def q_of(value: float, step: Step) -> float:
        """`-log(1 - eta^2 (1 - exp(-Delta)))`."""
        lost = value**2 * math.expm1(-step.gain)
        return -math.log1p(lost) if lost > -1 else math.inf

    value_of = staticmethod(lambda q, step: math.sqrt(math.expm1(-q) / math.expm1(-step.gain)))


@dataclass(frozen=True)
class Epsilon(Coordinate):
    """The epsilon_t of flow matching: the diffusion of the reverse process, in its own units.

    epsilon = eta g. A constant is integrated exactly over the step.
    """

    value: Value = 1.0
    q_of = staticmethod(lambda value, step: value**2 * inverse_variance(step))
    value_of = staticmethod(lambda q, step: math.sqrt(q / inverse_variance(step)))


@dataclass(frozen=True)
class Diffusion(Coordinate):
    """The diffusion coefficient D of SiT: drift + D score, noise sqrt(2 D) dW, 2 D = epsilon^2."""

    value: Value = 1.0
    q_of = staticmethod(lambda value, step: 2 * value * inverse_variance(step))
    value_of = staticmethod(lambda q, step: q / (2 * inverse_variance(step)))


@dataclass(frozen=True)
class Overshoot(Coordinate):
    """The overshoot q itself, in log-SNR; infinity is `routes.FullRenoise`."""

    value: Value = 1.0
    allowed = staticmethod(lambda value: value >= 0)
    range = "a number >= 0"
    q_of = staticmethod(lambda value, step: value)
    value_of = staticmethod(lambda q, step: q)


@dataclass(frozen=True)
class Rectified(Coordinate):
    """The "ancestral" noise of rectified flow in ComfyUI and diffusers (LTXEulerAncestralRF).

    With t and s the flow-matching times of the ends of a step, Euler goes to d = s (1 + (s / t - 1)
    eta) and noise back to s. At eta = 1 it is not DDPM: from t = 1 it keeps most of the noise.
    """

    value: Value = 1.0
    allowed = staticmethod(lambda value: 0 <= value <= 1)
    range = "in [0, 1]"

    @staticmethod
    def q_of(value: float, step: Step) -> float:
        """`2 log((1 - d) s / ((1 - s) d))`."""
        t, s = _flow_time(step.here.logsnr), _flow_time(step.there.logsnr)
        d = s * (1 + (s / t - 1) * value)
        return 2 * math.log((1 - d) * s / ((1 - s) * d)) if d else math.inf

    @staticmethod
    def value_of(q: float, step: Step) -> float:
        """From d, `(1 - d / s) / (1 - s / t)`."""
        t, s = _flow_time(step.here.logsnr), _flow_time(step.there.logsnr)
        return (1 - _flow_time(step.there.logsnr + q) / s) / (1 - s / t)


def _flow_time(logsnr: float) -> float:
    alpha, sigma = unit(logsnr)
    return float(sigma / (alpha + sigma))


@dataclass(frozen=True)
class EDMChurn(Coordinate):
    """The stochastic sampler of EDM [Karras+ 2022, Algorithm 2]: noise comes before a network call.

    The state of a level falls to (1 + gamma) sigma, gamma = min(value / steps, sqrt(2) - 1), and
    the network is asked there. Between two calls this is `Eta` with eta^2 = 2 log(1 + gamma) /
    Delta: the same rise and fall, cut elsewhere.

    value: S_churn.
    sigma_min, sigma_max: sigma / alpha where it acts. Without sigma_max it acts where the fall
        stays within the schedule, which Karras et al. ensure by theirs.
    noise: S_noise, which multiplies the noise; 1 keeps the marginals.
    """

    value: Value = 40.0
    sigma_min: float = 0.0
    sigma_max: float | None = None
    noise: float = 1.0

    def __post_init__(self) -> None:
        """ValueError unless 0 <= sigma_min < sigma_max and 0 <= noise."""
        top = math.inf if self.sigma_max is None else self.sigma_max
        if not (0 <= self.sigma_min < top and 0 <= self.noise < math.inf):
            raise ValueError(f"EDMChurn needs 0 <= sigma_min < sigma_max and noise >= 0: {self}")

    @staticmethod
    def q_of(value: float, step: Step) -> float:
        """`2 log(1 + gamma)`."""
        return 2 * math.log1p(min(value / step.steps, math.sqrt(2) - 1))

    @staticmethod
    def value_of(q: float, step: Step) -> float:
        """`steps gamma`; ValueError where the cap of EDM on gamma, sqrt(2) - 1, is exceeded."""
        gamma = math.expm1(0.5 * q)
        if gamma > math.sqrt(2) - 1 + 1e-12:
            raise ValueError(f"this needs gamma = {gamma:.4g}, but EDM caps it at sqrt(2) - 1")
        return step.steps * gamma

    def scale(self, step: Step) -> float:
        """S_noise."""
        return self.noise

    def overshoot(self, step: Step) -> float:
        """The log-SNR by which the state of the first level falls; 0 where it does not."""
        q, sigma = super().overshoot(step), math.exp(-0.5 * step.here.logsnr)
        inside = step.here.logsnr - q >= step.schedule.logsnr_min
        acts = inside if self.sigma_max is None else sigma <= self.sigma_max
        return q if acts and sigma >= self.sigma_min else 0.0

    def route(self, schedule: Schedule, levels: Sequence[Level]) -> list[Leg]:
        """Each leg starts below a level of the grid, and its ODE ends at the next level itself."""
        asked = list[Level]()
        for here, there in pairwise(levels):
            q = self.overshoot(Step(schedule, here, there, len(levels) - 1))
            asked.append(schedule.level(here.logsnr - q).floats() if q else here)
        asked.append(levels[-1])
        legs = list[Leg]()
        for here, over, there in zip(asked[:-1], levels[1:], asked[1:], strict=True):
            q = over.logsnr - there.logsnr if over != there else 0.0
            legs.append(Leg(schedule, here, over, there, q, self.noise, number=len(legs)))
        return legs


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)


def inverse_variance(step: Step) -> float:
    """`int dt / sigma_t^2` over a step: Gauss-Legendre in log t, in t for a step that ends at 0."""
    if step.there.sigma == 0:
        return math.inf
    end, start = float(step.schedule.time(step.there.logsnr)), step.time
    if end > 0:
        half = 0.5 * math.log(start / end)
        times = math.sqrt(start * end) * np.exp(half * _NODES)
        factors = half * _WEIGHTS * times
    else:
        half = 0.5 * (start - end)
        times, factors = 0.5 * (start + end) + half * _NODES, half * _WEIGHTS
    sigma = step.schedule.sigma(np.clip(times, end, start)).numpy()
    return float((factors / sigma**2).sum())


Kind = TypeVar("Kind", bound=Coordinate)


def convert(source: Stochasticity, kind: type[Kind], step: Step) -> Kind:
    """The same noise on a step in another coordinate, exactly.

    ValueError where there is none. On steps from or to infinite log-SNR most coordinates are
    infinite or undetermined.
    """
    overshoot, scale = source.overshoot(step), source.scale(step)
    if scale != 1:
        raise ValueError(f"{source} scales its noise by {scale:.4g}, which no {kind.__name__} does")
    if not (math.isfinite(overshoot) and 0 < step.gain < math.inf):
        raise ValueError(
            f"the step from logsnr {step.here.logsnr:.4g} to {step.there.logsnr:.4g} has overshoot "
            f"{overshoot:.4g}; coordinates convert on steps between finite levels"
        )
    return kind(kind.value_of(overshoot, step))  # pyright: ignore[reportCallIssue]
