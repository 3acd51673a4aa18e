"""Metrics by name, with standard errors.

The error is that of the delete-a-group jackknife, with g = 20 groups drawn from a seed: with v_j
the value without group j of the samples and of the reference,

    error^2 = (g - 1) / g  sum_j (v_j - mean of v)^2

No row is repeated, as in the bootstrap, where a repeated row is its own nearest neighbour and adds
k(x, x) to an unbiased kernel sum. The error is the change that other samples of the same model and
other rows of reference would make, and not that of another training. Where it is wrong it is too
large: up to 1.5 times for equal distributions, about twice for nearest neighbours. [Quenouille
1956; Shao & Wu 1989]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from twosides.metrics.distances import frechet, kernel_distance, mmd, sliced_wasserstein
from twosides.metrics.extractors import Extractor, extract, extractor_named
from twosides.metrics.manifolds import neighbours
from twosides.naming import unknown

GROUPS = 20
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Metric:
    """A function of two sets of features, or one field of its result, with its best value."""

    function: Callable[[Tensor, Tensor], Any]
    field: str = ""
    best: str = "0"


METRICS: dict[str, Metric] = {
    "frechet": Metric(frechet),
    "kid": Metric(kernel_distance),
    "mmd": Metric(mmd),
    "sliced-w2": Metric(sliced_wasserstein),
    "precision": Metric(neighbours, "precision", "1"),
    "recall": Metric(neighbours, "recall", "1"),
    "density": Metric(neighbours, "density", "1"),
    "coverage": Metric(neighbours, "coverage", "1"),
}


@dataclass(frozen=True)
class Measured:
    """The value of a metric.

    value: the value.
    error: its standard error.
    samples, reference: the numbers of samples and of rows of reference.
    """

    value: float
    error: float
    samples: int
    reference: int

    def __str__(self) -> str:
        """The value with as many digits as the error allows.

        >>> print(Measured(0.123456, 0.0123, 500, 500))
        0.123 ± 0.012
        """
        if not self.error > 0:
            return f"{self.value:.4g} ± {self.error:.2g}"
        digits = max(0, 1 - int(np.floor(np.log10(self.error))))
        return f"{self.value:.{digits}f} ± {self.error:.{digits}f}"


def evaluate(
    x: Tensor,
    reference: Tensor,
    *,
    extractor: str | Extractor = "pixels",
    metrics: Sequence[str] = tuple(METRICS),
    seed: int = 0,
    trust_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Measured]:
    """Metrics of samples against reference data, in the features of an extractor.

    x, reference: the samples (N, ...) and the data (M, ...).
    extractor: the function x -> features (N, D), or a name: "pixels", "reader" (letters), the
        folder of a transformers model, or "package.module:function" with trust_code.
    metrics: names of METRICS, by default all.
    seed: the seed of the groups that the standard error leaves out.
    trust_code: whether an extractor may be imported, which runs its module.
    progress: a function that is called with (done, total).

    >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> found = evaluate(x[:100], x[100:] + 9, metrics=["frechet", "recall"])
    >>> found["frechet"].value > 10 * found["frechet"].error, found["recall"].value
    (True, 0.0)
    """
    if tuple(x.shape[1:]) != tuple(reference.shape[1:]):
        raise ValueError(
            f"samples are of shape {tuple(x.shape[1:])} and the reference of shape "
            f"{tuple(reference.shape[1:])}; they must be alike"
        )
    chosen = extractor_named(extractor, trust_code=trust_code)
    return measure(
        extract(x, chosen), extract(reference, chosen), metrics, seed=seed, progress=progress
    )


def measure(
    x: Float[Tensor, " n d"],
    y: Float[Tensor, " m d"],
    metrics: Sequence[str] = tuple(METRICS),
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Measured]:
    """Metrics of features x against y, each with its standard error; see `evaluate`."""
    check_names(metrics)
    check_counts(len(x), len(y))
    # Several metrics are fields of one function's result.
    functions = dict.fromkeys(METRICS[name].function for name in metrics)
    results: dict[Any, list[Any]] = {function: [] for function in functions}
    done, total = 0, len(functions) * (GROUPS + 1)
    for function, values in results.items():
        for pair in _leave_groups_out(x, y, seed):
            values.append(function(*pair))
            done += 1
            if progress is not None:
                progress(done, total)
    return {name: _summary(METRICS[name], results, len(x), len(y)) for name in metrics}


def check_names(metrics: Sequence[str]) -> None:
    """ValueError for unknown metrics."""
    if isinstance(metrics, str) or not metrics:
        raise ValueError(f"metrics are a list of names, got {metrics!r}")
    for name in metrics:
        if name not in METRICS:
            raise unknown("metric", name, METRICS)


def check_counts(samples: int, reference: int) -> None:
    """ValueError for fewer samples or rows of reference than standard errors need."""
    if min(samples, reference) < 2 * GROUPS:
        raise ValueError(
            f"{samples} samples and {reference} of reference are too few for standard errors; "
            f"give at least {2 * GROUPS} of each, a thousand are better"
        )


def _summary(metric: Metric, results: dict[Any, list[Any]], n: int, m: int) -> Measured:
    """A metric of n samples and m rows with its jackknife error, from the values of its function.

    The first value is that of all samples and rows; each of the others leaves a group out.
    """
    each = results[metric.function]
    values = [getattr(one, metric.field) if metric.field else one for one in each]
    error = np.std(values[1:]) * (GROUPS - 1) ** 0.5
    return Measured(float(values[0]), float(error), n, m)


def _leave_groups_out(x: Tensor, y: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All rows of both sides, then those without each of the groups, one pair at a time."""
    yield x, y
    random = np.random.default_rng(seed)
    groups = [torch.from_numpy(random.permutation(len(side)) % GROUPS) for side in (x, y)]
    for group in range(GROUPS):
        yield x[groups[0] != group], y[groups[1] != group]
