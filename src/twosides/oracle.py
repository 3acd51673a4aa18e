"""Exact denoisers: the ground truth that samplers, conversions and losses are checked against.

An exact denoiser can be passed wherever a Denoiser can. For a Gaussian mixture p(x) = sum_k w_k
N(m_k, C_k),

    p(z)    = sum_k w_k N(z; alpha m_k, S_k),        S_k = alpha^2 C_k + sigma^2
    E[x|z]  = sum_k r_k(z) (m_k + alpha C_k S_k^-1 (z - alpha m_k))
    E[eps|z]= sum_k r_k(z) sigma S_k^-1 (z - alpha m_k)

where r_k(z) is the posterior probability of component k. alpha = 0 and sigma = 0 are no special
cases of these formulas.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from twosides import dynamics
from twosides.denoiser import BaseDenoiser
from twosides.outputs import Estimate, output_named
from twosides.schedules import FlowMatching, Level, Schedule, along_batch


class _Exact(BaseDenoiser):
    """What exact denoisers share: a default schedule, and every other output, which is linear in
    (x, eps).
    """

    schedule: Schedule = FlowMatching()

    def predict(self, z: Tensor, level: Level, output: str = "u") -> Tensor:
        """Any output that a network might have, such as "score", "u" or "v"."""
        estimate = self(z, level)
        return output_named(output, self.schedule).of(estimate.x, estimate.eps, level)

    def score(self, z: Tensor, level: Level) -> Tensor:
        """The score of the noisy data, `grad log p(z) = -E[eps|z] / sigma`."""
        return self.predict(z, level, "score")

    def velocity(self, z: Tensor, schedule: Schedule, t: float | Tensor) -> Tensor:
        """The slope `dz/dt` of the probability-flow ODE on a schedule."""
        return dynamics.velocity(self(z, schedule.at(t)), schedule, t)


def _float64(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


class GaussianMixture(_Exact):
    """A mixture of Gaussians with full covariances, in any dimension D.

    Its methods take z of shape (B, D), or of any shape (B, ...) with D elements per sample.

    weights: the probabilities of the components (K,).
    means: their means (K, D).
    covariances: their covariance matrices (K, D, D), symmetric and positive semi-definite.

        >>> ring = GaussianMixture.ring(8)
        >>> ring.sample(5, seed=0).shape
        torch.Size([5, 2])
        >>> ring(torch.zeros(1, 2), Level(0.0, 0.5, 0.5)).x.abs().max() < 1e-6
        tensor(True)
    """

    def __init__(self, weights: Any, means: Any, covariances: Any) -> None:
        """ValueError for weights that are not probabilities or covariances that are not."""
        self.weights, self.means = _float64(weights), _float64(means)
        self.covariances = _float64(covariances)
        self._check()
        spectrum, self._axes = torch.linalg.eigh(self.covariances)
        self._spectrum = spectrum.clamp(min=0)  # rounding takes eigenvalues of 0 below it

    @classmethod
    def ring(cls, modes: int = 8, radius: float = 1.0, std: float = 0.1) -> GaussianMixture:
        """Components of equal weight on a circle in two dimensions.

        modes: the number of components.
        radius: the radius of the circle.
        std: the standard deviation of each component.
        """
        angles = torch.arange(modes, dtype=torch.float64) * (2 * math.pi / modes)
        means = radius * torch.stack([angles.cos(), angles.sin()], 1)
        covariances = std**2 * torch.eye(2, dtype=torch.float64).expand(modes, 2, 2)
        return cls(torch.full((modes,), 1 / modes), means, covariances)

    @classmethod
    def gaussian(cls, mean: Any, covariance: Any) -> GaussianMixture:
        """A single Gaussian with a mean (D,) and a covariance (D, D)."""
        return cls([1.0], _float64(mean)[None], _float64(covariance)[None])

    def __call__(self, z: Float[Tensor, " batch *event"], level: Level) -> Estimate:
        """The exact (E[x|z], E[eps|z]) at a level of any scaling, scalar or (B,)."""
        alpha, sigma, whitened, logits = self._posterior(z, level)
        spectrum = self._spectrum.to(whitened)
        blend = torch.softmax(logits, 1)[..., None]  # (B, K, 1)
        inner = whitened / (alpha**2 * spectrum + sigma**2)
        to_event = self._axes.to(whitened)
        x = self.means.to(whitened) + torch.einsum(
            "kde,bke->bkd", to_event, alpha * spectrum * inner
        )
        eps = torch.einsum("kde,bke->bkd", to_event, sigma * inner)
        shape = z.shape
        return Estimate((blend * x).sum(1).reshape(shape), (blend * eps).sum(1).reshape(shape))

    def log_prob(self, z: Float[Tensor, " batch *event"], level: Level) -> Float[Tensor, " batch"]:
        """The exact log-density of z at a level, in nats."""
        return torch.logsumexp(self._posterior(z, level)[3], 1)

    def responsibilities(
        self, z: Float[Tensor, " batch *event"], level: Level
    ) -> Float[Tensor, " batch k"]:
        """The exact posterior probabilities of the component that z comes from, at a level."""
        return torch.softmax(self._posterior(z, level)[3], 1)

    def condition(self, A: Any, y: Any, noise: Any = 0.0) -> GaussianMixture:
        """The exact posterior of x given y = A x + noise n with n ~ N(0, I): a mixture again.

            w_k' ~ w_k N(y; A m_k, S_k),    S_k = A C_k A^T + noise^2,    G_k = C_k A^T S_k^-1
            m_k' = m_k + G_k (y - A m_k),    C_k' = C_k - G_k S_k G_k^T

        A: the measurement, (M, D).
        y: what was measured, (M,).
        noise: the standard deviation, a number or (M,), >= 0.

        ValueError for sizes that do not fit, and for a measurement without noise of what the
        mixture has no width in. `log_evidence` is the log-density of y.

            >>> prior = GaussianMixture.gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
            >>> prior.condition([[1.0, 0.0]], [2.0], noise=1.0).mean.round(decimals=6)
            tensor([1., 0.], dtype=torch.float64)
        """
        gain, residual, logits, operator, variance = self._measured(A, y, noise)
        means = self.means + (gain @ residual[..., None])[..., 0]
        keep = torch.eye(self.means.shape[1], dtype=torch.float64) - gain @ operator
        # In Joseph's form, a sum of squares, a covariance stays semi-definite when rounded.
        covariances = keep @ self.covariances @ keep.mT + gain * variance @ gain.mT
        return GaussianMixture(torch.softmax(logits, 0), means, (covariances + covariances.mT) / 2)

    def log_evidence(self, A: Any, y: Any, noise: Any = 0.0) -> float:
        """`log p(y)`, in nats, of a measurement y = A x + noise n; parameters as in `condition`."""
        return float(torch.logsumexp(self._measured(A, y, noise)[2], 0))

    def sample(self, count: int, *, seed: int, level: Level | None = None) -> Tensor:
        """Exact samples (count, D) in float64: of the data, or of z if a level is given."""
        generator = torch.Generator().manual_seed(seed)
        pick = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        deviation = self._axes * self._spectrum.sqrt()[:, None]
        x = self.means[pick] + torch.einsum("bde,be->bd", deviation[pick], noise)
        if level is None:
            return x
        return level.mix(x, torch.randn(x.shape, generator=generator, dtype=torch.float64))

    @property
    def mean(self) -> Tensor:
        """The mean of the data (D,)."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Tensor:
        """The covariance of the data (D, D)."""
        centred = self.means - self.mean
        within = torch.einsum("k,kij->ij", self.weights, self.covariances)
        return within + torch.einsum("k,ki,kj->ij", self.weights, centred, centred)

    def _measured(
        self, A: Any, y: Any, noise: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Gains (K, D, M), residuals (K, M), log w_k p_k(y) (K,); A and the variance (M,)."""
        operator, value = _float64(A), _float64(y)
        if operator.shape != (*value.shape, self.means.shape[1]) or value.ndim != 1:
            raise ValueError(
                f"a measurement of this mixture is A (M, {self.means.shape[1]}) and y (M,), got "
                f"{tuple(operator.shape)} and {tuple(value.shape)}"
            )
        variance = _float64(noise).expand(value.shape) ** 2
        across = self.covariances @ operator.mT
        factor, failed = torch.linalg.cholesky_ex(operator @ across + variance.diag())
        if bool(failed.any()):
            raise ValueError(
                "y cannot be measured without noise: the mixture has no width in some of it; pass "
                "noise > 0"
            )
        residual = value - self.means @ operator.mT
        white = torch.linalg.solve_triangular(factor, residual[..., None], upper=False)[..., 0]
        scale = (
            factor.diagonal(dim1=1, dim2=2).log().sum(1) + len(value) * math.log(2 * math.pi) / 2
        )
        logits = self.weights.log() - 0.5 * (white**2).sum(1) - scale
        return torch.cholesky_solve(across.mT, factor).mT, residual, logits, operator, variance

    def _posterior(self, z: Tensor, level: Level) -> tuple[Any, Any, Tensor, Tensor]:
        """alpha and sigma (B, 1, 1), z in each component's axes (B, K, D), log joint density (B,
        K).
        """
        flat = z.reshape(len(z), -1)
        if flat.shape[1] != self.means.shape[1]:
            raise ValueError(
                f"this mixture has {self.means.shape[1]} dimensions, z of shape {tuple(z.shape)} "
                f"has {flat.shape[1]}"
            )
        alpha, sigma = (along_batch(value, flat[:, None, :]) for value in level[1:])
        centred = flat[:, None] - alpha * self.means.to(flat)
        whitened = torch.einsum("kde,bkd->bke", self._axes.to(flat), centred)
        variance = alpha**2 * self._spectrum.to(flat) + sigma**2
        if variance.device.type == "cpu" and not bool((variance > 0).all()):
            raise ValueError(
                "a component of variance 0 has no density at sigma = 0; ask at a noisier level"
            )
        energy = (whitened**2 / variance + variance.log()).sum(-1)
        constant = flat.shape[1] * math.log(2 * math.pi)
        return alpha, sigma, whitened, self.weights.to(flat).log() - 0.5 * (energy + constant)

    def _check(self) -> None:
        modes, dims = self.means.shape
        if self.weights.shape != (modes,) or self.covariances.shape != (modes, dims, dims):
            raise ValueError(
                f"a mixture needs weights (K,), means (K, D), covariances (K, D, D); got "
                f"{tuple(self.weights.shape)}, {tuple(self.means.shape)}, "
                f"{tuple(self.covariances.shape)}"
            )
        parts = (self.weights, self.means, self.covariances)
        if not all(bool(part.isfinite().all()) for part in parts):
            raise ValueError("weights, means and covariances of a mixture are finite numbers")
        total = float(self.weights.sum())
        if not (bool((self.weights >= 0).all()) and abs(total - 1) < 1e-6):
            raise ValueError(f"weights must be probabilities, but they sum to {total}")
        symmetric = torch.allclose(self.covariances, self.covariances.mT)
        values = torch.linalg.eigvalsh(self.covariances)
        if not symmetric or float(values.min()) < -1e-10 * float(values.abs().max()):
            raise ValueError("covariances must be symmetric and positive semi-definite")
        self.weights = self.weights / total


class Empirical(_Exact):
    """The exact denoiser of a finite data set: the answer of a network that has memorised it.

        E[x|z] = sum_i softmax_i(-|z - alpha x_i|^2 / (2 sigma^2)) x_i

    The softmax is accumulated with a running maximum, in the dtype of the state. The formula is
    undefined at sigma = 0, where a call is refused.

    data: a tensor, an array or a memory map of shape (N, *event). It is read in chunks, so that N
        may be as large as the disk.
    chunk: the number of samples that are read at a time.
    """

    def __init__(self, data: Any, chunk: int = 4096) -> None:
        """ValueError where there are no data, or no sample in a chunk."""
        if len(data) == 0 or chunk < 1:
            raise ValueError(f"Empirical needs data and a positive chunk, got {len(data)}, {chunk}")
        self.data, self.chunk = data, chunk

    def __call__(self, z: Float[Tensor, " batch *event"], level: Level) -> Estimate:
        """The exact (E[x|z], E[eps|z]) at a level with sigma > 0."""
        flat = z.reshape(len(z), -1)
        alpha, sigma = along_batch(level.alpha, flat), along_batch(level.sigma, flat)
        if bool(torch.as_tensor(sigma == 0).any()):
            raise ValueError("the empirical denoiser is undefined at sigma = 0; take x = z / alpha")
        best = flat.new_full((len(z), 1), -math.inf)
        mass, total = torch.zeros_like(best), torch.zeros_like(flat)
        for rows in self._chunks(flat):
            distance = (flat**2).sum(1, keepdim=True) - 2 * alpha * (flat @ rows.T)
            logits = -(distance + alpha**2 * (rows**2).sum(1)) / (2 * sigma**2)
            top = torch.maximum(best, logits.amax(1, keepdim=True))
            keep, share = (best - top).exp(), (logits - top).exp()
            mass = mass * keep + share.sum(1, keepdim=True)
            total, best = total * keep + share @ rows, top
        x = total / mass
        return Estimate(x.reshape(z.shape), ((flat - alpha * x) / sigma).reshape(z.shape))

    def sample(self, count: int, *, seed: int) -> Tensor:
        """Samples of the data, drawn with replacement."""
        pick = np.random.default_rng(seed).integers(len(self.data), size=count)
        return torch.stack([torch.as_tensor(self.data[int(i)]) for i in pick])

    def _chunks(self, like: Tensor) -> Any:
        for start in range(0, len(self.data), self.chunk):
            rows = torch.as_tensor(self.data[start : start + self.chunk])
            yield rows.to(like.device, like.dtype).reshape(len(rows), -1)
