"""A measurement `y = A(x) + noise n` of data, its derivative, and systems of equations in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from twosides.schedules import along_batch


@dataclass(frozen=True, eq=False)
class Measurement:
    """What was seen of the data: `y = A(x) + noise n`, n of independent standard normal numbers.

    operator: A, a differentiable function of a batch of data (B, ...), in the units and the range
        of the data that the model was trained on, to (B, ...). It need not be linear: methods take
        its derivative where they ask. Or a physics object of deepinv as it is: an object with `.A`,
        whose `.noise_model.sigma` is the noise if none is given.
    value: y, of the shape that A gives, with one row for all samples or a row for each.
    noise: the standard deviation of the noise, >= 0 (0 by default), in the units of y: a number, a
        tensor that fits y, or a function of A(x), such as `torch.sqrt` for counts.
    log_likelihood: in the place of all these, a function from data (B, ...) to log p(y | x) (B,),
        for noise that is not Gaussian. Then `posterior` has the method "dps" alone.

        >>> half = Measurement(lambda x: x[:, :1], torch.tensor([[0.5]]), noise=0.1)
        >>> half.log_density(torch.tensor([[0.5, 3.0], [0.6, 3.0]]))
        tensor([1.3836, 0.8836])
    """

    operator: Any = None
    value: Any = None
    noise: Any = None
    log_likelihood: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """ValueError for a measurement of nothing, or noise below 0."""
        if self.log_likelihood is not None:
            if (self.operator, self.value, self.noise) != (None, None, None):
                raise ValueError(
                    "a log_likelihood stands for operator, value and noise: pass it alone"
                )
            return
        if self.operator is None or self.value is None:
            raise ValueError("a measurement is Measurement(operator, value, noise)")
        given = self.noise
        if given is None:
            given = getattr(getattr(self.operator, "noise_model", None), "sigma", 0.0)
        if not callable(given):
            given = torch.as_tensor(given, dtype=torch.float64)
            if not bool((given >= 0).all()):
                raise ValueError(f"noise is a standard deviation, at least 0, got {self.noise}")
        value = torch.as_tensor(self.value)
        if value.ndim == 0:
            raise ValueError("the value of a measurement has rows: (1, ...) or one for each sample")
        object.__setattr__(self, "noise", given)
        object.__setattr__(self, "value", value)

    def predict(self, x: Tensor) -> Tensor:
        """A(x) of a batch of data; ValueError where y does not fit it."""
        predicted = getattr(self.operator, "A", self.operator)(x)
        rows, event = len(self.value), tuple(self.value.shape[1:])
        if predicted.shape[1:] != event or rows not in (1, len(predicted)):
            raise ValueError(
                f"the measured value has the shape {tuple(self.value.shape)}, but the operator "
                f"made {tuple(predicted.shape)} of a batch; the value has 1 row or one for each "
                "sample"
            )
        return predicted

    def residual(self, predicted: Tensor) -> Tensor:
        """`y - A(x)`."""
        return self.value.to(predicted) - predicted

    def variance(self, predicted: Tensor) -> Tensor:
        """noise^2, which may depend on A(x); it fits y."""
        noise = self.noise(predicted) if callable(self.noise) else self.noise
        return torch.as_tensor(noise, dtype=torch.float64).to(predicted) ** 2

    def log_density(self, x: Tensor) -> Tensor:
        """log p(y | x) of a batch of data in nats, (B,); ValueError for noise of 0."""
        if self.log_likelihood is not None:
            return self.log_likelihood(x)
        predicted = self.predict(x)
        variance = self.variance(predicted).expand_as(predicted)
        if variance.device.type == "cpu" and not bool((variance > 0).all()):
            raise ValueError("a measurement without noise has no density; pass noise > 0")
        energy = self.residual(predicted) ** 2 / variance + (2 * math.pi * variance).log()
        return -0.5 * energy.flatten(1).sum(1)

    def repeated(self, times: int) -> Measurement:
        """The same for a batch in which each sample stands `times` times in succession."""
        if self.log_likelihood is not None or len(self.value) == 1:
            return self
        return replace(self, value=self.value.repeat_interleave(times, 0))


class Linear(NamedTuple):
    """A function at a point x: its value, and products with its derivative A and with A^T."""

    value: Tensor
    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]


def linearise(function: Callable[[Tensor], Tensor], x: Tensor) -> Linear:
    """The derivative of a function of a batch, in which rows are independent, at x."""
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        value = function(point)
        dual = torch.zeros_like(value, requires_grad=True)
        (back,) = torch.autograd.grad(value, point, dual, create_graph=True)

    def adjoint(u: Tensor) -> Tensor:
        return torch.autograd.grad(value, point, u, retain_graph=True)[0]

    def forward(v: Tensor) -> Tensor:
        # The derivative in u of A^T u, which is linear: two backward passes make a forward one.
        if not back.requires_grad:
            return torch.zeros_like(value)
        return torch.autograd.grad(back, dual, v, retain_graph=True)[0]

    return Linear(value.detach(), forward, adjoint)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample, (B,)."""
    return (a * b).flatten(1).sum(1)


def solve(matrix: Callable[[Tensor], Tensor], right: Tensor, tolerance: float, most: int) -> Tensor:
    """u with `matrix(u) = right` for each sample, by conjugate gradients [Hestenes & Stiefel 1952].

    matrix: a symmetric and, but for the errors of a network, positive product.
    right: (B, ...).
    tolerance: a sample is done when its residual is this small a part of `right`.
    most: the largest number of products.

    A sample whose matrix shows a negative curvature keeps what it has: a covariance has none, so
    what came before is all that can be believed.
    """
    u, rest = torch.zeros_like(right), right.clone()
    way, now = rest.clone(), dot(right, right)
    enough, going = tolerance**2 * now, torch.ones_like(now, dtype=torch.bool)
    for _ in range(most):
        product = matrix(way)
        curvature = dot(way, product)
        going = going & (now > enough) & (curvature > 0)
        # One question to the device for each product, which for a network is a backward pass.
        if not bool(going.any()):
            break
        step = along_batch(torch.where(going, now / torch.where(going, curvature, 1.0), 0.0), u)
        u, rest = u + step * way, rest - step * product
        then = dot(rest, rest)
        way = rest + along_batch(torch.where(going, then / now, 0.0), u) * way
        now = then
    return u
