"""Two conditions for which the conditioned denoiser is exact, whatever the prior p(x).

Each takes one network call and no gradient. A *tilt* is the linear reward b . x: the data are those
of p(x) exp(b . x). It changes the state at which the denoiser is asked. A measurement
`y = A x + s n` with A^T A = c^2 I, such as a picture with noise on all pixels, changes the level as
well, which is (logsnr, alpha, sigma). In both cases the condition times the Gaussian density of
`z = alpha x + sigma eps` given x is again a Gaussian density of that form, as completing the square
in x shows:

    tilt    x'(z) = x(z + (sigma^2 / alpha) b)  at the same level
    level   x'(z) = x((alpha z / sigma^2 + A^T y / s^2) / p)  at alpha = 1 and sigma = p^-1/2,
            with the precision p = alpha^2 / sigma^2 + c^2 / s^2

where x(z) is the prior's estimate and x'(z) that under the condition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twosides.denoiser import Around, BaseDenoiser, Denoises, as_denoiser
from twosides.dynamics import require_score
from twosides.outputs import Estimate
from twosides.posteriors.limits import FLOOR, lowest, near_noise
from twosides.posteriors.measurement import Measurement, dot, linearise
from twosides.schedules import Level, along_batch


class Tilted(Around):
    """The denoiser of the data p(x) exp(b . x); see `tilt`."""

    def __init__(self, denoiser: BaseDenoiser, direction: Tensor) -> None:
        """Keep the denoiser of p(x), and b in 1 / units of the data."""
        super().__init__(denoiser)
        self.direction = direction

    def forward(self, z: Tensor, level: Level, **conditioning: Any) -> Estimate:
        """(x, eps) of the tilted data."""
        direction = self.direction.to(z)
        zero = torch.zeros_like(direction)
        # The given b is for data in their own units, but here x is standardised.
        b = direction * (self.unstandardise(zero + 1) - self.unstandardise(zero))

        def ask(z: Tensor, level: Level) -> Estimate:
            alpha, sigma = (along_batch(value, z) for value in level[1:])
            x, eps = self.denoiser(z + sigma**2 / alpha * b, level, **conditioning)
            return Estimate(x, eps - sigma / alpha * b)

        if lowest(level) >= FLOOR:
            return ask(z, level)
        (x,) = near_noise(lambda z, level: (ask(z, level).x,), z, level)
        alpha, sigma = (along_batch(value, z) for value in level[1:])
        return Estimate(x, (z - alpha * x) / sigma)


def tilt(denoiser: Denoises, direction: Any) -> BaseDenoiser:
    """The denoiser of the data p(x) exp(direction . x): a linear reward, exact for every prior.

        x'(z) = x(z'),    eps'(z) = eps(z') - (sigma / alpha) b,    z' = z + (sigma^2 / alpha) b

    Near pure noise the state at which the denoiser is asked is far from all that a network was
    trained on, if b is large beside 1 / the spread of the data. Other rewards are for `steer`.

    denoiser: the denoiser of p(x).
    direction: b, of the shape of a sample or one that fits it, in 1 / units of the data.

    ValueError for a direction that is not finite, and for a model whose training did not draw noise
    independently of the data, since its eps is not the score.

        >>> import twosides as ts
        >>> tilted = tilt(ts.oracle.GaussianMixture.gaussian([0.0], [[4.0]]), torch.tensor([0.5]))
        >>> ts.sample(tilted, (1000, 1), steps=20, seed=0).mean().round(decimals=1)  # exact: 2
        tensor(2.)
    """
    given = torch.as_tensor(direction)
    if not bool(given.isfinite().all()):
        raise ValueError("the direction of a tilt has infinite or undefined numbers")
    prior = as_denoiser(denoiser)
    require_score(prior, "a tilt")
    return Tilted(prior, given)


class Rescaled(Around):
    """The denoiser given `y = A x + s n` with A^T A = c^2 I: the prior's, at another level.

    It is the method "level" of `posterior`. That A is linear and that A^T A = c^2 I is tested at
    each state at which it is asked; ValueError where it does not hold.
    """

    def __init__(self, denoiser: BaseDenoiser, measurement: Measurement) -> None:
        """Keep the parts; ValueError unless the noise is one number > 0."""
        super().__init__(denoiser)
        noise = measurement.noise
        if not isinstance(noise, Tensor) or noise.numel() != 1 or float(noise) <= 0:
            raise ValueError(f"the method 'level' needs noise that is one number > 0, got {noise}")
        self.measurement, self.noise = measurement, float(noise)

    def forward(self, z: Tensor, level: Level, **conditioning: Any) -> Estimate:
        """(x, eps) given z and the measurement."""
        with torch.inference_mode(False), torch.no_grad():
            square, back = self._normal(z.clone() if z.is_inference() else z)
        s = self.noise
        alpha, sigma = (torch.as_tensor(value, dtype=torch.float64) for value in level[1:])
        total = alpha**2 * s**2 + sigma**2 * square  # p sigma^2 s^2, finite at both ends
        spread = sigma * s / total.sqrt()
        asked = Level(-2 * spread.log(), torch.ones_like(spread), spread)
        alpha, sigma, root = (along_batch(value, z) for value in (alpha, sigma, total.sqrt()))
        mean = (alpha * s**2 * z + sigma**2 * back) / root**2
        x, eps = self.denoiser(mean, asked if total.ndim else asked.floats(), **conditioning)
        # eps' = (z - alpha x') / sigma, without a difference that loses digits at small sigma.
        return Estimate(x, alpha * s / root * eps + sigma * (square * z - alpha * back) / root**2)

    def _normal(self, z: Tensor) -> tuple[float, Tensor]:
        """c^2 and A^T (y - A(0)); ValueError unless A^T A z = c^2 z for this very z."""
        here = linearise(lambda x: self.measurement.predict(self.unstandardise(x)), 0 * z)
        seen = here.forward(z)
        size = float(dot(z, z).sum())
        square = float(dot(seen, seen).sum()) / size if size else 0.0
        off = here.adjoint(seen) - square * z
        bent = self.measurement.predict(self.unstandardise(z)) - here.value - seen
        tight = 1e-3 if z.dtype != torch.float64 else 1e-9
        if not size:
            raise ValueError("the method 'level' cannot try its operator on a state of zeros")
        if square == 0 or float(off.norm()) > tight * square * float(z.norm()):
            raise ValueError(
                "the method 'level' is for operators with A^T A = c^2 I, such as a scaled image or "
                "an orthogonal change of axes; this one is not: use 'mmps'"
            )
        if float(bent.norm()) > tight * float(seen.norm()):
            raise ValueError(
                "the method 'level' is for linear operators; this one is not: use 'mmps'"
            )
        return square, here.adjoint(self.measurement.residual(here.value))
