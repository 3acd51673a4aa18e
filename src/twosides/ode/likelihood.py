"""Likelihoods: the log-density of data under a denoiser, and a bound that needs no derivatives.

In the frame of u = eps - x the probability-flow ODE is `dy / d eta = u` for y = z / c, with c =
alpha + sigma and eta = sigma / c, so the log-density along it obeys [Chen+ 2018, Song+ 2021]

    d log p(y) / d eta = -div_y u = -c div_z u.

Integrated from data (z_0 = alpha_0 x) to noise, whose density is known, this is in D dimensions

    log p(x) = log p(z_N) + D log(alpha_0 c_N / c_0) + int c div_z u d eta.

The integral is one more component of the ODE. A Plan, the table of a sampler's coefficients,
integrates any component by the weights W_k of its calls in the final state, `Plan.weights("u")`:

    int c div_z u d eta = sum_k (W_k / c_N) c_k div_z u_k.

Every deterministic sampler therefore gives a likelihood, of its own order and without a second
solver. It is the density at the data end of the grid: that of the data themselves at zero noise,
and that of the data plus noise of standard deviation sigma_0 / alpha_0 on grids that end before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, SupportsIndex

import torch
from torch import Tensor

from twosides.denoiser import BaseDenoiser, Denoises, as_denoiser
from twosides.display.progress import Progress, teller
from twosides.dynamics import require_score
from twosides.ode.adaptive import Path
from twosides.ode.divergence import Directions, Exact, Hutchinson, divergence_named, quadratic_forms
from twosides.ode.integrate import Adaptive, State, integrate
from twosides.ode.inversion import spread, standardise
from twosides.outputs import Estimate
from twosides.placement import check_floating
from twosides.randomness import PerSample
from twosides.sampling.named import plan
from twosides.sampling.plan import Plan
from twosides.sampling.run import Visit, combine, run
from twosides.sampling.sample import check_indices
from twosides.sampling.sampler import Sampler
from twosides.schedules import Level, Schedule, schedule_named

Prior = Callable[[Tensor, Level], Tensor]


def bits_per_dim(nats: Tensor, dims: int, bins: int = 256, width: float = 2.0) -> Tensor:
    """Bits per dimension of data with `bins` discrete values, from a log-density in nats.

        -nats / (dims log 2) + log2(bins / width)

    The density is that of data after `dequantise`, which adds uniform noise within a bin. By
    Jensen's inequality these bits are on average at least those of a model that gives each value
    the whole mass of its bin [Theis+ 2016].

    nats: the log-densities.
    dims: the numbers in a sample.
    bins: the number of values, 256 for 8-bit images; 1, with a width of 1, for the bits of the
        continuous density.
    width: the length of the interval that the values cut into equal bins, 2 for [-1, 1].

        >>> float(bits_per_dim(torch.zeros(()), 3072))  # uniform on a cube of side 1 in [-1, 1]
        7.0
    """
    return -nats / (dims * math.log(2)) + math.log2(bins / width)


def dequantise(
    values: Tensor,
    *,
    seed: int,
    bins: int = 256,
    indices: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Whole numbers as points of [-1, 1], uniform in their bin of width 2 / bins.

        (values + u) 2 / bins - 1,    u uniform in (0, 1)

    values: whole numbers 0 ... bins - 1 of shape (B, ...); ValueError for others.
    seed, indices: u of sample i depends on (seed, indices[i]) only; the indices are 0 ... B - 1 by
        default.
    bins: the number of values.
    dtype: that of the result.
    """
    check_floating(dtype, "points")
    whole = bins >= 1 and bool(((values >= 0) & (values < bins) & (values == values.floor())).all())
    if not whole:
        raise ValueError(f"values to dequantise are whole numbers 0 ... {bins - 1}")
    own = PerSample(seed, check_indices(indices, len(values)))
    u = torch.special.ndtr(own.normal(values.shape[1:], torch.float64))
    return ((values.cpu() + u) * (2 / bins) - 1).to(values.device, dtype)


class Likelihood(NamedTuple):
    """The result of `log_likelihood`.

    nats: the log-densities of the data (B,), in nats.
    noise: the noise of unit variance that the data are encoded as (B, ...).
    """

    nats: Tensor
    noise: Tensor

    @property
    def dims(self) -> int:
        """The numbers in a sample."""
        return self.noise[0].numel()

    @property
    def per_dimension(self) -> Tensor:
        """Nats per dimension (B,)."""
        return self.nats / self.dims

    def bits_per_dim(self, bins: int = 256, width: float = 2.0) -> Tensor:
        """Bits per dimension (B,); see the function `bits_per_dim`."""
        return bits_per_dim(self.nats, self.dims, bins, width)


def log_likelihood(
    denoiser: Denoises,
    x: Tensor,
    *,
    sampler: str | Sampler | Adaptive = "rk4",
    steps: SupportsIndex = 20,
    schedule: str | Schedule | None = None,
    divergence: str | Exact | Hutchinson = "exact",
    prior: Prior | None = None,
    differentiable: bool = False,
    progress: bool | Progress = False,
    **conditioning: Any,
) -> Likelihood:
    """The log-density log p(x) of data, in their own units.

    denoiser: the denoiser. Its network is differentiated: it must be deterministic (`eval()`) and
        treat samples independently.
    x: the data (B, ...).
    sampler: a deterministic sampler, which sets the order of the error; or an `ode.Adaptive`, whose
        tolerance is that of y and of nats per dimension ("adaptive" is the default one).
    steps: the number of steps, >= 1; an adaptive solver chooses its own.
    schedule: the schedule whose levels are passed, by default the denoiser's own.
    divergence: "exact" takes one derivative per dimension and call; "hutchinson" estimates without
        bias. `ode.Exact` and `ode.Hutchinson` state the number of probes, their seed, and how many
        derivatives a backward pass takes.
    prior: a function that gives the log-density (B,) of (z, level) at the noise end. By default z
        is Gaussian there with variance alpha^2 + sigma^2, which is exact at zero SNR and else off
        by some alpha |x| / sigma nats.
    differentiable: whether gradients flow from the densities to the parameters of the network, x
        and the conditioning; the network is then differentiated twice, and all calls kept in
        memory.
    progress: True for a progress bar, or a function that is called with (done, total) network
        calls; an adaptive solver has none.
    conditioning: what else the network is told.

    ValueError for samplers with noise, for networks whose answer has no derivative, and, as in
    `encode`, for those that cannot answer at an end of the grid.
    """
    walked = schedule_named(schedule or as_denoiser(denoiser).schedule)
    with torch.set_grad_enabled(differentiable):
        x, stretch = standardise(denoiser, x), log_stretch(denoiser, x)
        flow = Flow(denoiser, walked, divergence_named(divergence).directions(x))
        if sampler == "adaptive":
            sampler = Adaptive()
        if isinstance(sampler, Adaptive):
            carried = _by_integration(flow, x, sampler, conditioning)
        else:
            table = plan(sampler, walked, steps, encode=True)
            carried = _by_plan(flow, x, table, progress, conditioning)
        z, volume, start, end = carried
        scaled = x[0].numel() * math.log(start.alpha * end.scale / start.scale) + stretch
        return Likelihood((prior or log_gaussian)(z, end) + scaled + volume, z / spread(end))


def log_stretch(denoiser: Denoises, x: Tensor) -> float:
    """The log-determinant of the denoiser's `standardise` for one sample of x."""
    zeros = torch.zeros(x[:1].shape, dtype=torch.float64)
    slopes = standardise(denoiser, zeros + 1) - standardise(denoiser, zeros)
    return float(slopes.log().sum())


def log_gaussian(z: Tensor, level: Level) -> Tensor:
    """The log-density `log N(z; 0, alpha^2 + sigma^2)`."""
    flat = z.reshape(len(z), -1) / spread(level)
    constant = flat.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(spread(level)))
    return -0.5 * flat.square().sum(1) - constant


class _Carried(NamedTuple):
    """The result at the noise end.

    z: the state.
    volume: the integral of `c div_z u d eta` (B,).
    start, end: the levels of the data and of the noise.
    """

    z: Tensor
    volume: Tensor
    start: Level
    end: Level


def _by_plan(
    flow: Flow,
    x: Tensor,
    table: Plan,
    progress: bool | Progress,
    conditioning: dict[str, Any],
) -> _Carried:
    def watch(visit: Visit) -> None:
        if tell is not None:
            tell(visit.number + 1, table.nfe)

    shown = teller(progress, table.nfe, "likelihood")
    with shown as tell:
        z = run(table, flow, x, watch=watch, conditioning=conditioning)
    return _Carried(z, flow.volume(table), table.levels[0], table.levels[-1])


def _by_integration(
    flow: Flow, x: Tensor, adaptive: Adaptive, conditioning: dict[str, Any]
) -> _Carried:
    path = Path.of("u", flow.schedule.at(0.0), flow.schedule.at(1.0))
    dims = x[0].numel()

    def field(eta: float, state: State) -> State:
        level = path.level(eta)
        estimate = flow(path.scale(level) * state[0], level, **conditioning)
        return path.frame.output(estimate), flow.divergences.pop() / dims

    y = path.start.alpha / path.scale(path.start) * x
    first, last = path.ends
    done = integrate(field, (y, x.new_zeros(len(x))), first, last, adaptive)
    return _Carried(path.scale(path.end) * done.y[0], dims * done.y[1], path.start, path.end)


# ---------------------------------------------------------------------------- divergence


class Flow(BaseDenoiser):
    """A denoiser that keeps `c div_z u` (B,) of each call."""

    def __init__(self, denoiser: Denoises, schedule: Schedule, directions: Directions) -> None:
        """Of a denoiser that is walked on a schedule, with the directions of a divergence."""
        self.denoiser, self.schedule = as_denoiser(denoiser), schedule
        self.directions = directions
        self.divergences: list[Tensor] = []

    def __call__(self, z: Tensor, level: Level, **conditioning: Any) -> Estimate:
        """The estimate; `divergences` has one entry more."""
        recorded = torch.is_grad_enabled()  # then gradients flow through the divergence, too
        with torch.enable_grad():
            z = z if recorded and z.requires_grad else z.detach().requires_grad_()
            x, eps = self._estimate(z, level, conditioning)
            u = eps - x
            forms = (quadratic_forms(u, z, vectors, recorded) for vectors in self.directions(z))
            divergence = level.scale * sum(forms, u.new_zeros(len(u)))
        self.divergences.append(divergence if recorded else divergence.detach())
        return Estimate(x, eps) if recorded else Estimate(x.detach(), eps.detach())

    def volume(self, table: Plan) -> Tensor:
        """The integral of `c div_z u d eta` (B,) along a plan that has been run."""
        shares = table.weights("u").predictions / table.levels[-1].scale
        return combine(list(zip(self.divergences, shares.tolist(), strict=True)))

    def _estimate(self, z: Tensor, level: Level, conditioning: dict[str, Any]) -> Estimate:
        (call,) = self.denoiser.prepare([level], z)
        pair = self.denoiser.ask(z, call, conditioning)
        if not pair[1].requires_grad:
            raise ValueError(
                "the network's answer has no derivative with respect to z, which a likelihood "
                "needs: take it out of torch.no_grad() or .detach(), or use variational_bound"
            )
        return call.solution.apply(*pair)


# ---------------------------------------------------------------------------- the bound


class Bound(NamedTuple):
    """The three terms of the variational bound in nats (B,), and the numbers in a sample.

    prior: the divergence of the noisiest z from pure noise.
    diffusion: the integral of the error of eps over the log-SNR.
    reconstruction: the cost of the data given the least noisy z.
    dims: the numbers in a sample.
    """

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    dims: int

    @property
    def nats(self) -> Tensor:
        """The lower bound of log p(x) (B,), in nats."""
        return -(self.prior + self.diffusion + self.reconstruction)

    @property
    def per_dimension(self) -> Tensor:
        """Nats per dimension (B,)."""
        return self.nats / self.dims

    def bits_per_dim(self, bins: int = 256, width: float = 2.0) -> Tensor:
        """Bits per dimension (B,); see the function `bits_per_dim`."""
        return bits_per_dim(self.nats, self.dims, bins, width)


@torch.no_grad()
def variational_bound(
    denoiser: Denoises,
    x: Tensor,
    *,
    schedule: str | Schedule | None = None,
    points: int = 32,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    **conditioning: Any,
) -> Bound:
    """The variational lower bound of log p(x) in continuous time [Kingma+ 2021].

        -log p(x) <= KL(q(z_1 | x) || N(0, 1))                  prior, z_1 at logsnr_min, VP scaling
            + 1/2 int E|eps - eps_hat(z)|^2 dlogsnr             diffusion, logsnr_min to logsnr_max
            + E[-log N(x; z_0 / alpha_0, sigma_0^2 / alpha_0^2)]          reconstruction, logsnr_max

        prior = 1/2 sum (alpha_1^2 (x^2 - 1) - log sigma_1^2)
        reconstruction = D/2 (1 + log 2 pi - logsnr_max) + D log(data_std)

    denoiser: the denoiser.
    x: the data (B, ...).
    schedule: only its range of log-SNR matters, which must be finite: `schedule="cosine(-12, 12)"`.
        By default it is the denoiser's own.
    points: the network calls per sample, one in each of as many equal parts of the range; the
        integral is estimated without bias.
    seed, indices: the noise and levels of sample i depend on (seed, indices[i]) only.
    conditioning: what else the network is told.
    """
    require_score(as_denoiser(denoiser), "the variational bound")
    walked = schedule_named(schedule or as_denoiser(denoiser).schedule)
    low, high = walked.logsnr_min, walked.logsnr_max
    if not math.isfinite(high - low) or points < 1:
        raise ValueError(
            f"the bound integrates over a finite range of logsnr in points >= 1, got {points} "
            f"points in [{low:.4g}, {high:.4g}]; state a range, such as schedule='cosine(-12, 12)'"
        )
    x, stretch = standardise(denoiser, x), log_stretch(denoiser, x)
    own = PerSample(seed, check_indices(indices, len(x)))
    total = x.new_zeros(len(x))
    for point in range(points):
        level = walked.level(low + (high - low) * (point + own.uniform()) / points)
        eps = own.normal(x.shape[1:], x.dtype, x.device)
        error = eps - denoiser(level.mix(x, eps), level, **conditioning).eps
        total += error.square().reshape(len(x), -1).sum(1)
    return _costs(x, stretch, low, high, 0.5 * (high - low) / points * total)


def _costs(x: Tensor, stretch: float, low: float, high: float, diffusion: Tensor) -> Bound:
    dims = x[0].numel()
    alpha2, log_sigma2 = 1 / (1 + math.exp(-low)), -math.log1p(math.exp(low))
    prior = 0.5 * (alpha2 * (x.reshape(len(x), -1).square() - 1) - log_sigma2).sum(1)
    reconstruction = 0.5 * dims * (1 + math.log(2 * math.pi) - high) - stretch
    return Bound(prior, diffusion, torch.full_like(prior, reconstruction), dims)
