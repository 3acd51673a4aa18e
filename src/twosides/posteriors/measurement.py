"""A measurement `y = A(x) + noise n` of data, and the algebra that methods need of it.

The algebra is the derivative of A with products on both sides (`linearise`), and a solver for
systems of equations that are known by their products alone (`solve`).
"""

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

    This n is not the noise of diffusion, eps, and has nothing to do with levels.

    operator: A, a differentiable function from a batch of data (B, ...) to a batch (B, ...). Data
        are in the units and the range that the model was trained on. A need not be linear: methods
        take its derivative at each estimate. An object with a method `.A`, such as a physics object
        of deepinv, can be passed as it is; its `.noise_model.sigma` is the noise if none is given.
    value: y, with the shape that A gives, and one row for all samples or a row for each.
    noise: the standard deviation of the noise, >= 0, in the units of y: a number, a tensor that
        fits y, or a function of A(x), such as `torch.sqrt` for counts. By default 0, an exact
        measurement, with which no density is defined: `steer` needs noise > 0.
    log_likelihood: a function from data (B, ...) to log p(y | x), (B,), for noise that is not
        Gaussian. It takes the place of the other three, and of the methods of `posterior` it suits
        "dps" alone.

    ValueError for a measurement without a value or an operator, for noise below 0, and for a value
    without rows.

        >>> half = Measurement(lambda x: x[:, :1], torch.tensor([[0.5]]), noise=0.1)
        >>> half.log_density(torch.tensor([[0.5, 3.0], [0.6, 3.0]]))
        tensor([1.3836, 0.8836])
    """

    operator: Any = None
    value: Any = None
    noise: Any = None
    log_likelihood: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """Take the noise of a physics object, and make tensors of numbers; ValueError as above."""
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
        """`A(x)` of a batch of data; ValueError if y does not have its shape.

        x: data in their own units, (B, ...).
        """
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
        """The residual `y - A(x)` of `predicted`, which is A(x)."""
        return self.value.to(predicted) - predicted

    def variance(self, predicted: Tensor) -> Tensor:
        """The variance noise^2, of a shape that fits y; it may depend on `predicted`, A(x)."""
        noise = self.noise(predicted) if callable(self.noise) else self.noise
        return torch.as_tensor(noise, dtype=torch.float64).to(predicted) ** 2

    def log_density(self, x: Tensor) -> Tensor:
        """The log-likelihood log p(y | x) of a batch of data in nats, (B,).

        x: data in their own units, (B, ...).

        ValueError for noise of 0. It is looked for on the CPU alone, since the question would stall
        the queue of an accelerator; there the result is not finite.
        """
        if self.log_likelihood is not None:
            return self.log_likelihood(x)
        predicted = self.predict(x)
        variance = self.variance(predicted).expand_as(predicted)
        if variance.device.type == "cpu" and not bool((variance > 0).all()):
            raise ValueError("a measurement without noise has no density; pass noise > 0")
        energy = self.residual(predicted) ** 2 / variance + (2 * math.pi * variance).log()
        return -0.5 * energy.flatten(1).sum(1)

    def repeated(self, times: int) -> Measurement:
        """The measurement of a batch in which each sample stands `times` times in succession."""
        if self.log_likelihood is not None or len(self.value) == 1:
            return self
        return replace(self, value=self.value.repeat_interleave(times, 0))


class Linear(NamedTuple):
    """A function near a point x: its value, and products with its derivative A there.

    value: the function of x, (B, ...).
    forward: the product with A, from the shape of x to that of the value.
    adjoint: the product with A^T, from the shape of the value to that of x.
    """

    value: Tensor
    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]


def linearise(function: Callable[[Tensor], Tensor], x: Tensor) -> Linear:
    """The derivative of a function of a batch at x, without a matrix.

    function: a differentiable function that treats the rows of a batch separately.
    x: the point, (B, ...).

        >>> here = linearise(lambda x: x**2, torch.tensor([[1.0, 3.0]]))
        >>> here.forward(torch.tensor([[1.0, 1.0]]))
        tensor([[2., 6.]])
    """
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        value = function(point)
        dual = torch.zeros_like(value, requires_grad=True)
        (back,) = torch.autograd.grad(value, point, dual, create_graph=True)

    def adjoint(u: Tensor) -> Tensor:
        return torch.autograd.grad(value, point, u, retain_graph=True)[0]

    def forward(v: Tensor) -> Tensor:
        # A v is the derivative of u -> A^T u, transposed: two backward passes make a forward one.
        if not back.requires_grad:  # A^T u does not depend on u: the derivative is 0
            return torch.zeros_like(value)
        return torch.autograd.grad(back, dual, v, retain_graph=True)[0]

    return Linear(value.detach(), forward, adjoint)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of a and b (B, ...) over the numbers of each sample, (B,)."""
    return (a * b).flatten(1).sum(1)


def solve(matrix: Callable[[Tensor], Tensor], right: Tensor, tolerance: float, most: int) -> Tensor:
    """The u with `matrix(u) = right` for each sample, by conjugate gradients.

    A matrix that is made of a network's covariance should be positive, but may not be, because of
    the network's errors. A sample whose matrix shows a negative curvature keeps the u that it has
    then, since only what came before can be believed.

    [Hestenes & Stiefel 1952, Methods of Conjugate Gradients for Solving Linear Systems,
    doi.org/10.6028/jres.049.044]

    matrix: the product with a symmetric matrix of each sample, from (B, ...) to (B, ...).
    right: the right-hand side, (B, ...).
    tolerance: a sample is done when the norm of its residual is at most this part of that of
        `right`, >= 0.
    most: the largest number of products with the matrix, >= 1.

        >>> solve(lambda u: 2 * u, torch.tensor([[4.0, 2.0]]), tolerance=1e-3, most=20)
        tensor([[2., 1.]])
    """
    u, rest = torch.zeros_like(right), right.clone()
    way, now = rest.clone(), dot(right, right)
    enough, going = tolerance**2 * now, torch.ones_like(now, dtype=torch.bool)
    for _ in range(most):
        product = matrix(way)
        curvature = dot(way, product)
        going = going & (now > enough) & (curvature > 0)
        # This waits for the device, which costs little beside the product: for a network a
        # backward pass.
        if not bool(going.any()):
            break
        step = along_batch(torch.where(going, now / torch.where(going, curvature, 1.0), 0.0), u)
        u, rest = u + step * way, rest - step * product
        then = dot(rest, rest)
        way = rest + along_batch(torch.where(going, then / now, 0.0), u) * way
        now = then
    return u
