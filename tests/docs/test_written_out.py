"""The samplers that docs/written_out.md writes out are the presets, to rounding."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import twosides as ts
from twosides.outputs import Estimate
from twosides.sampling.named import sampler_named
from twosides.sampling.run import run

PAGE = (Path(__file__).parents[2] / "docs/written_out.md").read_text(encoding="utf-8")
BLOCKS = {
    re.match(r"def (\w+)", block)[1]: block
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
}
VP, EDM = ts.Cosine(-8, 8), ts.EDM()
FLOW = VP.with_scaling("flow")
# Function: preset, schedule, numbers of steps. The limit of dpmpp-3m rests in steps as short as these.
CASES = {
    "ddim": ("ddim", VP, (1, 7)),
    "ddpm": ("ddpm", VP, (1, 7)),
    "flow_churn": ("churn", FLOW, (1, 7)),
    "heun": ("heun-published", EDM, (1, 5, 18)),
    "edm": ("edm", EDM, (18,)),
    "dpmpp_2m": ("dpmpp-2m-published", VP, (1, 2, 9)),
    "dpmpp_2m_sde": ("dpmpp-2m-sde-published", VP, (1, 2, 9)),
    "dpmpp_3m": ("dpmpp-3m", ts.Cosine(-3, 3), (20, 60)),
    "unipc": ("unipc-published", VP, (1, 2, 3, 4, 12)),
    "lms": ("lms-published", EDM, (1, 2, 3, 9)),
}


class Nonlinear:
    """A network that is not linear in z, and differs from level to level."""

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, z, level):
        z = np.asarray(z)
        mixed = np.roll(z, 1, axis=-1) / np.hypot(level.alpha, level.sigma)
        x = np.tanh(mixed + np.sin(level.logsnr / 3)) + 0.3 * np.cos(2 * mixed)
        return x, (z - level.alpha * x) / level.sigma


def library(model):
    """The same network for the library."""

    def denoiser(z, level, **_):
        return Estimate(*map(torch.from_numpy, model(z.numpy(), level)))

    denoiser.schedule = model.schedule
    return denoiser


def written_out(function, model, z, levels, noise):
    """A block of the page, run as it stands."""
    space = {"np": np}
    exec(BLOCKS[function], space)
    parameters = inspect.signature(space[function]).parameters
    more = {"noise": noise} if "noise" in parameters else {}
    if "sigmas" not in parameters:
        return space[function](model, z, levels, **more)

    def of_the_data(z, sigma):
        return model(z, model.schedule.level(-2 * np.log(sigma)).floats())[0]

    return space[function](of_the_data, z, [level.sigma for level in levels], **more)


@pytest.mark.parametrize(
    ("function", "steps"), [(name, steps) for name, case in CASES.items() for steps in case[2]]
)
def test_a_sampler_written_out_is_the_preset(function, steps):
    preset, schedule, _ = CASES[function]
    model, random = Nonlinear(schedule), np.random.default_rng(0)
    initial, fresh = random.normal(size=(4, 3)), random.normal(size=(steps, 4, 3))
    plan, levels = ts.plan(preset, schedule, steps), sampler_named(preset).levels(schedule, steps)
    told, drawn = map(iter, (fresh, fresh))
    ours = run(
        plan,
        library(model),
        torch.from_numpy(initial),
        lambda: torch.from_numpy(next(told)),
    ).numpy()
    start = initial * np.hypot(levels[0].alpha, levels[0].sigma)
    theirs = written_out(function, model, start, levels, lambda: next(drawn))
    assert np.abs(theirs - ours).max() <= 1e-12 * np.abs(start).max()
    assert len(list(told)) == len(list(drawn)), "noise was drawn as often"


def test_every_block_is_tried_and_short():
    assert BLOCKS.keys() == CASES.keys() and len(BLOCKS) == 10
    for name, block in BLOCKS.items():
        assert len(block.splitlines()) <= 12, name
        assert max(map(len, block.splitlines())) <= 100, name


def test_the_page_says_which_preset_each_is():
    for preset, _, _ in CASES.values():
        assert f"`{preset}`" in PAGE


def test_another_sampler_is_told_from_it():
    """The comparison tells apart what differs: 3M from its published form, on short steps."""
    schedule = CASES["dpmpp_3m"][1]
    levels = sampler_named("dpmpp-3m").levels(schedule, 60)
    model, z = Nonlinear(schedule), np.random.default_rng(0).normal(size=(4, 3))
    ours = written_out("dpmpp_3m", model, z, levels, None)
    plan = ts.plan("dpmpp-3m-published", schedule, 60)
    start = z / np.hypot(levels[0].alpha, levels[0].sigma)
    theirs = run(plan, library(model), torch.from_numpy(start)).numpy()
    assert np.abs(theirs - ours).max() > 1e-6
