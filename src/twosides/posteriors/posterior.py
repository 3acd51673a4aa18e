"""A denoiser given a measurement: the posterior's denoiser, with which every sampler works.

A denoiser estimates the pair (x, eps) from `z = alpha x + sigma eps` at a level, which is (logsnr,
alpha, sigma). If a measurement `y = A(x) + noise n` of the data is given as well, Bayes' rule with
Gaussian guesses changes the pair to

    x' = x + C_out A^T (noise^2 + A C_in A^T)^-1 (y - A(x)),    eps' = eps - (alpha/sigma) (x' - x)

where A and A^T are the derivative of A(x) and its transpose. `z = alpha x' + sigma eps'` holds as
before. C_in and C_out stand for the covariance of x given z. The methods of the literature are this
formula with different guesses of it, the rows of `METHODS`. The guesses are

    network     (sigma^2 / alpha) dx/dz, which is the covariance itself if the denoiser is exact
    given       (S^-1 + alpha^2 / sigma^2)^-1, which is right for data of N(m, S)
    mean        the same with s^2 I in the place of S, where s^2 is the mean variance in S

The first needs a backward pass through the network for each product with it, the others none.
"mmps" is exact for all Gaussian data, "gaussian" for those of covariance S, "pigdm" and "diffpir"
for those of covariance s^2 I. For other data all of them are approximations. docs/posteriors.md
shows how large their errors are, and `steer` corrects them.

    "mmps"      Rozet+ 2024, Learning Diffusion Priors from Observations by Expectation
                Maximization, arxiv.org/abs/2405.13712
    "pigdm"     Song+ 2023, Pseudoinverse-Guided Diffusion Models for Inverse Problems, ICLR 2023
    "diffpir"   Zhu+ 2023, Denoising Diffusion Models for Plug-and-Play Image Restoration,
                arxiv.org/abs/2305.08995 (with noise 0: DDNM, Wang+ 2022, arxiv.org/abs/2212.00490)
    "dps"       Chung+ 2022, Diffusion Posterior Sampling for General Noisy Inverse Problems,
                arxiv.org/abs/2209.14687
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from twosides.denoiser import Around, BaseDenoiser, Denoises, as_denoiser
from twosides.dynamics import require_score
from twosides.naming import unknown
from twosides.outputs import Estimate
from twosides.posteriors.exact import Rescaled
from twosides.posteriors.limits import FLOOR, lowest, near_noise
from twosides.posteriors.measurement import Linear, Measurement, dot, linearise, solve
from twosides.sampling.plan import Plan
from twosides.schedules import Level, along_batch

Covariance = Literal["network", "given", "mean", "none"]
Product = Callable[[Tensor], Tensor]


class Method(NamedTuple):
    """Which guesses of the covariance of x given z stand in the formula of the module.

    inner: C_in. With "none" no system of equations is solved: instead, x' - x is `strength` times
        C_out A^T r / |r|, r the residual y - A(x).
    outer: C_out.
    """

    inner: Covariance
    outer: Covariance


METHODS = {
    "mmps": Method("network", "network"),
    "pigdm": Method("mean", "network"),
    "gaussian": Method("given", "given"),
    "diffpir": Method("mean", "mean"),
    "dps": Method("none", "network"),
}


class Spread:
    """A guess of the data's covariance S, and the covariance of x given z that follows from it.

    Its `given` and `mean` are the guesses of these names in the module's text, as products.
    """

    def __init__(self, covariance: Any) -> None:
        """Keep S, of standardised data.

        covariance: the variance of each number of a sample, a number or of the shape of a sample,
            or a matrix (D, D) for samples of D numbers.

        ValueError for variances that are not positive, and for numbers that are not finite.
        """
        self.covariance = torch.as_tensor(covariance, dtype=torch.float64)
        variances = self.covariance if self.covariance.ndim != 2 else self.covariance.diagonal()
        if not bool(self.covariance.isfinite().all() & (variances > 0).all()):
            raise ValueError(f"covariance is the data's, positive and finite, got {covariance}")
        square = self.covariance.ndim == 2 and len(set(self.covariance.shape)) == 1
        symmetric = square and torch.allclose(self.covariance, self.covariance.mT)
        if (
            square
            and not (symmetric and float(self._eigen[0].min()) > 0)
            and not bool(
                (self.covariance > 0).all()  # variances of samples that are square pictures
            )
        ):
            raise ValueError(
                "covariance is a matrix that is not symmetric with positive eigenvalues, and "
                "not variances either, of which all are positive"
            )

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """The variances along the axes of a matrix S, (D,), and the axes as columns, (D, D)."""
        return torch.linalg.eigh(self.covariance)

    def given(self, level: Level, v: Tensor) -> Tensor:
        """The product `(S^-1 + alpha^2 / sigma^2)^-1 v`, for v of shape (B, ...)."""
        size = math.prod(v.shape[1:])
        if self.covariance.ndim != 2 or self.covariance.shape != (size, size):
            return _shrunk(self.covariance.to(v), level, v) * v
        variances, axes = (part.to(v) for part in self._eigen)
        turned = v.flatten(1) @ axes
        return ((_shrunk(variances, level, turned) * turned) @ axes.mT).reshape(v.shape)

    def mean(self, level: Level, v: Tensor) -> Tensor:
        """The product `v / (1 / s^2 + alpha^2 / sigma^2)`, s^2 the mean of the variances in S."""
        size, matrix = math.prod(v.shape[1:]), self.covariance.ndim == 2
        full = matrix and self.covariance.shape == (size, size)
        variances = self.covariance.diagonal() if full else self.covariance
        return _shrunk(variances.mean().to(v), level, v) * v


def _shrunk(variance: Tensor, level: Level, like: Tensor) -> Tensor:
    """`1 / (1 / variance + alpha^2 / sigma^2)`, in a form that is finite at both ends too."""
    alpha, sigma = (along_batch(value, like) for value in level[1:])
    return variance * sigma**2 / (variance * alpha**2 + sigma**2)


class Posterior(Around):
    """A denoiser given a measurement, as `posterior` makes it.

    products: how many backward passes through the network were made so far, over all calls.
    """

    def __init__(
        self,
        denoiser: BaseDenoiser,
        measurement: Measurement,
        method: Method,
        *,
        spread: Spread,
        trust: float,
        tolerance: float,
        most: int,
        strength: float | Callable[[Level], Any],
    ) -> None:
        """Keep the parts; `posterior` says what they are, and checks them."""
        super().__init__(denoiser)
        self.measurement, self.method, self.spread = measurement, method, spread
        self.trust, self.tolerance, self.most, self.strength = trust, tolerance, most, strength
        self.products = 0

    def forward(self, z: Tensor, level: Level, **conditioning: Any) -> Estimate:
        """(x, eps) given z and the measurement."""
        return self.pair(z, level, **conditioning)[1]

    def pair(self, z: Tensor, level: Level, **conditioning: Any) -> tuple[Estimate, Estimate]:
        """The estimates without and with the measurement, from one network call."""
        # torch.inference_mode records no gradients, and tensors made in it cannot record any later.
        with torch.inference_mode(False), torch.no_grad():
            told = {name: _recordable(value) for name, value in conditioning.items()}
            ask = partial(self._both, told)
            z = _recordable(z)
            if self._asks_network(level) and lowest(level) < FLOOR:
                alpha, sigma = (along_batch(value, z) for value in level[1:])
                two = near_noise(lambda z, level: tuple(e.x for e in ask(z, level)), z, level)
                before, after = (Estimate(x, (z - alpha * x) / sigma) for x in two)
                return before, after
            return ask(z, level)

    def _asks_network(self, level: Level) -> bool:
        """Whether the method needs the network's derivative, and some sample's level trusts it."""
        highest = float(torch.as_tensor(level.logsnr).max())
        return "network" in self.method and highest >= self.trust

    def _both(
        self, conditioning: dict[str, Any], z: Tensor, level: Level
    ) -> tuple[Estimate, Estimate]:
        """The two estimates at a level where all factors are finite; see `pair`."""
        network = self._asks_network(level)
        with torch.set_grad_enabled(network):
            leaf = z.detach().clone().requires_grad_(network)
            seen = self.denoiser(leaf, level, **conditioning)
        before = Estimate(seen.x.detach(), seen.eps.detach())
        covariances: dict[str, Product] = {
            "mean": partial(self.spread.mean, level),
            "given": partial(self.spread.given, level),
        }
        covariances["network"] = (
            self._of_network(seen.x, leaf, level, covariances["given"])
            if network
            else covariances["given"]
        )
        change = self._change(before.x, level, covariances)
        alpha, sigma = (torch.as_tensor(value, dtype=torch.float64) for value in level[1:])
        # At sigma = 0 the data are known: the change of x is 0, and that of eps has to be.
        ratio = along_batch(torch.where(sigma > 0, alpha / sigma, 0.0), z)
        return before, Estimate(before.x + change, before.eps - ratio * change)

    def _of_network(self, x: Tensor, leaf: Tensor, level: Level, otherwise: Product) -> Product:
        """The product with `(sigma^2 / alpha) dx/dz`, or with another where a level is not trusted.

        A backward pass gives the transpose of dx/dz, which is symmetric for an exact denoiser.

        x: the denoiser's estimate of x at `leaf`, with its graph.
        leaf: z, with respect to which the derivative is taken.
        level: the level of z.
        otherwise: the product for the samples whose log-SNR is below `trust`.

        ValueError for an estimate without a derivative, and for batch normalisation in training
        mode, which mixes the samples of a batch.
        """
        if not x.requires_grad:
            raise ValueError(
                "the denoiser's estimate has no derivative in z, which this method needs; use the "
                "method 'gaussian' or 'diffpir'"
            )
        mixers = (m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        if any(mixer.training for mixer in mixers):
            raise ValueError(
                "a network with batch normalisation in training mode mixes its samples, and has no "
                "derivative for each; call .eval() on it"
            )
        logsnr, alpha, sigma = (torch.as_tensor(value, dtype=torch.float64) for value in level)
        factor = along_batch(sigma**2 / alpha, leaf)
        trusted = along_batch((logsnr >= self.trust).double(), leaf) != 0

        def product(v: Tensor) -> Tensor:
            self.products += 1
            (back,) = torch.autograd.grad(x, leaf, v.to(x.dtype), retain_graph=True)
            return torch.where(trusted, factor * back, otherwise(v))

        return product

    def _change(self, x: Tensor, level: Level, covariances: dict[str, Product]) -> Tensor:
        """The change x' - x, by the products with each guess of the covariance."""
        outer = covariances[self.method.outer]
        if self.measurement.log_likelihood is not None:
            return self._strength(level, x) * outer(self._slope(x))
        here = linearise(lambda x: self.measurement.predict(self.unstandardise(x)), x)
        residual = self.measurement.residual(here.value)
        if self.method.inner == "none":
            norm = along_batch(dot(residual, residual).sqrt(), residual)
            unit = torch.where(norm > 0, residual / norm, 0.0)
            return self._strength(level, x) * outer(here.adjoint(unit))
        return outer(here.adjoint(self._solved(here, residual, covariances[self.method.inner])))

    def _solved(self, here: Linear, residual: Tensor, inner: Product) -> Tensor:
        """The solution of `(noise^2 + A C_in A^T) u = y - A(x)`."""
        variance = self.measurement.variance(here.value)
        matrix = lambda u: variance * u + here.forward(inner(here.adjoint(u)))  # noqa: E731
        return solve(matrix, residual, self.tolerance, self.most)

    def _slope(self, x: Tensor) -> Tensor:
        """The gradient of the log-likelihood in x, which is standardised."""
        with torch.enable_grad():
            point = x.detach().clone().requires_grad_()
            total = self.measurement.log_density(self.unstandardise(point)).sum()
            return torch.autograd.grad(total, point)[0]

    def _strength(self, level: Level, like: Tensor) -> Any:
        """The strength of "dps" at a level, of a shape that fits `like`."""
        strength = self.strength
        return along_batch(strength(level) if callable(strength) else strength, like)


def _recordable(value: Any) -> Any:
    """The value itself, or a copy of a tensor that was made in inference mode."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def posterior(
    denoiser: Denoises,
    measurement: Measurement,
    method: str = "mmps",
    *,
    covariance: Any = 1.0,
    trust: float = -4.0,
    tolerance: float = 1e-3,
    most: int = 20,
    strength: float | Callable[[Level], Any] = 1.0,
) -> BaseDenoiser:
    """The denoiser given a measurement: a denoiser again, which every sampler takes.

    denoiser: the prior. Guidance belongs inside: `posterior(classifier_free(...), measurement)`.
    measurement: what was seen of the data, in their own units.
    method: "mmps", the default and the best of them, which asks the network for its own
        uncertainty; "pigdm", with one backward pass in a call; "gaussian" and "diffpir", with none;
        "dps", whose strength has to be tuned; or "level", which is exact for every prior and needs
        no gradient, if A is linear with A^T A = c^2 I and the noise is one number > 0.
    covariance: a guess of the covariance S of the data, standardised as the denoiser has them: a
        number for the variance of each, variances of the shape of a sample, or a matrix (D, D). It
        is 1 by default, since standardised data have this variance. "gaussian" takes all of it,
        "pigdm" and "diffpir" its mean variance, and below `trust` every method with a derivative.
    trust: the log-SNR below which the network's derivative is not used as a covariance, and
        `covariance` is used instead, because sigma^2 / alpha multiplies the network's errors there.
        The default of -4 suits the networks that were looked at; `-math.inf` suits an exact
        denoiser.
    tolerance: the system of equations counts as solved when its residual is at most this part of
        its right-hand side, >= 0.
    most: the largest number of products with C_in in a call, >= 1; for "mmps" each of them is a
        backward pass.
    strength: the strength of "dps", a number or a function of the level. `published_strength` has
        that of its paper.

    ValueError for an unknown method, for a measurement that the method does not suit ("level" looks
    at A when it is first asked), for a covariance that is none, and for a model whose training did
    not draw noise independently of the data.

        >>> import twosides as ts
        >>> prior = ts.oracle.GaussianMixture.gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]])
        >>> seen = ts.Measurement(lambda x: x[:, :1], torch.tensor([[2.0]]), noise=0.1)
        >>> given = ts.posterior(prior, seen, trust=-float("inf"))  # of a prior that is exact
        >>> x = ts.sample(given, (1000, 2), steps=30, seed=0)
        >>> x.mean(0).round(decimals=1)  # exact: 1.98 and 1.78
        tensor([2.0000, 1.8000])
    """
    denoiser = as_denoiser(denoiser)
    require_score(denoiser, "a posterior")
    if method == "level":
        return Rescaled(denoiser, measurement)
    if method not in METHODS:
        raise unknown("method", method, [*METHODS, "level"])
    if measurement.log_likelihood is not None and method != "dps":
        raise ValueError(
            f"{method!r} is for Gaussian noise; a log_likelihood is for 'dps' and for `steer`"
        )
    if tolerance < 0 or most < 1:
        raise ValueError(f"tolerance is >= 0 and most >= 1, got {tolerance} and {most}")
    return Posterior(
        denoiser,
        measurement,
        METHODS[method],
        spread=Spread(covariance),
        trust=trust,
        tolerance=tolerance,
        most=most,
        strength=strength,
    )


def published_strength(plan: Plan, zeta: float) -> Callable[[Level], float]:
    """The strength of "dps" with which a plan's steps are those of its paper [Chung+ 2022, alg. 1].

    The paper subtracts `zeta grad_z |y - A(x)|` from the state after a step. A plan is the table of
    numbers that a run follows. Its row `z_next = c x + d eps + ...` turns a change of x into one of
    z_next that is `c - d alpha / sigma` times as large. The same step therefore has here

        strength = zeta (alpha / sigma^2) / (c - d alpha / sigma)

    It grows with the number of steps, which is why more steps do not make "dps" better. The paper
    differentiates the network at every level: pass `trust=-math.inf` to `posterior` for that.

    plan: a plan with one network call in each step, such as that of "ddpm". The function that is
        returned knows the levels of this plan alone: ValueError at any other.
    zeta: the paper's step size, 0.1 to 1.

        >>> import twosides as ts
        >>> plan = ts.plan("ddpm", ts.Cosine(-8, 8), 10)
        >>> published_strength(plan, 0.3)(plan.levels[3]) > 0
        True
    """
    told = dict[float, float]()
    for k, (level, row) in enumerate(zip(plan.levels, plan.rows[1:], strict=False)):
        ratio = level.alpha / level.sigma
        moved = row.get(("x", k), 0.0) - row.get(("eps", k), 0.0) * ratio
        told[max(level.logsnr, FLOOR)] = zeta * ratio / level.sigma / moved if moved else 0.0

    def strength(level: Level) -> float:
        if float(level.logsnr) not in told:
            raise ValueError(
                f"the plan {plan.name} makes no call at {level}; sample with that plan"
            )
        return told[float(level.logsnr)]

    return strength
