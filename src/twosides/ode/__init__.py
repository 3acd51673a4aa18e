"""The probability-flow ODE itself: adaptive steps, inversion, likelihood.

`integrate` solves any ODE, `adaptive` applies it to a denoiser, `inversion` goes from data to noise
and back, `likelihood` computes the log-density of data, and `density` that of samples as they are
drawn.
"""

from twosides.ode.adaptive import sample_adaptive, solve
from twosides.ode.density import sample_with_density
from twosides.ode.divergence import Exact, Hutchinson
from twosides.ode.integrate import Adaptive
from twosides.ode.inversion import decode, encode
from twosides.ode.likelihood import bits_per_dim, log_likelihood, variational_bound

__all__ = [
    "Adaptive", "Exact", "Hutchinson", "bits_per_dim", "decode", "encode", "log_likelihood",
    "sample_adaptive", "sample_with_density", "solve", "variational_bound",
]  # fmt: skip
