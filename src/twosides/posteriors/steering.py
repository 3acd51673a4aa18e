"""Sampling under any condition by particles: right for every prior, as their number grows.

A *plan* is a sampler as a table of numbers: each row makes the next state, which is a mean, made of
the estimates so far, plus noise. A *particle* is a state that follows the plan. Without a condition
it ends as a draw of the prior. Groups of P particles draw from the prior times a condition by
sequential Monte Carlo. At call k, G(x_k) is a guess of how well the data will meet the condition,
made from the estimate x_k of a particle. Its weight w changes by

    log w += log G(x_k) - log G(x_{k-1}),    at the end with the condition itself in the place of G

and when the weights of a group are uneven, particles are duplicated and dropped according to them.

A *proposal* is a denoiser that moves the particles in place of the prior's, such as a posterior's
(`posterior`): then fewer of them are lost. The weights make up for it. With d the difference of the
two means and n the noise, both in units of the noise's standard deviation,

    log w -= n . d + d . d / 2

This is right for every plan with fresh noises in each row, that of a multistep sampler included.

    Practical and Asymptotically Exact Conditional Sampling in Diffusion Models, Wu+ 2023 (TDS),
    arxiv.org/abs/2306.17775
    A General Framework for Inference-time Scaling and Steering, Singhal+ 2025 (FK steering),
    arxiv.org/abs/2501.06848
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from twosides.denoiser import BaseDenoiser, Denoises, as_denoiser
from twosides.dynamics import require_score
from twosides.outputs import Estimate
from twosides.placement import device_of
from twosides.posteriors.measurement import Measurement, dot, linearise, solve
from twosides.posteriors.posterior import Posterior, Spread
from twosides.randomness import PerSample, fresh_seed
from twosides.sampling.named import plan
from twosides.sampling.plan import Plan
from twosides.sampling.run import Execution, lower
from twosides.sampling.sample import check_shape, to_data
from twosides.sampling.sampler import Sampler
from twosides.sampling.transitions import deviations_of
from twosides.schedules import Level

Weigh = Callable[[Tensor, Level], Tensor]  # log G of estimates (B, ...), standardised, at a level


@dataclass
class Steered:
    """The result of `steer`: N samples, each from a group of P particles.

    sample: one particle of each group, drawn by the weights, in the units of the data, (N, ...).
    particles: all particles at the end, in the units of the data, (N, P, ...).
    weights: the weights of these particles, which sum to one in each group, (N, P).
    ess: the effective number of particles, 1 / sum of squared weights, at each network call, before
        any are dropped, and at the end, (calls + 1, N). Where it was below P / 2 at a call,
        particles were duplicated and dropped.
    distinct: how many of the particles at the end differ from one another, (N,).
    ancestors: the number of the particle at the start from which each one descends, (N, P).
    log_evidence: an estimate of the logarithm of the mean over the prior of p(y | x), or of
        exp(reward), (N,). Its exponential is unbiased.
    """

    sample: Tensor
    particles: Tensor
    weights: Tensor
    ess: Tensor
    distinct: Tensor
    ancestors: Tensor
    log_evidence: Tensor


@torch.no_grad()
def steer(
    denoiser: Denoises,
    shape: Sequence[SupportsIndex],
    measurement: Measurement | None = None,
    *,
    reward: Callable[[Tensor], Tensor] | None = None,
    particles: int = 16,
    proposal: Denoises | None = None,
    sampler: str | Sampler | Plan = "ddpm",
    steps: SupportsIndex = 50,
    seed: int | None = None,
    **conditioning: Any,
) -> Steered:
    """Draw from p(x) p(y | x), or from p(x) exp(reward(x)), with groups of particles.

    denoiser: the prior p(x). A denoiser that `posterior` made by another method than "level" is
        prior, measurement and proposal at once, if neither of the latter is passed as well.
    shape: (number of samples N, ...); each sample has particles of its own, and sample i depends on
        (seed, i) only.
    measurement: the condition, with noise > 0; y has one row, or one for each sample.
    reward: another condition, in place of a measurement or beside it: a function from data (B, ...)
        to numbers (B,), such as a classifier's log-probability. It is also asked for the estimates
        on the way, without a gradient.
    particles: P, the number of particles for each sample, >= 2. Network calls have N P rows.
    proposal: the denoiser that moves the particles, such as `posterior(denoiser, measurement)`. By
        default it is the prior's, which needs more particles the more the condition says.
    sampler: a name, a Sampler or a Plan. It must add noise, as "ddpm" and "kab2c-sde" do.
    steps: the number of steps of the sampler, which is run on the denoiser's own schedule.
    seed: the seed of all random numbers; by default a fresh one.
    conditioning: what the network is told, tensors with a row for each of the N samples.

    The state is float32, or float64 if y is. ValueError without a condition, for a sampler without
    noise (duplicated particles would stay equal), for a noise that several rows share, and for a
    measurement with noise 0.

        >>> import twosides as ts
        >>> prior = ts.oracle.GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], [[[0.2]], [[0.2]]])
        >>> drawn = steer(prior, (100, 1), reward=lambda x: 4 * x[:, 0], sampler="ddpm", seed=0)
        >>> bool((drawn.sample > 0).all())
        True
    """
    prior, guide = as_denoiser(denoiser), as_denoiser(proposal) if proposal is not None else None
    if isinstance(prior, Posterior) and measurement is None and guide is None:
        prior, guide, measurement = prior.denoiser, prior, prior.measurement
    elif isinstance(prior, Posterior) and prior.measurement is measurement:
        raise ValueError(
            "this denoiser is of the posterior of that very measurement, which would count twice; "
            "leave the measurement out, or pass the prior itself"
        )
    require_score(prior, "steering by particles")
    if particles < 2:
        raise ValueError(f"particles must be at least 2, got {particles}")
    sizes = check_shape(shape)
    table = sampler
    if not isinstance(table, Plan):
        table = plan(table, prior.schedule, steps)
    spread = guide.spread if isinstance(guide, Posterior) else Spread(1.0)
    condition = _Condition(prior, measurement, reward, particles, spread)
    double = measurement is not None and getattr(measurement.value, "dtype", None) == torch.float64
    own = PerSample(fresh_seed() if seed is None else seed, range(sizes[0]))
    event = (particles, *sizes[1:])
    place = (torch.float64 if double else torch.float32, device_of(prior))
    swarm = _Swarm(
        table, particles, lambda: own.normal(event, *place).flatten(0, 1), lambda: own.uniform()
    )
    told = {
        name: value.repeat_interleave(particles, 0)
        if isinstance(value, Tensor) and value.ndim and len(value) == sizes[0]
        else value
        for name, value in conditioning.items()
    }
    # At each call: weigh the estimates, duplicate and drop particles, and move those that are left.
    ask = partial(_estimates, prior, guide, told)
    for level in table.levels[:-1]:
        free, guided = ask(swarm.state, level)
        swarm.weigh(condition.guess(free.x, level))
        swarm.move(*swarm.resample(free, guided))
    x = to_data(prior, swarm.state, table.levels[-1])
    swarm.weigh(condition.truth(x))
    return swarm.result(x)


def _estimates(
    denoiser: BaseDenoiser,
    proposal: BaseDenoiser | None,
    conditioning: dict[str, Any],
    z: Tensor,
    level: Level,
) -> tuple[Estimate, Estimate]:
    """The prior's estimate and the proposal's, from one network call where both need the same."""
    if isinstance(proposal, Posterior) and proposal.denoiser is denoiser:
        return proposal.pair(z, level, **conditioning)
    prior = denoiser(z, level, **conditioning)
    return prior, prior if proposal is None else proposal(z, level, **conditioning)


class _Condition:
    """How well estimates and data meet the measurement and the reward, as logarithms (B,)."""

    def __init__(
        self,
        denoiser: BaseDenoiser,
        measurement: Measurement | None,
        reward: Callable[[Tensor], Tensor] | None,
        particles: int,
        spread: Spread,
    ) -> None:
        if measurement is None and reward is None:
            raise ValueError("steer needs a condition: pass a measurement or reward=, a function")
        if measurement is not None and measurement.log_likelihood is None:
            stated = measurement.noise
            if not callable(stated) and not bool((torch.as_tensor(stated).cpu() > 0).all()):
                raise ValueError("a measurement without noise has no density; pass noise > 0")
        self.denoiser, self.reward, self.spread = denoiser, reward, spread
        self.measurement = measurement and measurement.repeated(particles)

    def guess(self, x: Tensor, level: Level) -> Tensor:
        """The guess log G of standardised estimates of x at a level, up to a constant.

        Constants cancel, because the next guess, or in the end the condition itself, replaces it.
        """
        data, total = self.denoiser.unstandardise(x), torch.zeros(len(x), dtype=torch.float64)
        if self.measurement is not None and self.measurement.log_likelihood is None:
            total = total + self._blurred(self.measurement, x, level).cpu().double()
        elif self.measurement is not None:
            total = total + self.measurement.log_density(data).cpu().double()
        return total + self._rewarded(data)

    def truth(self, x: Tensor) -> Tensor:
        """The condition itself, log p(y | x) + reward(x), of data in their own units."""
        total = self._rewarded(x)
        if self.measurement is not None:
            total = total + self.measurement.log_density(x).cpu().double()
        return total

    def _blurred(self, measurement: Measurement, x: Tensor, level: Level) -> Tensor:
        """log N(y; A(x), noise^2 + A C A^T) without its constant.

        C is the isotropic guess of the covariance of x given z, since x is an estimate.
        """
        here = linearise(lambda x: measurement.predict(self.denoiser.unstandardise(x)), x)
        residual, variance = measurement.residual(here.value), measurement.variance(here.value)
        blur = partial(self.spread.mean, level)
        solved = solve(
            lambda u: variance * u + here.forward(blur(here.adjoint(u))), residual, 1e-3, 20
        )
        return -0.5 * dot(residual, solved)

    def _rewarded(self, data: Tensor) -> Tensor:
        """The reward of data in their own units; ValueError for one of another shape than (B,)."""
        if self.reward is None:
            return torch.zeros(len(data), dtype=torch.float64)
        reward = self.reward(data)
        if reward.shape != (len(data),):
            raise ValueError(
                f"a reward gives one number for each of {len(data)} samples, but gave the shape "
                f"{tuple(reward.shape)}"
            )
        return reward.cpu().double()


class _Swarm:
    """Groups of particles on their way along a plan: a batch of N P rows, group after group.

    Two executions of the plan run side by side. One takes the prior's estimates, the other those of
    the proposal, and each remembers what its later rows need. The states are the same.
    """

    def __init__(
        self,
        table: Plan,
        particles: int,
        normal: Callable[[], Tensor],
        uniform: Callable[[], Tensor],
    ) -> None:
        """Draw the first states.

        table: the plan, which injects noise.
        particles: P, the size of a group.
        normal: gives standard normal numbers of the shape of the states.
        uniform: gives a number in (0, 1) for each group, (N,).
        """
        self.particles, self.normal, self.uniform = particles, normal, uniform
        self.deviations = deviations_of(table)
        self.state = self.deviations[0] * normal()
        groups = len(self.state) // particles
        # A denoiser's pair, not a network's answer, is what rows combine.
        rows = lower(table, BaseDenoiser(), self.state.dtype, self.state.device)
        self.prior, self.guided = Execution(rows), Execution(rows)
        self.log_weights = torch.zeros(groups, particles, dtype=torch.float64)
        self.last = torch.zeros(groups * particles, dtype=torch.float64)
        self.log_evidence = torch.zeros(groups, dtype=torch.float64)
        self.ess: list[Tensor] = []
        numbers = torch.arange(particles).expand(groups, particles)
        self.ancestors, self.places = numbers, numbers

    def weigh(self, log_guess: Tensor) -> None:
        """Replace the last guess in the weights by this one, (N P,)."""
        self.log_weights = self.log_weights + (log_guess - self.last).view_as(self.log_weights)
        self.last = log_guess
        self.ess.append(1 / (self.weights**2).sum(1))

    @property
    def weights(self) -> Tensor:
        """The weights of the particles of each group, which sum to one, (N, P)."""
        return torch.softmax(self.log_weights, 1)

    def resample(self, prior: Estimate, guided: Estimate) -> tuple[Estimate, Estimate]:
        """Draw particles by their weights where these are uneven; the estimates of those drawn.

        The draw is systematic: P points at equal distances, with one random offset, fall into the
        cumulative weights. It is made in groups whose effective number of particles is below P / 2.
        """
        count, low = self.particles, self.ess[-1] < self.particles / 2
        points = (self.uniform()[:, None] + torch.arange(count)) / count
        sums = self.weights.cumsum(1)
        pick = torch.searchsorted(sums / sums[:, -1:], points.contiguous()).clamp(max=count - 1)
        pick = torch.where(low[:, None], pick, torch.arange(count))
        # Drawing makes the weights of a group equal; their mean is a factor of the evidence.
        mean = torch.logsumexp(self.log_weights, 1) - torch.tensor(float(count)).log()
        self.log_evidence = self.log_evidence + torch.where(low, mean, 0.0)
        self.log_weights = torch.where(low[:, None], 0.0, self.log_weights)
        self.ancestors = self.ancestors.gather(1, pick)
        self.places = self.places.gather(1, pick)
        # All that belongs to a particle goes with it, what later rows of the plan need included.
        index = (pick + count * torch.arange(len(pick))[:, None]).flatten()
        self.last, there = self.last[index], index.to(self.state.device)
        for execution in (self.prior, self.guided):
            execution.kept = {slot: kept[there] for slot, kept in execution.kept.items()}
        chosen = (Estimate(*(part[there] for part in each)) for each in (prior, guided))
        return next(chosen), next(chosen)

    def move(self, prior: Estimate, guided: Estimate) -> None:
        """Make the next states, and change the weights to make up for the proposal.

        prior, guided: the estimates of the prior and of the proposal.
        """
        self.prior.answer(*prior)
        self.guided.answer(*guided)
        deviation = self.deviations[self.prior.row]
        mean, moved = self.prior.mean(self.state), self.guided.mean(self.state)
        if deviation == 0:  # without noise no weight can make up for a proposal: the prior moves
            self.state = mean
            return
        noise, ahead = self.normal(), (moved - mean) / deviation
        self.state = moved + deviation * noise
        noise, ahead = noise.cpu().double(), ahead.cpu().double()
        change = dot(noise + ahead / 2, ahead)
        self.log_weights = self.log_weights - change.view_as(self.log_weights)
        self.places = torch.arange(self.particles).expand_as(self.places)

    def result(self, x: Tensor) -> Steered:
        """One particle of each group by its weights, and all the rest."""
        weights, groups = self.weights, len(self.log_weights)
        sums = weights.cumsum(1)
        points = self.uniform()[:, None] * sums[:, -1:]
        pick = torch.searchsorted(sums, points).clamp(max=self.particles - 1)[:, 0]
        grouped = x.reshape(groups, self.particles, *x.shape[1:])
        mean = torch.logsumexp(self.log_weights, 1) - torch.tensor(float(self.particles)).log()
        return Steered(
            grouped[torch.arange(groups).to(x.device), pick.to(x.device)],
            grouped,
            weights,
            torch.stack(self.ess),
            torch.tensor([len(row.unique()) for row in self.places]),
            self.ancestors,
            self.log_evidence + mean,
        )
