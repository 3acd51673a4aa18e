"""All schedules, outputs and presets: a new one is tested by being listed here or in the tables."""

import math

import torch

from twosides.dynamics import FromSDE
from twosides.outputs import OUTPUTS, F, velocity
from twosides.sampling.named import PUBLISHED
from twosides.sampling.presets import samplers
from twosides.schedules import (
    EDM,
    Betas,
    Cosine,
    FlowMatching,
    FromFunctions,
    Geometric,
    ScaledLinear,
    VPLinear,
)


class Norm:
    """A scaling by a function that states its slope in tau: 1 + (1 - tau)^2 / (tau^2 + (1 - tau)^2)."""

    def __call__(self, logsnr):
        return 1 + torch.sigmoid(logsnr)

    def slope(self, logsnr):
        data, tau = torch.sigmoid(0.5 * logsnr), torch.sigmoid(-0.5 * logsnr)
        return -2 * tau * data / (data**2 + tau**2) ** 2


CLOSED = {
    "flow-matching": FlowMatching(),
    "cosine": Cosine(),
    "cosine-truncated": Cosine(-15, 15),
    "cosine-offset": Cosine(offset=0.008),
    "cosine-offset-truncated": Cosine(-10, 9, offset=0.008),
    "vp-linear": VPLinear(),
    "edm": EDM(),
    "geometric": Geometric(),
    "sd": ScaledLinear(),
    "ddpm-table": ScaledLinear(1e-4, 0.02, power=1),
    "sd-zero-terminal": ScaledLinear(zero_terminal_snr=True),
    "betas": Betas((0.1, 0.2, 0.3, 0.5)),
    "shifted": FlowMatching().shifted(3.0),
    "cosine-flow": Cosine().with_scaling("flow"),
    "flow-vp": FlowMatching().with_scaling("vp"),
    "vp-custom": VPLinear().with_scaling(Norm()),
}
NUMERICAL = {
    "functions": FromFunctions(
        lambda t: torch.cos(0.5 * math.pi * t), lambda t: torch.sin(0.5 * math.pi * t)
    ),
    "functions-finite": FromFunctions(lambda t: 1 - 0.99 * t, lambda t: 0.01 + t),
    "sde-flow": FromSDE(lambda t: -1 / (1 - t), lambda t: (2 * t / (1 - t)).sqrt()),
    "sde-vp": FromSDE(lambda t: -0.05 - 9.95 * t, lambda t: (0.1 + 19.9 * t).sqrt()),
}
SCHEDULES = {**CLOSED, **NUMERICAL}


def published(name):
    """The name of the published form of a preset, which is the preset's where none differs.

    A Sampler is its own published form unless it has another.
    """
    if not isinstance(name, str):
        return name.published or name
    preset, bracket, numbers = name.partition("(")
    return preset + PUBLISHED * bool(samplers[preset].published) + bracket + numbers


def outputs(schedule):
    every = [*OUTPUTS.values(), F(1.7), velocity(schedule), -OUTPUTS["u"]]
    return {output.name: output for output in every}
