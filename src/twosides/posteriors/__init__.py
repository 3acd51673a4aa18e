"""Conditions on a model that it was not trained for: measurements, rewards, particles.

`measurement` says what was seen, `posterior` makes of a denoiser the denoiser given that, `exact`
has the two cases in which it is exact for every prior, and `steering` corrects what is not, with
particles.
"""

from twosides.posteriors.exact import tilt
from twosides.posteriors.measurement import Measurement
from twosides.posteriors.posterior import METHODS, posterior, published_strength
from twosides.posteriors.steering import Steered, steer

__all__ = [
    "METHODS", "Measurement", "Steered", "posterior", "published_strength", "steer", "tilt",
]  # fmt: skip
