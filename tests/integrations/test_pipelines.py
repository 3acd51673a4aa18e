"""The tiny pipelines that samplers are tried on, and the samplers on them.

benchmarks/pipelines.py tries every preset on every pipeline, at more steps.
"""

import pytest
import torch

from pipelines import CASES, NOISY, QUIET, Trial, difference, noisy_steps
from twosides.sampling.presets import samplers

# The schedulers of diffusers make arrays of tensors in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

# What is left is the samplers' second order and the native scheduler's, up to 0.03. A wrong
# prediction, shift, time or start gives 0.1 to 1.
NEAR = 0.04


@pytest.mark.parametrize("name", CASES)
def test_native_pipelines_run_and_repeat(name):
    case = CASES[name]
    runs = [case.run(case.build(), 4) for _ in range(2)]
    assert runs[0].is_floating_point() and runs[0].isfinite().all()
    assert torch.equal(*runs)


@pytest.mark.parametrize("name", CASES)
def test_samplers_end_where_the_native_scheduler_does(name):
    """One call per step with memory, two calls without, and noise."""
    trial = Trial(CASES[name])
    expected = trial.limit((20, 40))
    for sampler, steps in (("kab2c", (20, 40)), ("midpoint", (10, 20))):
        assert difference(trial.limit(steps, sampler), expected) < NEAR, sampler
    assert trial.fault("dpmpp-2m-sde", 4, expected) == ""


# One case per kind of path: flow matching, betas with zero SNR and v, EDM. How near single runs of
# 40 steps, or 20 of several calls, come to the limit is the second order's on a path without end
# points that are singular, and the last step's elsewhere: first order, from sigma / alpha = 0.1.
TINY = {"flux": 0.01, "cogvideox": 0.07, "playground": 0.05}
REFUSED = {"flux": ("euler-maruyama",)} | dict.fromkeys(
    ("cogvideox", "playground"), ("euler-maruyama", "pf-euler")
)


@pytest.fixture(scope="module", params=TINY)
def trial(request):
    made = Trial(CASES[request.param])
    return made, made.limit((50, 100))


@pytest.mark.parametrize("name", QUIET)
def test_every_deterministic_preset(trial, name):
    trial, expected = trial
    if name in REFUSED[trial.case.name]:
        with pytest.raises(ValueError, match="logsnr"):
            trial.latents(4, name)
        return
    if samplers[name].order == 1:
        got = trial.limit((20, 40), name)
    else:
        got = trial.latents(40 if samplers[name].solver.nfe == 1 else 20, name)
    assert difference(got, expected) < TINY[trial.case.name]


@pytest.mark.parametrize("name", NOISY)
def test_every_stochastic_preset(trial, name):
    trial, expected = trial
    if name in REFUSED[trial.case.name]:
        with pytest.raises(ValueError, match="logsnr"):
            trial.latents(4, name)
        return
    assert trial.fault(name, noisy_steps(name, 4), expected) == ""
