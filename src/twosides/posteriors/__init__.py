"""Conditions that a model was not trained for: measurements and rewards, without any training.

The model is the prior p(x). The modules are

    measurement    what was seen, `y = A(x) + noise n`
    posterior      the denoiser given a measurement, by the methods of the literature
    exact          the two conditions for which such a denoiser is exact, whatever the prior
    steering       particles, which make up for the errors of the others, and follow rewards
    operators      operators A for pictures
    uncertainty    whether a network knows the covariance that the methods take from it
    limits         how a denoiser with a condition is asked near pure noise
"""

from twosides.posteriors.exact import tilt
from twosides.posteriors.measurement import Measurement
from twosides.posteriors.posterior import METHODS, posterior, published_strength
from twosides.posteriors.steering import Steered, steer

__all__ = [
    "METHODS", "Measurement", "Steered", "posterior", "published_strength", "steer", "tilt",
]  # fmt: skip
