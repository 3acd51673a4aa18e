"""Samples together with their log-densities, by one run from noise to data.

Along the probability-flow ODE in the frame of u (see `likelihood`) the log-density changes by the
integral of the divergence, which is one more component of the same ODE. A run from noise z_0 to
data z_N = alpha_N x therefore gives both, for D numbers per sample,

    log p(x) = log p(z_0) + D log(alpha_N c_0 / c_N) - int c div_z u d eta

where `log_likelihood` of the samples would have to walk all the way back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex

import torch
from torch import Tensor

from twosides.denoiser import Denoises, as_denoiser
from twosides.ode.divergence import Exact, Hutchinson, divergence_named
from twosides.ode.inversion import spread
from twosides.ode.likelihood import Flow, log_gaussian, log_stretch
from twosides.placement import device_of
from twosides.randomness import PerSample, fresh_seed
from twosides.sampling.given import check_noise
from twosides.sampling.named import plan
from twosides.sampling.run import run
from twosides.sampling.sample import check_shape, to_data
from twosides.sampling.sampler import Sampler
from twosides.schedules import Schedule, schedule_named


class Sampled(NamedTuple):
    """Samples (B, ...) and their log-densities in nats (B,), in the data's own units."""

    x: Tensor
    nats: Tensor


def sample_with_density(
    denoiser: Denoises,
    shape: Sequence[SupportsIndex],
    *,
    sampler: str | Sampler = "rk4",
    steps: SupportsIndex = 20,
    schedule: str | Schedule | None = None,
    seed: int | None = None,
    init: Tensor | None = None,
    divergence: str | Exact | Hutchinson = "exact",
    differentiable: bool = False,
    **conditioning: Any,
) -> Sampled:
    """Samples of shape (B, ...) and log p of each, from the same network calls.

    sampler: a deterministic one, which sets the order of both errors.
    schedule: where to walk, by default the denoiser's own.
    seed: sample i depends on (seed, i) only, and is that of `sample`; by default a fresh one.
    init: noise of unit variance and this shape, instead of that of the seed; its dtype and device
        are those of the run, which are float32 and the network's otherwise.
    divergence: "exact" or "hutchinson", or one with options, as for `log_likelihood`.
    differentiable: as for `sample` and `log_likelihood`.
    conditioning: passed to the network as it is.

    The density is that of the samples: of the data plus noise on grids that end before zero noise.
    That of the noise is taken for a Gaussian, exact at zero SNR. The network is differentiated, as
    for `log_likelihood`. ValueError for samplers with noise and networks without a derivative.

    >>> from twosides.oracle import GaussianMixture
    >>> oracle = GaussianMixture.gaussian([0.5], [[0.04]])
    >>> x, nats = sample_with_density(oracle, (3, 1), steps=30, seed=0)
    >>> exact = torch.distributions.Normal(0.5, 0.2).log_prob(x[:, 0])
    >>> torch.allclose(nats, exact, atol=1e-3)
    True
    """
    denoiser, sizes = as_denoiser(denoiser), check_shape(shape)
    walked = schedule_named(schedule or denoiser.schedule)
    table = plan(sampler, walked, steps)
    if table.stochastic:
        raise ValueError(
            f"{table.name} injects noise, after which the density of a sample is not that of the "
            "ODE; take a deterministic sampler, or `sampling.transitions.rollout` for the "
            "densities of its steps"
        )
    seed = fresh_seed() if seed is None else seed
    own = PerSample(seed, range(sizes[0]))
    if init is None:
        start = own.normal(sizes[1:], torch.float32, device_of(denoiser))
    else:
        start = check_noise(init, sizes)
    flow = Flow(denoiser, walked, divergence_named(divergence).directions(start))
    with torch.set_grad_enabled(differentiable):
        z = run(table, flow, start, conditioning=conditioning)
        first, last = table.levels[0], table.levels[-1]
        scaled = start[0].numel() * math.log(last.alpha * first.scale / last.scale)
        noisy = log_gaussian(start * spread(first), first)
        nats = noisy + scaled + log_stretch(denoiser, start) - flow.volume(table)
        return Sampled(to_data(denoiser, z, last), nats)
