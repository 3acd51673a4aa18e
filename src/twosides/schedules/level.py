"""A noise level, and the conventions for the scale of (alpha, sigma).

A scaling says how long the vector (alpha, sigma) is at a log-SNR, and not which log-SNR a time
means. Slopes are taken in the flow time `tau = sigma / (alpha + sigma)`, which runs from 0 at the
data to 1 at noise.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

WITHOUT_FLOAT64 = {"mps"}  # devices, by type: levels that are told there are computed on the CPU
Scalar = Any  # a float or a float64 tensor: the formulas below use operators only


class Level(NamedTuple):
    """A noise level of `z = alpha x + sigma eps`.

    logsnr: `log(alpha^2 / sigma^2)`, which identifies the level; +-inf are ordinary values.
    alpha, sigma: the weights of data and noise, in some scaling. All three are floats in sampling,
        and tensors of shape (B,) in training, one level for each sample.
    """

    logsnr: Scalar
    alpha: Scalar
    sigma: Scalar

    @property
    def scale(self) -> Scalar:
        """`alpha + sigma`: what z must be divided by to lose its scaling convention."""
        return self.alpha + self.sigma

    def mix(self, x: Any, eps: Any) -> Any:
        """The noisy z, `alpha x + sigma eps`; levels of shape (B,) act along the first axis."""
        return along_batch(self.alpha, x) * x + along_batch(self.sigma, x) * eps

    def floats(self) -> Level:
        """The same level as Python floats (for levels of one element)."""
        return Level(*(float(value) for value in self))

    def __repr__(self) -> str:
        """Short form, for people."""
        values = zip(self._fields, self, strict=True)
        return f"Level({', '.join(f'{name}={_short(value)}' for name, value in values)})"


def _short(value: Scalar) -> str:
    single = not isinstance(value, Tensor) or value.ndim == 0
    return f"{float(value):.5g}" if single else repr(value)


def along_batch(value: Scalar, like: Any) -> Any:
    """A level's (B,) tensor with the dtype, device and number of axes of `like`.

    Numbers, and whatever meets something that is no tensor, are returned as they are.
    """
    if not isinstance(value, Tensor) or not isinstance(like, Tensor):
        return value
    value = value.to(like.device, like.dtype)
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim)) if value.ndim else value


def _float64(value: Any) -> Tensor:
    narrow = isinstance(value, Tensor) and value.device.type in WITHOUT_FLOAT64
    return torch.as_tensor(value.cpu() if narrow else value, dtype=torch.float64)


class Scaling(abc.ABC):
    """(alpha, sigma) as functions of logsnr, and their derivatives in the flow time tau."""

    @abc.abstractmethod
    def levels(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at logsnr."""

    @abc.abstractmethod
    def slopes(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        """(dalpha/dtau, dsigma/dtau) at logsnr, tau = sigma / (alpha + sigma)."""


class _VP(Scaling):
    def levels(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        logsigmoid = torch.nn.functional.logsigmoid
        return (0.5 * logsigmoid(logsnr)).exp(), (0.5 * logsigmoid(-logsnr)).exp()

    def slopes(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        data, noise = torch.sigmoid(0.5 * logsnr), torch.sigmoid(-0.5 * logsnr)
        norm = torch.hypot(data, noise) ** 3
        return -noise / norm, data / norm


class _Flow(Scaling):
    def levels(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(0.5 * logsnr), torch.sigmoid(-0.5 * logsnr)

    def slopes(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(logsnr)
        return -one, one


class _VE(Scaling):
    def levels(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(logsnr), (-0.5 * logsnr).exp()

    def slopes(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(logsnr), torch.sigmoid(0.5 * logsnr) ** -2


@dataclass(frozen=True)
class _Custom(Scaling):
    """`sqrt(alpha^2 + sigma^2) = norm(logsnr)`, a user's function; see `with_scaling`."""

    norm: Callable[[Tensor], Tensor]

    def levels(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        norm, (alpha, sigma) = self.norm(logsnr), _VP().levels(logsnr)
        return norm * alpha, norm * sigma

    def slopes(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        vp, vp_slopes = _VP().levels(logsnr), _VP().slopes(logsnr)
        norm, slope = self.norm(logsnr), self._slope(logsnr)
        return norm * vp_slopes[0] + slope * vp[0], norm * vp_slopes[1] + slope * vp[1]

    def _slope(self, logsnr: Tensor) -> Tensor:
        """dnorm/dtau: as the norm states it, else by automatic differentiation."""
        if stated := getattr(self.norm, "slope", None):
            return stated(logsnr)
        if logsnr.device.type == "cpu" and bool(logsnr.isinf().any()):
            where = float(logsnr[logsnr.isinf()].reshape(-1)[0])
            raise ValueError(
                f"the derivative of the scaling {self.norm} at logsnr {where} is not known: "
                "automatic differentiation sees 0 times infinity there. Give the function a method "
                "slope(logsnr), its derivative in tau = sigma / (alpha + sigma) with the limits at "
                "both ends, or ask inside, such as on a grid with start=0.999 and end=0.001"
            )
        slope = derivative(self.norm, logsnr)
        stretch = -2 / (torch.sigmoid(0.5 * logsnr) * torch.sigmoid(-0.5 * logsnr))
        return torch.where(slope == 0, slope, slope * stretch)


SCALINGS: dict[str, Scaling] = {"vp": _VP(), "flow": _Flow(), "ve": _VE()}


def derivative(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """d function / d at, elementwise, by automatic differentiation (zero for constants)."""
    with torch.enable_grad():
        point = at.detach().clone().requires_grad_()
        value = function(point)
        if not isinstance(value, Tensor) or not value.requires_grad:
            return torch.zeros_like(at)
        return torch.autograd.grad(value.sum(), point)[0]
