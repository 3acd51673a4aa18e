"""Distances between two sets of features x (N, D) and y (M, D), in float64.

All are zero for equal distributions; the bias of each at a finite number of samples is stated.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from twosides.oracle import GaussianMixture
from twosides.schedules import Level

Kernel = Callable[[Tensor, Tensor], Tensor]  # from rows (N, D) and (M, D) to values (N, M)

BLOCK = 4096  # the rows of a kernel matrix that are in memory at once
DIRECTIONS = 256  # the directions of the sliced distance
MEDIAN_OF = 2000  # the rows of the reference whose distances give the bandwidth


def check_features(
    x: Float[Tensor, " n d"], y: Float[Tensor, " m d"], at_least: int
) -> tuple[Tensor, Tensor]:
    """Return both sets of features as finite float64 on the CPU.

    x, y: samples and reference.
    at_least: the number of rows that either must have.

    ValueError for too few rows, for different numbers of features, and for NaN.
    """
    sides: list[Tensor] = []
    for name, side in (("samples", x), ("reference", y)):
        if side.ndim != 2 or side.shape[1] == 0:
            raise ValueError(
                f"the {name} have shape {tuple(side.shape)}, but features are (N, D); "
                "flatten them, or use metrics.evaluate with an extractor"
            )
        if len(side) < at_least:
            raise ValueError(f"{len(side)} {name} are too few; give at least {at_least}")
        side = side.detach().to("cpu", torch.float64)
        wrong = int((~torch.isfinite(side)).any(1).sum())
        if wrong:
            raise ValueError(f"{wrong} of {len(side)} {name} have NaN or infinite features")
        sides.append(side)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"samples have {x.shape[1]} features and the reference {y.shape[1]}; "
            "make both with one extractor"
        )
    return sides[0], sides[1]


def frechet(x: Float[Tensor, " n d"], y: Float[Tensor, " m d"]) -> float:
    """The Frechet distance of the Gaussians with the sets' moments; FID, with Inception's features.

        |m_x - m_y|^2 + tr(C_x) + tr(C_y) - 2 tr((C_x C_y)^(1/2))

    It depends on means and covariances only. It is biased upwards, by about 1/N + 1/M times a
    constant that grows with D [Chong & Forsyth 2020]: compare at equal counts. [Heusel+ 2017;
    Dowson & Landau 1982]

    x, y: the features of the samples and of the reference.

    >>> frechet(torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]]))
    9.0
    """
    x, y = check_features(x, y, 2)
    roots = []
    for side in (x, y):
        centred = (side - side.mean(0)) / math.sqrt(len(side) - 1)
        # R'R is the covariance, which is never formed: squaring would cost half the digits.
        roots.append(torch.linalg.qr(centred, mode="r").R)
    return _frechet(x.mean(0) - y.mean(0), roots[0], roots[1])


def frechet_of_gaussians(
    mean_x: Tensor, covariance_x: Tensor, mean_y: Tensor, covariance_y: Tensor
) -> float:
    """`frechet` of two Gaussians with known means (D,) and covariances (D, D): squared W2.

    >>> one = torch.eye(2)
    >>> round(frechet_of_gaussians(torch.zeros(2), one, torch.ones(2), 4 * one), 12)
    4.0
    """
    roots = [_root(covariance_x), _root(covariance_y)]
    return _frechet(mean_x.double() - mean_y.double(), roots[0], roots[1])


def _root(covariance: Tensor) -> Tensor:
    """R with R'R = C."""
    covariance = covariance.double()
    values, axes = torch.linalg.eigh(covariance)
    size = float(values.abs().max())
    if not torch.allclose(covariance, covariance.mT) or float(values.min()) < -1e-10 * size:
        raise ValueError("a covariance must be symmetric and positive semi-definite")
    return values.clamp(min=0).sqrt()[:, None] * axes.mT


def _frechet(shift: Tensor, p: Tensor, q: Tensor) -> float:
    """From P'P and Q'Q: the eigenvalues of P'P Q'Q are the squared singular values of P Q'."""
    overlap = torch.linalg.svdvals(p @ q.mT).sum()
    return float((shift @ shift + (p**2).sum() + (q**2).sum() - 2 * overlap).clamp(min=0))


def kernel_distance(x: Float[Tensor, " n d"], y: Float[Tensor, " m d"]) -> float:
    """The squared MMD under the kernel (x.y / D + 1)^3; KID, with Inception's features.

    It depends on moments up to the third. It is unbiased, so that it is below zero now and then.
    The KID of torchmetrics is its mean over random subsets. [Binkowski+ 2018]

    x, y: the features of the samples and of the reference.
    """
    x, y = check_features(x, y, 2)
    return _mmd(x, y, lambda a, b: (a @ b.mT / a.shape[1] + 1) ** 3)


def mmd(x: Float[Tensor, " n d"], y: Float[Tensor, " m d"]) -> float:
    """The squared MMD under the kernel exp(-|x - y|^2 / 2 h^2), h the median distance within y.

    It is zero only for equal distributions, and unbiased, so that it is below zero now and then. h
    depends on the reference alone, of which 2,000 rows are used, so that models are measured with
    one kernel. [Gretton+ 2012]

    x, y: the features of the samples and of the reference.
    """
    x, y = check_features(x, y, 2)
    rows = torch.from_numpy(np.random.default_rng(0).permutation(len(y))[:MEDIAN_OF])
    width = float(np.median(torch.pdist(y[rows] if len(y) > MEDIAN_OF else y).numpy()))
    if width == 0:
        raise ValueError("most rows of the reference are equal, so that mmd has no bandwidth")
    centre = y.mean(0)
    x, y = (x - centre) / width, (y - centre) / width
    return _mmd(x, y, lambda a, b: (-(torch.cdist(a, b) ** 2) / 2).exp())


def _mmd(x: Tensor, y: Tensor, kernel: Kernel) -> float:
    """Unbiased: mean k(x, x') + mean k(y, y') - 2 mean k(x, y), the means over different rows."""
    across = sum(float(kernel(rows, y).sum()) for rows in x.split(BLOCK)) / (len(x) * len(y))
    return _within(x, kernel) + _within(y, kernel) - 2 * across


def _within(x: Tensor, kernel: Kernel) -> float:
    total = 0.0
    for start in range(0, len(x), BLOCK):
        values = kernel(x[start : start + BLOCK], x)
        total += float(values.sum() - values.diagonal(start).sum())
    return total / (len(x) * (len(x) - 1))


def sliced_wasserstein(
    x: Float[Tensor, " n d"], y: Float[Tensor, " m d"], *, seed: int = 0
) -> float:
    """The sliced Wasserstein distance: the root mean square of W2 of the projections on directions.

        W2^2 = integral over u in (0, 1) of (F_x^-1(u) - F_y^-1(u))^2

    The integral is exact, by sorting, also for N != M. The distance is zero only for equal
    distributions, and biased upwards by about (1/N + 1/M)^(1/2) times the spread of the data.
    [Rabin+ 2012; Bonneel+ 2015]

    x, y: the features of the samples and of the reference.
    seed: the seed of the 256 directions.

    >>> sliced_wasserstein(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [4.0]]))
    3.0
    """
    x, y = check_features(x, y, 1)
    drawn = np.random.default_rng(seed).standard_normal((x.shape[1], DIRECTIONS))
    directions = torch.nn.functional.normalize(torch.from_numpy(drawn), dim=0)
    if x.shape[1] == 1:
        directions = directions[:, :1].sign()
    p, q = (side @ directions for side in (x, y))
    p, q = p.sort(0).values, q.sort(0).values
    # Both quantile functions are constant between the points k/N and k/M, here multiplied by N M.
    n, m = len(p), len(q)
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m) * n]).unique()
    share = ends.diff(prepend=ends.new_zeros(1)).double() / (n * m)
    gap = p[(ends - 1) // m] - q[(ends - 1) // n]
    return math.sqrt(float((share[:, None] * gap**2).sum(0).mean()))


def mode_masses(x: Float[Tensor, " n d"], mixture: GaussianMixture) -> Float[Tensor, " k"]:
    """The mean posterior of each component given the samples; for exact samples, the weights.

    It is unbiased, since E_x p(k | x) = p(k), and needs components of positive width.

    x: the samples (N, D) themselves.
    mixture: the mixture that they should be samples of.

    >>> ring = GaussianMixture.ring(4, std=0.1)
    >>> mode_masses(ring.means[:2].repeat(3, 1), ring).round(decimals=6).tolist()
    [0.5, 0.5, 0.0, 0.0]
    """
    x, _ = check_features(x, mixture.means, 1)
    return mixture.responsibilities(x, Level(math.inf, 1.0, 0.0)).mean(0)
