"""What a loss optimises: weightings w(logsnr) in `integral of w E|eps_hat - eps|^2 dlogsnr`.

Every published loss is a weighting: with an output y, its native weight c and levels drawn from p,

    w = p c kappa_y,    |y_hat - y|^2 = kappa_y |eps_hat - eps|^2

Two recipes train the same model exactly when their weightings are proportional. A weighting states
`log w`, so that nothing overflows in the tails.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from twosides.outputs import Output, output_named
from twosides.schedules import Schedule
from twosides.training.densities import Density


class Weighting(abc.ABC):
    """A weighting w(logsnr)."""

    @abc.abstractmethod
    def log(self, logsnr: Tensor) -> Tensor:
        """`log w(logsnr)`, float64."""


@dataclass(frozen=True)
class OutputMSE(Weighting):
    """The plain mean squared error of an output, at levels drawn from a density: `w = p kappa`.

    u on flow matching: exp(-logsnr/2)/2. v on the cosine schedule: exp(-logsnr/2)/pi.
    """

    output: str | Output
    schedule: Schedule
    density: Density

    def log(self, logsnr: Tensor) -> Tensor:
        """`log p + log kappa`."""
        output = output_named(self.output, self.schedule)
        return self.density.log_prob(logsnr) + output.kappa(self.schedule.level(logsnr)).log()


@dataclass(frozen=True)
class ELBO(Weighting):
    """The variational bound, `w = 1/2` (nats) [Kingma+ 2021]."""

    def log(self, logsnr: Tensor) -> Tensor:
        """`-log 2`."""
        return torch.full_like(logsnr, -math.log(2))


@dataclass(frozen=True)
class Sigmoid(Weighting):
    """`w = sigmoid(bias - logsnr)` [Kingma & Gao 2023; soft-min-SNR with gamma = exp(bias)]."""

    bias: float = 2.0

    def log(self, logsnr: Tensor) -> Tensor:
        """`log sigmoid(bias - logsnr)`."""
        return torch.nn.functional.logsigmoid(self.bias - logsnr)


@dataclass(frozen=True)
class LogFunction(Weighting):
    """Any weighting, given as the function `log w`."""

    function: Callable[[Tensor], Tensor]

    def log(self, logsnr: Tensor) -> Tensor:
        """The function."""
        return self.function(logsnr)
