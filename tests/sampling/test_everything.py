"""Every output x schedule x preset x number of steps: finite, or refused with a reason."""

import os

import pytest
import torch

from instances import SCHEDULES, outputs
from twosides.conversion import convert
from twosides.denoiser import Denoiser
from twosides.dynamics import FromSDE
from twosides.oracle import GaussianMixture
from twosides.sampling.named import plan
from twosides.sampling.presets import samplers
from twosides.sampling.run import run
from twosides.schedules import FromFunctions

RING = GaussianMixture.ring(8, std=0.2)
REASONS = (
    "says nothing about the data at zero SNR",
    "is not finite at",
    "is infinite at logsnr -inf",
    "alpha or sigma is infinite",
)
EXHAUSTIVE = "TWOSIDES_EXHAUSTIVE" in os.environ
EVERY, SOME = tuple(range(1, 21)), (1, 2, 13)
SLOW = {FromSDE: 6, FromFunctions: 4}
OVERSHOOTING = {"pf-euler", "euler-maruyama"}  # few Euler steps in z leave the data's range
DEFINED = {"x", "v", "u", "-u", "velocity", "F(0.5)", "F(1.7)"}


@pytest.mark.parametrize("name", SCHEDULES)
def test_finite_or_refused(name):
    schedule = SCHEDULES[name]
    generator = torch.Generator().manual_seed(0)
    networks = {
        key: Denoiser(convert(RING, output, schedule), output, schedule)
        for key, output in outputs(schedule).items()
    }
    refused, finite = set(), 0
    # Schedules made by quadrature or of functions are slow to ask, and differ from the closed ones
    # by rounding: a part of the presets is tried on them, unless all is asked for.
    counts = (1, 3) if isinstance(schedule, FromSDE) else EVERY if EXHAUSTIVE else SOME
    every = next((n for kind, n in SLOW.items() if isinstance(schedule, kind)), 1)
    presets = [*samplers] if EXHAUSTIVE else [*[*samplers][::every], "euler-maruyama"]
    for preset in presets:
        for steps in counts:
            try:
                made = plan(preset, schedule, steps)
            except ValueError as error:
                assert any(reason in str(error) for reason in REASONS), error
                refused.add((preset, "*"))
                continue
            noise = torch.randn(made.noise.shape[1], 2, 2, generator=generator, dtype=torch.float64)
            # Every output runs at 2 steps, one in turn at the others; all of them if asked.
            keys = list(networks)
            every = EXHAUSTIVE or (steps == 2 and len(counts) > 2)
            keys = keys if every else [keys[steps % len(keys)]]
            for key in keys:
                draws = iter(noise[1:])
                try:
                    x = run(made, networks[key], noise[0], lambda draws=draws: next(draws))
                except ValueError as error:
                    assert any(reason in str(error) for reason in REASONS), error
                    refused.add((preset, key))
                    continue
                assert bool(torch.isfinite(x).all()), (preset, steps, key)
                # A polynomial through few calls may leave the data's range, first order may not.
                if preset not in OVERSHOOTING and (samplers[preset].order < 2 or steps > 12):
                    assert float(x.abs().max()) < 12, (preset, steps, key)
                finite += 1
    assert finite > len(presets)
    at_zero_snr = schedule.logsnr_min == -torch.inf
    for preset, key in refused:
        assert at_zero_snr and (key in ("eps", "score") or preset == "euler-maruyama"), (
            preset,
            key,
        )
    if at_zero_snr:
        assert ("euler-maruyama", "*") in refused
        assert isinstance(schedule, FromSDE) or {("ddim", "eps"), ("ddim", "score")} <= refused
    assert not {key for _, key in refused} & DEFINED
