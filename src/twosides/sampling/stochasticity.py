"""How much noise a sampler injects: one quantity, many coordinates.

A step from logsnr `a` to `b` (Delta = b - a > 0) first goes too far along the ODE, to b + q, and
then forward diffusion takes q back:

    z_b = alpha_b x + sigma_b (rho eps + sqrt(1 - rho^2) n),    rho = exp(-q / 2)

The overshoot q is what papers parametrise differently; the coordinates convert exactly:

| coordinate     | papers                       | overshoot q of a step                            |
|----------------|------------------------------|--------------------------------------------------|
| `Eta`          | the post, reverse SDE        | eta^2 Delta                                      |
| `Churn`        | the post, gDDPM              | c Delta / (1 - c)                                |
| `Tau`          | SA-Solver                    | tau^2 Delta                                      |
| `DDIMEta`      | DDIM, Euler ancestral        | -log(1 - eta^2 (1 - exp(-Delta)))                |
| `Epsilon`      | flow matching, epsilon_t     | integral of epsilon^2 / sigma^2 dt               |
| `Diffusion`    | SiT, D = epsilon^2 / 2       | integral of 2 D / sigma^2 dt                     |
| `EDMChurn`     | EDM, S_churn (gamma)         | 2 log(1 + gamma), taken before the step          |
| `Rectified`    | LTX, ComfyUI's RF ancestral  | 2 log((1 - d) s / ((1 - s) d)), see there        |
| `ER`           | ER-SDE, phi                  | 2 log(phi_t s / (phi_s t)), t, s as sigma/alpha  |
| `Overshoot`    |                              | q                                                |
| `FullRenoise`  | consistency sampling         | infinite                                         |

Values may be functions of the schedule's time t. The instantaneous strength, q / Delta for a short
step, is eta^2: `eta = 0` is the ODE and `eta = 1` the exact time reversal (DDPM).

    >>> from twosides.schedules.schedule import FlowMatching
    >>> step = Interval.between(FlowMatching(), 0.6, 0.5)
    >>> convert(Churn(0.5), Eta, step).value
    1.0
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

import numpy as np
import torch

from twosides import dynamics
from twosides.schedules import Level, Schedule

Value = float | Callable[[float], float]


class Interval(NamedTuple):
    """A step's ends, the schedule it is on and the number of steps of the run."""

    schedule: Schedule
    here: Level
    there: Level
    steps: int

    @classmethod
    def between(cls, schedule: Schedule, start: float, end: float, steps: int = 1) -> Interval:
        """The step from time `start` down to time `end`."""
        return cls(schedule, schedule.at(start).floats(), schedule.at(end).floats(), steps)

    @property
    def gain(self) -> float:
        """Delta, the log-SNR gained."""
        return self.there.logsnr - self.here.logsnr

    @property
    def time(self) -> float:
        """The schedule's time at the start."""
        return float(self.schedule.time(self.here.logsnr))


class Kick(NamedTuple):
    """Noise of one step, in log-SNR given back: before the network call, and after the move.

    `scale` multiplies the injected noise (1 keeps the marginals; EDM's S_noise).
    """

    before: float = 0.0
    after: float = 0.0
    scale: float = 1.0


class Stochasticity(abc.ABC):
    """A rule for the noise of each step.

    `accuracy` limits the order with which the data's distribution is reached.
    """

    accuracy: ClassVar[float] = math.inf

    @abc.abstractmethod
    def kick(self, step: Interval) -> Kick:
        """The noise of a step."""

    @abc.abstractmethod
    def rate(self, step: Interval) -> float:
        """eta^2 at the start of the step: the overshoot per log-SNR of an infinitesimal one."""

    def overshoots(self, step: Interval, ends: Sequence[Level]) -> list[float]:
        """The overshoots of the parts of a step that end at these levels."""
        return [self.kick(step._replace(there=end)).after for end in ends]


@dataclass(frozen=True)
class Deterministic(Stochasticity):
    """No noise: the probability-flow ODE."""

    def kick(self, step: Interval) -> Kick:
        """None."""
        return Kick()

    def rate(self, step: Interval) -> float:
        """0."""
        return 0.0


class Coordinate(Stochasticity):
    """A parametrised overshoot, q = overshoot(value), with its inverse."""

    value: Value

    @staticmethod
    @abc.abstractmethod
    def overshoot(value: float, step: Interval) -> float:
        """The log-SNR given back after a step."""

    @staticmethod
    @abc.abstractmethod
    def invert(overshoot: float, step: Interval) -> float:
        """The value with this overshoot."""

    def kick(self, step: Interval) -> Kick:
        """The overshoot, after the move."""
        return Kick(after=self.overshoot(self.at(step), step))

    def overshoots(self, step: Interval, ends: Sequence[Level]) -> list[float]:
        """The overshoots of the parts of a step that end at these levels."""
        value = self.at(step)
        return [self.overshoot(value, step._replace(there=end)) for end in ends]

    def at(self, step: Interval) -> float:
        """The value at the start of the step; ValueError unless finite and >= 0."""
        value = float(self.value(step.time) if callable(self.value) else self.value)
        if not 0 <= value < math.inf:
            raise ValueError(f"{type(self).__name__} must be finite and >= 0, got {value}")
        return value


def _times(strength: float, gain: float) -> float:
    """Product in which no noise wins over an infinite step."""
    return strength * gain if strength else 0.0


@dataclass(frozen=True)
class Eta(Coordinate):
    """The reverse SDE's eta, constant over the step: 0 the ODE, 1 DDPM. epsilon = eta g."""

    value: Value = 1.0

    @staticmethod
    def overshoot(value: float, step: Interval) -> float:
        """`eta^2 Delta`."""
        return _times(value**2, step.gain)

    @staticmethod
    def invert(overshoot: float, step: Interval) -> float:
        """`sqrt(q / Delta)`."""
        return math.sqrt(overshoot / step.gain)

    def rate(self, step: Interval) -> float:
        """`eta^2`."""
        return self.at(step) ** 2


@dataclass(frozen=True)
class Tau(Coordinate):
    """SA-Solver's tau [Xue+ 2023]: the reverse SDE's eta under another name."""

    value: Value = 1.0
    overshoot = staticmethod(Eta.overshoot)
    invert = staticmethod(Eta.invert)

    def rate(self, step: Interval) -> float:
        """`tau^2`."""
        return self.at(step) ** 2


@dataclass(frozen=True)
class Churn(Coordinate):
    """The post's churn c in [0, 1): DDIM to logsnr + Delta / (1 - c), then renoise.

    `eta^2 = c / (1 - c)`; c = 1/2 is DDPM. (EDM's S_churn is `EDMChurn`.)
    """

    value: Value = 0.5

    @staticmethod
    def overshoot(value: float, step: Interval) -> float:
        """`c Delta / (1 - c)`."""
        return _times(Churn._strength(value), step.gain)

    @staticmethod
    def invert(overshoot: float, step: Interval) -> float:
        """`q / (q + Delta)`."""
        return overshoot / (overshoot + step.gain)

    def rate(self, step: Interval) -> float:
        """`c / (1 - c)`."""
        return self._strength(self.at(step))

    @staticmethod
    def _strength(value: float) -> float:
        if not value < 1:
            raise ValueError(f"churn is a fraction in [0, 1), got {value}; 0.5 is DDPM")
        return value / (1 - value)


@dataclass(frozen=True)
class DDIMEta(Coordinate):
    """DDIM's eta in [0, 1] [Song+ 2020, eq. 16] = k-diffusion's and diffusers' Euler ancestral.

    The injected variance is eta^2 times DDPM's. Equal to `Eta` at 0, at 1 and for short steps.
    """

    value: Value = 1.0

    @staticmethod
    def overshoot(value: float, step: Interval) -> float:
        """`-log(1 - eta^2 (1 - exp(-Delta)))`."""
        if not value <= 1:
            raise ValueError(f"DDIM's eta is in [0, 1], got {value}; Eta may be larger")
        lost = value**2 * math.expm1(-step.gain)
        return -math.log1p(lost) if lost > -1 else math.inf

    @staticmethod
    def invert(overshoot: float, step: Interval) -> float:
        """`sqrt((1 - exp(-q)) / (1 - exp(-Delta)))`."""
        return math.sqrt(math.expm1(-overshoot) / math.expm1(-step.gain))

    def rate(self, step: Interval) -> float:
        """`eta^2`."""
        return self.at(step) ** 2


@dataclass(frozen=True)
class Epsilon(Coordinate):
    """Flow matching's epsilon_t: the diffusion of the reverse process, in the schedule's units.

    epsilon = eta g. A constant is integrated exactly over the step; a function of t is held at its
    value at the start of the step.
    """

    value: Value = 1.0

    @staticmethod
    def overshoot(value: float, step: Interval) -> float:
        """`epsilon^2 int dt / sigma^2`."""
        return _times(value**2, inverse_variance(step))

    @staticmethod
    def invert(overshoot: float, step: Interval) -> float:
        """`sqrt(q / int dt / sigma^2)`."""
        return math.sqrt(overshoot / inverse_variance(step))

    def rate(self, step: Interval) -> float:
        """`epsilon^2 / g^2`."""
        return self.at(step) ** 2 / float(dynamics.g(step.schedule, step.time)) ** 2


@dataclass(frozen=True)
class Diffusion(Coordinate):
    """SiT's diffusion coefficient D: drift + D score, noise sqrt(2 D) dW; D = epsilon^2 / 2."""

    value: Value = 1.0

    @staticmethod
    def overshoot(value: float, step: Interval) -> float:
        """`2 D int dt / sigma^2`."""
        return _times(2 * value, inverse_variance(step))

    @staticmethod
    def invert(overshoot: float, step: Interval) -> float:
        """`q / (2 int dt / sigma^2)`."""
        return overshoot / (2 * inverse_variance(step))

    def rate(self, step: Interval) -> float:
        """`2 D / g^2`."""
        return 2 * self.at(step) / float(dynamics.g(step.schedule, step.time)) ** 2


@dataclass(frozen=True)
class EDMChurn(Coordinate):
    """EDM's stochastic sampler [Karras+ 2022, Algorithm 2]: noise is added before the network call.

    gamma = min(value / steps, sqrt(2) - 1) where sigma/alpha is in [sigma_min, sigma_max], else 0;
    sigma grows by 1 + gamma. Without sigma_max it does where that stays within the schedule, which
    Karras et al. ensure by theirs. `noise` is S_noise. The chain is that of `Eta` with
    `2 log(1 + gamma) = eta^2 Delta`, cut at another place: what EDM adds before step i belongs to
    step i - 1 there.
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

    def kick(self, step: Interval) -> Kick:
        """The overshoot, before the network call."""
        sigma = math.exp(-0.5 * step.here.logsnr)
        lost = self.overshoot(self.at(step), step)
        within = step.here.logsnr - lost >= step.schedule.logsnr_min
        if sigma < self.sigma_min or not (
            within if self.sigma_max is None else sigma <= self.sigma_max
        ):
            return Kick()
        return Kick(before=lost, scale=self.noise)

    @staticmethod
    def overshoot(value: float, step: Interval) -> float:
        """`2 log(1 + gamma)`."""
        return 2 * math.log1p(min(value / step.steps, math.sqrt(2) - 1))

    @staticmethod
    def invert(overshoot: float, step: Interval) -> float:
        """`steps gamma`; ValueError where EDM's cap sqrt(2) - 1 on gamma is exceeded."""
        gamma = math.expm1(0.5 * overshoot)
        if gamma > math.sqrt(2) - 1 + 1e-12:
            raise ValueError(f"this needs gamma = {gamma:.4g}, but EDM caps it at sqrt(2) - 1")
        return step.steps * gamma

    def rate(self, step: Interval) -> float:
        """0: nothing is left to do after the network call."""
        return 0.0


@dataclass(frozen=True)
class Overshoot(Coordinate):
    """The overshoot q itself, in log-SNR."""

    value: Value = 1.0

    def at(self, step: Interval) -> float:
        """The value at the start of the step; ValueError unless >= 0. Infinity is full renoise."""
        value = float(self.value(step.time) if callable(self.value) else self.value)
        if not value >= 0:
            raise ValueError(f"an overshoot is a number >= 0, got {value}")
        return value

    @staticmethod
    def overshoot(value: float, step: Interval) -> float:
        """`q`."""
        return value

    @staticmethod
    def invert(overshoot: float, step: Interval) -> float:
        """`q`."""
        return overshoot

    def rate(self, step: Interval) -> float:
        """`q / Delta`."""
        return self.at(step) / step.gain


@dataclass(frozen=True)
class Rectified(Coordinate):
    """The "ancestral" noise of rectified flow in ComfyUI and diffusers (LTXEulerAncestralRF).

    With t, s the flow-matching times of the step's ends: Euler to d = s (1 + (s / t - 1) eta), then
    renoise. At eta = 1 it is not DDPM: from t = 1 it keeps most of the noise.
    """

    value: Value = 1.0

    @staticmethod
    def overshoot(value: float, step: Interval) -> float:
        """`2 log((1 - d) s / ((1 - s) d))`."""
        if not value <= 1:
            raise ValueError(f"this eta is in [0, 1], got {value}")
        t, s = (_flow_time(level.logsnr) for level in (step.here, step.there))
        down = s * (1 + (s / t - 1) * value)
        return 2 * math.log((1 - down) * s / ((1 - s) * down)) if down else _times(value, math.inf)

    @staticmethod
    def invert(overshoot: float, step: Interval) -> float:
        """From d, `(1 - d / s) / (1 - s / t)`."""
        t = _flow_time(step.here.logsnr)
        s = _flow_time(step.there.logsnr)
        down = _flow_time(step.there.logsnr + overshoot)
        return (1 - down / s) / (1 - s / t)

    def rate(self, step: Interval) -> float:
        """`eta`, linear and not squared."""
        return self.at(step)


def _flow_time(logsnr: float) -> float:
    return float(torch.sigmoid(torch.tensor(-0.5 * logsnr, dtype=torch.float64)))


@dataclass(frozen=True)
class ER(Stochasticity):
    """Extended reverse-time SDE [Cui+ 2023]: the noise scale phi of sigma / alpha.

        rho = (phi(s) / s) / (phi(t) / t),    phi(s) = s (exp(s^power) + 10) (the authors' choice)

    eta^2 = dlog phi / dlog sigma - 1.
    """

    power: float = 0.3

    def __post_init__(self) -> None:
        """ValueError unless 0 < power."""
        if not 0 < self.power < math.inf:
            raise ValueError(f"the power is a finite number > 0, got {self.power}")

    def kick(self, step: Interval) -> Kick:
        """`2 log (phi / s)` from here to there."""
        return Kick(after=2 * (self._excess(step.here) - self._excess(step.there)))

    def rate(self, step: Interval) -> float:
        """`d log(phi / s) / d log s`."""
        power = math.exp(min(-0.5 * self.power * step.here.logsnr, 700))
        return self.power * power / (1 + 10 * math.exp(-power))

    def _excess(self, level: Level) -> float:
        """`log(exp(s^power) + 10)`."""
        log_power = -0.5 * self.power * level.logsnr
        return float(
            np.logaddexp(math.exp(log_power) if log_power < 700 else math.inf, math.log(10))
        )


@dataclass(frozen=True)
class FullRenoise(Stochasticity):
    """All noise is fresh: x is re-noised to the next level (multistep consistency sampling).

    For models whose x is a sample, not a mean: an exact denoiser's steps do not reach the data.
    """

    accuracy = 0

    def kick(self, step: Interval) -> Kick:
        """An infinite overshoot."""
        return Kick(after=math.inf)

    def rate(self, step: Interval) -> float:
        """Refused: it is not a diffusion in the limit of short steps."""
        raise ValueError("FullRenoise has no continuous-time limit; use it with the DDIM solver")


@dataclass(frozen=True)
class LargeVariance(Stochasticity):
    """DDPM's "large" variance, beta instead of the posterior's [Ho+ 2020, section 3.2].

    DDPM's mean with the injected variance multiplied by (sigma_t / sigma_s)^2 (VP units). It keeps
    the marginals only in the limit of many steps.
    """

    accuracy = 1

    def kick(self, step: Interval) -> Kick:
        """DDPM's overshoot with more noise."""
        here, there = _vp_sigma(step.here.logsnr), _vp_sigma(step.there.logsnr)
        return Kick(after=step.gain, scale=here / there if there else 1.0)

    def rate(self, step: Interval) -> float:
        """1."""
        return 1.0


def _vp_sigma(logsnr: float) -> float:
    return float(torch.sigmoid(torch.tensor(-logsnr, dtype=torch.float64)).sqrt())


_NODES = np.polynomial.legendre.leggauss(48)


def inverse_variance(step: Interval) -> float:
    """`int dt / sigma_t^2` over a step: Gauss-Legendre in log t, in t for a step that ends at 0."""
    if step.there.sigma == 0:
        return math.inf
    end, start = float(step.schedule.time(step.there.logsnr)), step.time
    nodes, weights = _NODES
    if end > 0:
        half = 0.5 * math.log(start / end)
        times = np.sqrt(start * end) * np.exp(half * nodes)
        factors = half * weights * times
    else:
        half = 0.5 * (start - end)
        times, factors = 0.5 * (start + end) + half * nodes, half * weights
    sigma = step.schedule.sigma(torch.from_numpy(np.clip(times, end, start)))
    return float((torch.from_numpy(factors) / sigma**2).sum())


Kind = TypeVar("Kind", bound=Coordinate)


def convert(source: Stochasticity, kind: type[Kind], step: Interval) -> Kind:
    """The same noise on this step in another coordinate, exactly.

    ValueError where there is none: on steps from or to infinite log-SNR most coordinates are
    infinite or undetermined.
    """
    kick = source.kick(step)
    overshoot = kick.before + kick.after
    if kick.scale != 1:
        raise ValueError(
            f"{source} scales its noise by {kick.scale:.4g}, which no {kind.__name__} does"
        )
    if not (math.isfinite(overshoot) and 0 < step.gain < math.inf):
        raise ValueError(
            f"the step from logsnr {step.here.logsnr:.4g} to {step.there.logsnr:.4g} has overshoot "
            f"{overshoot:.4g}; coordinates convert on steps between finite levels"
        )
    return kind(kind.invert(overshoot, step))  # pyright: ignore[reportCallIssue]


STOCHASTICITIES: dict[str, type[Stochasticity]] = {
    "deterministic": Deterministic,
    "eta": Eta,
    "churn": Churn,
    "ddim-eta": DDIMEta,
    "tau": Tau,
    "epsilon": Epsilon,
    "diffusion": Diffusion,
    "edm-churn": EDMChurn,
    "overshoot": Overshoot,
    "rectified": Rectified,
    "er": ER,
    "full-renoise": FullRenoise,
    "large-variance": LargeVariance,
}
