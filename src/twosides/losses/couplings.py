"""Couplings: which noise is paired with which data in training.

Diffusion models pair each row of data with noise that is independent of it. Only then is the eps
that a model learns the score of the noisy data, up to the factor -sigma, and samplers with noise
need the score. A coupling is any other way to pair them, such that the noise by itself is still
normal and the data by themselves are still the data. The ODE that is learned then has the same two
ends, and other paths between them.

Minibatch optimal transport pairs the rows of a batch so that the noise is near to its data, which
makes the paths straighter [Pooladian+ 2023, arxiv.org/abs/2304.14772; Tong+ 2023,
arxiv.org/abs/2302.00482]. The pairing looks at the data alone and not at their conditioning. The
noise that is paired with the data of one class is therefore not normal by itself, although sampling
a class begins with normal noise [Cheng & Schwing 2025, arxiv.org/abs/2503.10636].

A model that was trained so has to say it, `denoiser.coupling = "minibatch-ot"`; samplers that
inject noise then refuse it. Reflow trains on pairs, too, but it finds them by running the ODE of
another model, not within a batch (`distillation`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from twosides.denoiser import as_denoiser
from twosides.losses.objective import Losses, Objective, Randomness, exact
from twosides.naming import unknown
from twosides.randomness import PerSample, fresh_seed
from twosides.schedules.level import _float64

Coupling = Callable[[Tensor, Tensor], Tensor]  # (x, eps) -> the rows of eps in another order


def independent(x: Tensor, eps: Tensor) -> Tensor:
    """The noise as it was drawn, which is independent of the data.

    x: the data (B, ...).
    eps: the noise (B, ...).
    """
    return eps


def minibatch(x: Tensor, eps: Tensor) -> Tensor:
    """The noise in the order for which `sum |x_i - eps_i|^2` is least, exactly.

    The order is found in some B^3 operations, a few milliseconds for 256 rows. Each process pairs
    the rows of its own micro-batches only, so that the pairs depend on how many processes there
    are.

    x: the data (B, ...).
    eps: the noise (B, ...).

    ImportError without SciPy.

    >>> x, eps = torch.tensor([[0.0], [9.0]]), torch.tensor([[8.0], [1.0]])
    >>> minibatch(x, eps).flatten()
    tensor([1., 8.])
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("minibatch optimal transport needs SciPy: pip install scipy") from error
    costs = torch.cdist(_float64(x.flatten(1)), _float64(eps.flatten(1))).square()
    _, order = linear_sum_assignment(costs.cpu().numpy())
    return eps[torch.as_tensor(order, device=eps.device)]


COUPLINGS: dict[str, Coupling] = {"independent": independent, "minibatch-ot": minibatch}


@dataclass(frozen=True, kw_only=True)
class Coupled(Objective):
    """An objective whose noise is paired with the data of its batch.

    weighting, density, stratified: as in `Objective`.
    coupling: a row of `COUPLINGS`, by default "independent".

    >>> import twosides as ts
    >>> objective = Coupled.of(ts.recipes["flow-matching"].objective(), "minibatch-ot")
    >>> denoiser, x = ts.Denoiser(lambda z, t: 0 * z), torch.ones(8, 2)
    >>> objective(denoiser, x).shape
    torch.Size([8])
    """

    coupling: str = "independent"

    @classmethod
    def of(cls, objective: Objective, coupling: str) -> Coupled:
        """An objective like another, with a coupling; ValueError for an unknown one.

        objective: the objective whose weighting and density are taken.
        coupling: a row of `COUPLINGS`.
        """
        if coupling not in COUPLINGS:
            raise unknown("coupling", coupling, COUPLINGS)
        parts = {part.name: getattr(objective, part.name) for part in fields(Objective)}
        return cls(**parts, coupling=coupling)

    def evaluate(
        self, denoiser: Any, x: Tensor, *, generator: Randomness = None, **conditioning: Any
    ) -> Losses:
        """The losses of a batch, with the levels at which they were measured.

        denoiser: the denoiser to train.
        x: the data (B, ...), in their own units.
        generator: as in `Objective`.
        conditioning: what else the network is told, and the mask of the loss.
        """
        x = exact(x)
        # The noise is drawn by a PerSample below, so other sources only give its seed.
        if not isinstance(generator, PerSample):
            seed = fresh_seed() if generator is None else generator
            if isinstance(seed, torch.Generator):
                seed = int(torch.randint(2**62, (), generator=seed))
            generator = PerSample(seed, range(len(x)))
        # Only the noise is paired; levels and all else are drawn as without a coupling.
        paired: Any = copy.copy(generator)
        drawn, pair = generator.normal, COUPLINGS[self.coupling]
        data = as_denoiser(denoiser).standardise(x)
        paired.normal = lambda *how: pair(data, drawn(*how))
        return super().evaluate(denoiser, x, generator=paired, **conditioning)
