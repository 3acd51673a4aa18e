"""The SDE and ODE view of diffusion: (f, g, eta) <-> (alpha, sigma, epsilon).

    Forward, data to noise:      dz = f(t) z dt + g(t) dW
    Reverse, noise to data:      dz = (f z - (1 + eta^2) g^2 score / 2) dt + eta g dW
    Generalised flow matching:   dz = (velocity - epsilon^2 score / 2) dt + epsilon dW

The last two are one process, with epsilon = eta g; eta = 0 is the probability-flow ODE and eta = 1
is the time reversal of the forward process [Anderson 1982, Song+ 2021]. The coefficients translate
exactly:

    f = d log alpha / dt,    g^2 = -sigma^2 dlogsnr/dt = 2 alpha sigma d(sigma / alpha)/dt
    alpha_t = alpha_0 exp(int f),  sigma_t^2 = alpha_t^2 (sigma_0^2 / alpha_0^2 + int g^2 / alpha^2)

The post "Diffusion Meets Flow Matching" prints the last equation without the factor alpha_t.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twosides.denoiser import BaseDenoiser
from twosides.outputs import Estimate
from twosides.schedules import Scalar, Schedule, along_batch
from twosides.schedules.level import _float64
from twosides.schedules.numerical import _Numerical
from twosides.schedules.schedule import with_limits

Function = Callable[[Tensor], Tensor]


def f(schedule: Schedule, t: Scalar) -> Tensor:
    """The drift of the forward process, `f = (dalpha/dt) / alpha`; -inf where alpha reaches 0."""
    return schedule.dalpha(t) / schedule.alpha(t)


def g(schedule: Schedule, t: Scalar) -> Tensor:
    """The diffusion coefficient of the forward process, `g = sigma sqrt(-dlogsnr/dt)`.

    It is computed as `g^2 = 2 sigma (alpha + sigma)^2 (dtau/dt) / alpha`, where tau = sigma /
    (alpha + sigma) is the time of flow matching. This is exact at t = 0, too, where dlogsnr/dt is
    infinite.
    """

    def squared(t: Tensor) -> Tensor:
        level = schedule.at(t)
        return 2 * level.sigma * level.scale**2 * schedule.rate(t) / level.alpha

    return with_limits(squared, torch.as_tensor(t, dtype=torch.float64)).sqrt()


def score(estimate: Estimate, sigma: Scalar) -> Any:
    """The score of the noisy data, `grad log p(z) = -eps / sigma`."""
    return -estimate.eps / along_batch(sigma, estimate.eps)


def require_score(denoiser: BaseDenoiser, use: str) -> None:
    """ValueError that names the use unless eps is the score, `-sigma` times the gradient."""
    if denoiser.coupling != "independent":
        raise ValueError(
            f"{use} needs the score, which this model's eps is not: training paired noise and data "
            f"(coupling: {denoiser.coupling}), and then E[eps|z] is something else. Use a sampler "
            "without noise, such as ddim, or a model with independent noise"
        )


def velocity(estimate: Estimate, schedule: Schedule, t: Scalar) -> Any:
    """The slope `dz/dt = (dalpha/dt) x + (dsigma/dt) eps` of the probability-flow ODE."""
    x, eps = estimate
    return along_batch(schedule.dalpha(t), x) * x + along_batch(schedule.dsigma(t), x) * eps


@dataclass(frozen=True)
class Dynamics:
    """A forward process and how noisily it is reversed.

    f: the drift coefficient, a function of t in [0, 1].
    g: the diffusion coefficient, a function of t.
    eta: the noise of the reverse process in units of g, a function of t. By default it is 0, the
        probability-flow ODE; 1 is the time reversal.

    >>> from twosides.schedules import FlowMatching
    >>> process = Dynamics.of(FlowMatching(), eta=lambda t: 0.5 + 0 * t)
    >>> t = torch.tensor(0.5, dtype=torch.float64)
    >>> [round(float(value), 12) for value in (process.f(t), process.g(t), process.epsilon(t))]
    [-2.0, 1.414213562373, 0.707106781187]
    """

    f: Function
    g: Function
    eta: Function = torch.zeros_like

    @classmethod
    def of(
        cls, schedule: Schedule, *, eta: Function | None = None, epsilon: Function | None = None
    ) -> Dynamics:
        """Translate (alpha, sigma, epsilon) to (f, g, eta).

        schedule: gives alpha and sigma.
        eta, epsilon: the noise of the reverse process, stated as one of the two; by default none.
            ValueError if both are given.
        """
        if eta is not None and epsilon is not None:
            raise ValueError("state eta or epsilon, not both: epsilon = eta g")
        drift, diffusion = (lambda t: f(schedule, t)), (lambda t: g(schedule, t))
        if epsilon is not None:
            noise = epsilon
            return cls(drift, diffusion, lambda t: noise(t) / diffusion(t))
        return cls(drift, diffusion, eta or torch.zeros_like)

    def schedule(self, alpha_0: float = 1.0, sigma_0: float = 0.0) -> Schedule:
        """Translate (f, g) to (alpha, sigma), by quadrature: see `FromSDE`."""
        return FromSDE(self.f, self.g, alpha_0, sigma_0)

    def epsilon(self, t: Tensor) -> Tensor:
        """The diffusion coefficient of the reverse process, `eta g`."""
        return self.eta(t) * self.g(t)

    def forward_drift(self, z: Any, t: Tensor) -> Any:
        """The drift `f z` of the forward process, whose diffusion coefficient is g."""
        return along_batch(self.f(t), z) * z

    def reverse_drift(self, z: Any, score: Any, t: Tensor) -> Any:
        """The drift of the reverse process, `f z - (1 + eta^2) g^2 score / 2`."""
        strength = 0.5 * (1 + self.eta(t) ** 2) * self.g(t) ** 2
        return self.forward_drift(z, t) - along_batch(strength, z) * score


@dataclass(frozen=True)
class FromSDE(_Numerical):
    """A schedule that is made of its forward process `dz = f(t) z dt + g(t) dW`.

        alpha_t   = alpha_0 exp(int_0^t f)
        sigma_t^2 = alpha_t^2 (sigma_0^2 / alpha_0^2 + int_0^t g^2 / alpha^2)

    The integrals are taken by Gauss-Legendre rules on panels that shrink towards both ends, so that
    poles of f and g at t = 0 or 1 cost no accuracy. Where f(1) is infinite, alpha(1) is 0.

    f, g: functions of t, tensors in float64.
    alpha_0: alpha at the data, t = 0; > 0.
    sigma_0: sigma at the data, >= 0. The default, 0, is data without noise.
    """

    f: Callable[[Tensor], Tensor]
    g: Callable[[Tensor], Tensor]
    alpha_0: float = 1.0
    sigma_0: float = 0.0

    @functools.cached_property
    def _panels(self) -> tuple[Tensor, Tensor, Tensor]:
        """The panels' edges, and the integrals of f and of g^2/alpha^2 up to each edge."""
        halves = 2.0 ** -np.arange(1, 50)
        edges = np.unique(np.concatenate([[0.0, 1.0], halves, 1 - halves]))
        fine = [np.linspace(a, b, 5)[:-1] for a, b in pairwise(edges[:-1])]
        edges = _float64(np.concatenate([*fine, edges[-2:-1]]))
        growth = torch.cat([edges.new_zeros(1), self._integral(self.f, edges[:-1], edges[1:])])
        growth = growth.cumsum(0)
        energy = self._energy(edges[:-1], edges[1:], growth[:-1])
        return edges, growth, torch.cat([edges.new_zeros(1), energy]).cumsum(0)

    @staticmethod
    def _integral(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
        nodes, weights = (_float64(part) for part in np.polynomial.legendre.leggauss(8))
        half = 0.5 * (high - low)[..., None]
        return (function(low[..., None] + half * (nodes + 1)) * weights * half).sum(-1)

    def _energy(self, low: Tensor, high: Tensor, growth: Tensor) -> Tensor:
        def integrand(t: Tensor) -> Tensor:
            inner = self._integral(self.f, low[..., None].expand_as(t), t)
            return self.g(t) ** 2 * (-2 * (growth[..., None] + inner)).exp()

        return self._integral(integrand, low, high) / self.alpha_0**2

    def _growth_energy(self, t: Tensor) -> tuple[Tensor, Tensor]:
        edges, growth, energy = self._panels
        panel = (torch.searchsorted(edges, t.contiguous(), right=True) - 1).clamp(min=0)
        low = edges[panel]
        inside = growth[panel] + self._integral(self.f, low, t)
        total = energy[panel] + self._energy(low, t, growth[panel])
        ended = (t == 1) & ~torch.isfinite(self.f(t))
        infinite = torch.full_like(t, math.inf)
        return torch.where(ended, -infinite, inside), torch.where(ended, infinite, total)

    def _logsnr(self, t: Tensor) -> Tensor:
        return -(self._growth_energy(t)[1] + (self.sigma_0 / self.alpha_0) ** 2).log()

    def values(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at t; sigma(1) is the limit at t -> 1 where f(1) is infinite."""
        growth, _ = self._growth_energy(t)
        return self.alpha_0 * growth.exp(), with_limits(self._noise, t)

    def _noise(self, t: Tensor) -> Tensor:
        growth, energy = self._growth_energy(t)
        return self.alpha_0 * growth.exp() * (energy + (self.sigma_0 / self.alpha_0) ** 2).sqrt()

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """dalpha/dt = f alpha and dsigma/dt = f sigma + g^2 / (2 sigma)."""
        alpha, sigma = self.values(t)
        return self.f(t) * alpha, self.f(t) * sigma + self.g(t) ** 2 / (2 * sigma)

    def _rate(self, t: Tensor) -> Tensor:
        alpha, sigma = self.values(t)
        return alpha * self.g(t) ** 2 / (2 * sigma * (alpha + sigma) ** 2)
