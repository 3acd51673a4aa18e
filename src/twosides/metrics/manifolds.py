"""Fidelity and diversity separately, by nearest neighbours: precision, recall, density, coverage.

The manifold of a set is the union of balls around its rows that reach to their k-th nearest
neighbour in the set. A point on the surface of a ball, or within rounding of it, is inside.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from twosides.metrics.distances import check_features

BLOCK = 1024
ROUNDING = 1e-12  # the rounding of squared distances, relative to the largest squared norm


class Neighbours(NamedTuple):
    """The four metrics, shares of the samples or of the rows of reference; density may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbours(x: Float[Tensor, " n d"], y: Float[Tensor, " m d"], k: int = 5) -> Neighbours:
    """Precision, recall, density and coverage of samples x against a reference y.

        precision  share of x within r(y_j) of some y_j           recall  the same with x, y swapped
        density    mean over x of (number of such j) / k
        coverage   share of y_j with some x within r(y_j)

    where r(.) is the distance to the k-th neighbour. For equal distributions precision and recall
    stay below 1, by how much depends on k, the counts and the dimension; density has mean 1;
    coverage has mean 1 - prod_{i=1..k} (M - i) / (M + N - i), near 1 - 2^-k at N = M, in any
    dimension. [Kynkaanniemi+ 2019; Naeem+ 2020]

    x, y: the features of the samples and of the reference.
    k: which neighbour gives the radius, >= 1; 5 in Naeem+ 2020.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> neighbours(x + 0.1, x, k=1)
    Neighbours(precision=1.0, recall=1.0, density=1.5, coverage=1.0)
    """
    if k < 1:
        raise ValueError(f"neighbours takes the k-th neighbour, k >= 1, got k={k}")
    x, y = check_features(x, y, k + 1)
    centre = y.mean(0)  # squares, by which distances are computed, lose digits far from 0
    x, y = x - centre, y - centre
    rounding = ROUNDING * torch.stack([rows.square().sum(1).max() for rows in (x, y)]).max()
    around_x, around_y = ((_radii(rows, k) ** 2 + rounding).sqrt() for rows in (x, y))
    balls: list[Tensor] = []
    covered, recalled = (torch.zeros(len(y), dtype=torch.bool) for _ in range(2))
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        distance = torch.cdist(x[rows], y)
        inside = distance <= around_y
        balls.append(inside.sum(1))
        covered |= inside.any(0)
        recalled |= (distance <= around_x[rows, None]).any(0)
    hits = torch.cat(balls).double()
    precision, density = (hits > 0).double().mean(), hits.mean() / k
    shares = (precision, recalled.double().mean(), density, covered.double().mean())
    return Neighbours(*map(float, shares))


def _radii(x: Tensor, k: int) -> Tensor:
    """The distance (N,) of each row to its k-th nearest other row."""
    parts: list[Tensor] = []
    for start in range(0, len(x), BLOCK):
        distance = torch.cdist(x[start : start + BLOCK], x)
        distance.diagonal(start).fill_(torch.inf)
        parts.append(distance.kthvalue(k, 1).values)
    return torch.cat(parts)
