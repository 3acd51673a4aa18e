"""How much noise a sampler injects: rules that make a route of the levels of a grid.

`route` says what a leg and a route are, `coordinates` has the overshoot as papers state it, and
`routes` what is more than that. A new rule is a class in one of them and a row of the table here.
"""

from twosides.sampling.noise.coordinates import (
    Churn,
    Coordinate,
    DDIMEta,
    Diffusion,
    EDMChurn,
    Epsilon,
    Eta,
    Overshoot,
    Rectified,
    Tau,
    Value,
    convert,
    inverse_variance,
)
from twosides.sampling.noise.route import Deterministic, Leg, Step, Stochasticity, diffuse
from twosides.sampling.noise.routes import ER, FullRenoise, Langevin, LargeVariance, Restart

__all__ = [
    "ER", "STOCHASTICITIES", "Churn", "Coordinate", "DDIMEta", "Deterministic", "Diffusion",
    "EDMChurn", "Epsilon", "Eta", "FullRenoise", "Langevin", "LargeVariance", "Leg", "Overshoot",
    "Rectified", "Restart", "Step", "Stochasticity", "Tau", "Value", "convert", "diffuse",
    "inverse_variance",
]  # fmt: skip

STOCHASTICITIES: dict[str, type[Stochasticity]] = {
    "deterministic": Deterministic,
    "eta": Eta,
    "churn": Churn,
    "ddim-eta": DDIMEta,
    "tau": Tau,
    "epsilon": Epsilon,
    "diffusion": Diffusion,
    "edm-churn": EDMChurn,
    "overshoot": Overshoot,
    "rectified": Rectified,
    "er": ER,
    "full-renoise": FullRenoise,
    "large-variance": LargeVariance,
    "langevin": Langevin,
    "restart": Restart,
}
