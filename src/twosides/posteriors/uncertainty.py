"""Whether a network knows how uncertain it is: its posterior covariance beside its true error.

Given the state z at a level, the data have a covariance that the exact denoiser's derivative
states, and whose trace is the error of the exact estimate x_hat = E[x | z]:

    C(z) = (sigma^2 / alpha) dx_hat / dz,    E |x_hat - x|^2 = E tr C(z)

    Maximum likelihood training of score-based diffusion ODEs by high-order denoising score matching
    [Lu+ 2022, arxiv.org/abs/2206.08265]; Efron 2011, Tweedie's formula and selection bias

A network's derivative is trained by nothing. Where the two sides agree, what `posterior` takes from
it ("mmps", "pigdm") can be believed; where they do not, it cannot, and `posterior(trust=)` is the
level to stop at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from twosides.denoiser import Denoises, as_denoiser
from twosides.display import tables
from twosides.dynamics import require_score
from twosides.posteriors.measurement import dot
from twosides.randomness import PerSample

LOGSNRS = tuple(float(logsnr) for logsnr in range(-8, 11, 2))


class Uncertainty(NamedTuple):
    """One level.

    logsnr: the level.
    error: the mean square of x_hat - x over samples and their numbers, standardised as the denoiser
        has the data.
    stated: the mean of tr C(z) / D, D the numbers of a sample.
    apart: the standard error of `error - stated`, which is taken over the same samples.
    """

    logsnr: float
    error: float
    stated: float
    apart: float


def uncertainty(
    denoiser: Denoises,
    data: Tensor,
    *,
    logsnrs: Iterable[float] = LOGSNRS,
    probes: int = 2,
    seed: int = 0,
    **conditioning: Any,
) -> list[Uncertainty]:
    """The error of a denoiser and the error that its derivative states, level by level.

    denoiser: the model, with differentiable answers.
    data: data that it was not trained on, (B, ...), in their own units.
    logsnrs: the levels, finite ones.
    probes: the number of random vectors by which each trace is estimated, >= 1, one backward pass
        each: tr C = E v . C v for signs v [Hutchinson 1990].
    seed: the seed of the noise and of the vectors; row i depends on (seed, i) only.
    conditioning: what the network is told, tensors of B rows.

    Levels at which the denoiser has no answer are left out. ValueError for a model whose eps is no
    score, for levels that are not finite, for less than 2 rows, and for probes below 1.

        >>> import twosides as ts
        >>> unit = ts.oracle.GaussianMixture.gaussian([0.0], [[1.0]])
        >>> (row,) = uncertainty(unit, unit.sample(4000, seed=1), logsnrs=[0.0])
        >>> round(row.stated, 3), abs(row.error - row.stated) < 4 * row.apart
        (0.5, True)
    """
    model, levels = as_denoiser(denoiser), tuple(map(float, logsnrs))
    require_score(model, "an uncertainty")
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    if not all(map(math.isfinite, levels)):
        raise ValueError(f"uncertainty is measured at finite log-SNRs, got {levels}")
    if len(data) < 2:
        raise ValueError(
            f"uncertainty is a mean over data, of which 2 rows are few; got {len(data)}"
        )
    x = model.standardise(data)
    own = PerSample(seed, range(len(x)))
    eps = own.normal(x.shape[1:], x.dtype, x.device)
    signs = [own.normal(x.shape[1:], x.dtype, x.device).sign() for _ in range(probes)]
    rows = []
    for logsnr in levels:
        try:
            level = model.schedule.level(logsnr).floats()
            z = level.mix(x, eps).requires_grad_()
            with torch.enable_grad():
                estimate = model(z, level, **conditioning).x
        except ValueError:  # beyond the model's range
            continue
        if not estimate.requires_grad:
            raise ValueError(
                "the denoiser's estimate has no derivative in z, which states its uncertainty: "
                "take it out of torch.no_grad() or .detach()"
            )
        error = dot(estimate.detach() - x, estimate.detach() - x)
        rows.append(_row(logsnr, error, _traces(z, estimate, signs), level.sigma, level.alpha, x))
    return rows


def _traces(z: Tensor, estimate: Tensor, signs: Sequence[Tensor]) -> Tensor:
    """Estimates of the traces of dx_hat / dz, (B,)."""
    traces = torch.zeros(len(z), dtype=z.dtype, device=z.device)
    for number, sign in enumerate(signs, 1):
        (back,) = torch.autograd.grad(estimate, z, sign, retain_graph=number < len(signs))
        traces = traces + dot(back, sign) / len(signs)
    return traces


def _row(
    logsnr: float, error: Tensor, traces: Tensor, sigma: float, alpha: float, x: Tensor
) -> Uncertainty:
    size = math.prod(x.shape[1:])
    error = error.cpu().double() / size
    stated = traces.cpu().double() * (sigma**2 / alpha) / size
    apart = (error - stated).std() / math.sqrt(len(x))
    return Uncertainty(logsnr, float(error.mean()), float(stated.mean()), float(apart))


def text(rows: Sequence[Uncertainty]) -> str:
    """The levels as a table for a terminal."""
    cells = [
        (f"{row.logsnr:g}", f"{row.error:.4g}", f"{row.stated:.4g} +- {row.apart:.1g}")
        for row in rows
    ]
    return tables.text([("logsnr", "mean square error", "stated by the derivative"), *cells])


def draw(rows: Sequence[Uncertainty]) -> Any:
    """The two sides against the level, as a figure of matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    at = [row.logsnr for row in rows]
    axes.plot(at, [row.error for row in rows], "o-", label="error of the estimate")
    low = [max(row.stated, 0.0) for row in rows]
    axes.plot(at, low, "s--", label="stated by the network's derivative")
    axes.set(xlabel="log-SNR", ylabel="mean square, standardised data", yscale="log")
    axes.grid(alpha=0.25, lw=0.5)
    axes.legend(frameon=False)
    return figure
