"""Which noise goes with which data while training.

Independent noise is what diffusion models are made of: eps is then the score. Any other pairing
whose parts are normal noise and the data gives a flow with the same ends and other paths. Minibatch
optimal transport pairs the rows of a batch so that the noise has little way to go, which makes
paths straighter [Pooladian+ 2023, arxiv.org/abs/2304.14772; Tong+ 2023, arxiv.org/abs/2302.00482].

A model so trained has to say it, `denoiser.coupling = "minibatch-ot"`: it is sampled without noise.
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

Coupling = Callable[[Tensor, Tensor], Tensor]  # (x, eps) -> eps, in another order


def independent(x: Tensor, eps: Tensor) -> Tensor:
    """The noise as it was drawn."""
    return eps


def minibatch(x: Tensor, eps: Tensor) -> Tensor:
    """The noise in the order for which `sum |x_i - eps_i|^2` is least, exactly.

    x, eps: (B, ...). Of several processes each pairs its own part of a batch. It needs SciPy, and
    some B^3 operations: a few milliseconds for 256 rows.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("minibatch optimal transport needs SciPy: pip install scipy") from error
    costs = torch.cdist(x.flatten(1).double(), eps.flatten(1).double()).square()
    _, order = linear_sum_assignment(costs.cpu().numpy())
    return eps[torch.as_tensor(order, device=eps.device)]


COUPLINGS: dict[str, Coupling] = {"independent": independent, "minibatch-ot": minibatch}


@dataclass(frozen=True, kw_only=True)
class Coupled(Objective):
    """An objective whose noise is paired with the data of its batch.

    >>> import twosides as ts
    >>> objective = Coupled.of(ts.recipes["flow-matching"].objective(), "minibatch-ot")
    >>> denoiser, x = ts.Denoiser(lambda z, t: 0 * z), torch.ones(8, 2)
    >>> objective(denoiser, x).shape
    torch.Size([8])
    """

    coupling: str = "independent"

    @classmethod
    def of(cls, objective: Objective, coupling: str) -> Coupled:
        """The same weighting and density; ValueError for an unknown coupling.

        coupling: a row of `COUPLINGS`.
        """
        if coupling not in COUPLINGS:
            raise unknown("coupling", coupling, COUPLINGS)
        parts = {part.name: getattr(objective, part.name) for part in fields(Objective)}
        return cls(**parts, coupling=coupling)

    def evaluate(
        self, denoiser: Any, x: Tensor, *, generator: Randomness = None, **conditioning: Any
    ) -> Losses:
        """The losses with the levels they were measured at."""
        x = exact(x)
        if not isinstance(generator, PerSample):
            seed = fresh_seed() if generator is None else generator
            if isinstance(seed, torch.Generator):
                seed = int(torch.randint(2**62, (), generator=seed))
            generator = PerSample(seed, range(len(x)))
        paired: Any = copy.copy(generator)
        drawn, pair = generator.normal, COUPLINGS[self.coupling]
        data = as_denoiser(denoiser).standardise(x)
        paired.normal = lambda *how: pair(data, drawn(*how))
        return super().evaluate(denoiser, x, generator=paired, **conditioning)
