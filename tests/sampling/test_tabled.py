"""Samplers given by rows: any preset's table is the preset, on every schedule and in every client."""

import json
import math
import types
from dataclasses import replace

import numpy as np
import pytest
import torch

import twosides as ts
from twosides.integrations.kdiffusion import sampler_function
from twosides.sampling.grids import Given
from twosides.sampling.named import plan, sampler_named
from twosides.sampling.presets import samplers
from twosides.sampling.sample import sample
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import DDIM, Tabled
from twosides.schedules import EDM, Cosine, FlowMatching, Level, ScaledLinear
from twosides.storage.plans import save_sampler

FLOAT64 = torch.float64
RING = ts.oracle.GaussianMixture.ring(8, std=0.1)
SCHEDULES = {
    "flow": FlowMatching(),
    "vp": FlowMatching().with_scaling("vp"),
    "cosine": Cosine(-14, 14),
    "edm": EDM(),
    "sd": ScaledLinear(),
}
DETERMINISTIC = [name for name, preset in samplers.items() if not preset.stochastic]
PRESETS = [name for name in DETERMINISTIC if name != "pf-euler"]  # which changes constants


def tabled(made):
    """The sampler of a plan's table."""
    table = Tabled.of(made)
    return Sampler(Given(table.nodes), table)


def far(a, b):
    """The largest difference of two plans' numbers, relative to the largest number."""
    pairs = [(getattr(a, part), getattr(b, part)) for part in ("x", "eps", "noise")]
    size = max(1.0, *(abs(each).max() for pair in pairs for each in pair))
    return max(abs(left - right).max() for left, right in pairs) / size


@pytest.mark.parametrize("where", SCHEDULES)
@pytest.mark.parametrize("name", PRESETS)
def test_the_table_of_a_preset_is_its_plan(name, where):
    schedule = SCHEDULES[where]
    made = plan(name, schedule, 5)
    sampler = tabled(made)
    again = sampler.plan(schedule, len(sampler.solver.nodes) - 1)
    assert far(made, again) < 1e-13
    assert np.array_equal(made.logsnr, again.logsnr)


@pytest.mark.parametrize("name", PRESETS)
def test_one_table_draws_the_same_samples_on_every_schedule(name):
    noise = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=FLOAT64)
    sampler = tabled(plan(name, Cosine(-12, 12), 4))
    steps, options = len(sampler.solver.nodes) - 1, {"init": noise, "dtype": FLOAT64}
    wanted = sample(RING, (6, 2), sampler=name, steps=4, schedule=Cosine(-12, 12), **options)
    for schedule in SCHEDULES.values():
        got = sample(RING, (6, 2), sampler=sampler, steps=steps, schedule=schedule, **options)
        assert float((got - wanted).abs().max()) < 1e-12 * max(1, float(wanted.abs().max()))


def test_what_is_no_table_is_refused():
    with pytest.raises(ValueError, match="injects noise"):
        Tabled.of(plan("ddpm", FlowMatching(), 3))
    with pytest.raises(ValueError, match="does not keep a constant estimate"):
        Tabled.of(plan("pf-euler", Cosine(), 3))
    with pytest.raises(ValueError, match="does not begin with noise"):
        Tabled.of(plan("ddim", Cosine(-9, 9), 3, encode=True))
    for levels, rows, why in (
        ((-1.0, 1.0), (), "n \\+ 1 levels"),
        ((1.0, -1.0), ((),), "rise from noise to data"),
        ((-1.0, 0.0, 1.0), ((), ((2, 0.1, 0.1),)), "lag of 1 to 1 calls, got 2"),
        ((-1.0, 0.0, 1.0), ((), ((1, math.inf, 0.1),)), "not finite"),
    ):
        with pytest.raises(ValueError, match=why):
            Tabled(levels, rows)


def test_other_levels_noise_and_the_way_back_are_refused():
    made = tabled(plan("kab2c", FlowMatching(), 4))
    with pytest.raises(ValueError, match="that is 4 steps, but 5 steps"):
        made.plan(FlowMatching(), 5)
    with pytest.raises(ValueError, match="none of this table's, whose 4 steps"):
        replace(made, grid=ts.grids.UniformTime()).plan(FlowMatching(), 5)
    with pytest.raises(ValueError, match="cannot run with noise"):
        replace(made, stochasticity=ts.Eta(1.0)).plan(FlowMatching(), 4)
    with pytest.raises(ValueError, match="none of this table's"):
        tabled(plan("kab2", Cosine(-9, 9), 4)).plan(Cosine(-9, 9), 4, encode=True)


def test_begun_in_the_middle_its_first_step_is_ddims():
    """At a level of the table or between two: what came before is not there."""
    made, flow = plan("kab3c", FlowMatching(), 5), FlowMatching()
    solver, nodes = Tabled.of(made), made.logsnr.tolist()
    for start in (nodes[2], 0.5 * (nodes[2] + nodes[3])):
        rest = (start, *nodes[3:])
        begun = Sampler(Given(rest), solver).plan(flow, 3)
        ddim = Sampler(Given(rest), DDIM()).plan(flow, 3)
        assert np.allclose(begun.x[1], ddim.x[1], atol=1e-15)
        assert abs(begun.x.sum(1)[1:] - begun.alpha[1:]).max() < 1e-14
    upper = Sampler(Given(tuple(nodes[:4])), solver).plan(flow, 3)  # and stopped before the end
    assert np.allclose(upper.x, made.x[:4, :3], atol=1e-14)


def test_it_is_a_file_and_compares(tmp_path):
    for name in ("kab2c", "heun", "bdia"):
        made = tabled(plan(name, FlowMatching(), 3))
        save_sampler(tmp_path / "a.json", made)
        again = sampler_named(str(tmp_path / "a.json"))
        assert again == made and hash(again) == hash(made)
    found = ts.compare(made.plan(FlowMatching(), 3), plan("bdia", FlowMatching(), 3))
    assert found.difference < 1e-13


@pytest.mark.parametrize("path", ["flow", "vp"])
def test_pipelines_run_it_on_its_own_levels(path, tmp_path):
    """The scheduler's loop, as pipelines have it, against `sample`."""
    from twosides.integrations.diffusers import Scheduler

    flow = path == "flow"
    config = {"prediction_type": "flow_prediction", "shift": 3.0} if flow else {}
    schedule = FlowMatching() if flow else ScaledLinear(1e-4, 0.02, power=1)
    made = tabled(plan("kab2c", schedule if not flow else FlowMatching(), 4))
    save_sampler(tmp_path / "t.json", made)
    for saved in (made, str(tmp_path / "t.json")):
        scheduler = Scheduler(saved, **config)
        scheduler.save_pretrained(tmp_path / "scheduler")
        scheduler = Scheduler.from_pretrained(tmp_path / "scheduler")
        with pytest.raises(ValueError, match="pass num_inference_steps=4"):
            scheduler.set_timesteps(5)
        scheduler.set_timesteps(4)
        network = ts.convert(RING, "u" if flow else "eps", schedule)
        noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
        z = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            time = t.float().reshape(1) / (1000 if flow else 999)
            z = scheduler.step(network(z, time.expand(8)), t, z, return_dict=False)[0]
        denoiser = ts.Denoiser(network, "u" if flow else "eps", schedule)
        wanted = sample(denoiser, (8, 2), sampler=made, steps=4, init=noise)
        end = schedule.level(torch.tensor(made.grid.values[-1])).alpha  # pipelines return z
        assert float((z / end - wanted).abs().max()) < 1e-5


def test_a_shift_that_depends_on_the_resolution_does_not_move_it():
    from twosides.integrations.diffusers import Scheduler

    made = tabled(plan("kab2", FlowMatching(), 3))
    scheduler = Scheduler(made, prediction_type="flow_prediction", use_dynamic_shifting=True)
    with pytest.warns(UserWarning, match="mu=0.8, does not move them"):
        scheduler.set_timesteps(3, mu=0.8)
    assert torch.allclose(scheduler.timesteps, torch.tensor([1000.0, 2000 / 3, 1000 / 3]))


def test_k_diffusion_and_comfyui_run_it(tmp_path, monkeypatch):
    """Levels come as float32; other levels are refused."""
    from twosides.integrations.comfyui import TwosidesTuned

    made = tabled(plan("kab2c", FlowMatching(), 4))
    save_sampler(tmp_path / "t.json", made)
    modules = {"comfy": types.ModuleType("comfy"), "comfy.samplers": types.SimpleNamespace()}
    modules["comfy.samplers"].KSAMPLER = lambda function, *_: function
    for name, module in modules.items():
        monkeypatch.setitem(__import__("sys").modules, name, module)

    class CONST:
        def percent_to_sigma(self, percent):
            return 1 - percent

    model = types.SimpleNamespace(get_model_object=lambda name: CONST())
    function, sigmas = TwosidesTuned().tuned(model, str(tmp_path / "t.json"))
    assert torch.allclose(sigmas, torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))

    def denoise(x, sigma):
        return RING(x, Level(2 * (torch.log1p(-sigma) - sigma.log()), 1 - sigma, sigma)).x

    denoise.inner_model = types.SimpleNamespace(model_sampling=CONST())
    noise = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    wanted = sample(RING, (8, 2), sampler=made, steps=4, init=noise)
    assert float((function(denoise, noise, sigmas) - wanted).abs().max()) < 1e-5
    with pytest.raises(ValueError, match="none of this table's"):
        sampler_function(made, path="flow")(denoise, noise, torch.tensor([1.0, 0.6, 0.3, 0.0]))
    (tmp_path / "k.json").write_text(
        json.dumps({"format": "twosides.sampler", "version": 1, "sampler": {"type": "Sampler"}})
    )
    with pytest.raises(ValueError, match="lists no levels"):
        TwosidesTuned().tuned(model, str(tmp_path / "k.json"))
