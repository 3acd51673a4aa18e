"""What the first version of the library wrote is still read, and means the same."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import twosides as ts
from twosides.data.tasks import Points, Task
from twosides.sampling.noise import EDMChurn, Eta, Langevin, Restart
from twosides.sampling.plan import Plan
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import Adams
from twosides.schedules import VPLinear
from twosides.storage.parts import restore

FIRST = Path(__file__).parents[1] / "fixtures" / "first"
SAMPLERS = json.loads((FIRST / "samplers.json").read_text())
TABLES = json.loads((FIRST / "tables.json").read_text())


def test_a_model_gives_the_same_samples():
    denoiser = ts.load(FIRST / "model")
    x = ts.sample(
        denoiser, (3, 2), sampler="ddim", steps=4, schedule="cosine(-9, 9)", seed=0,
        class_labels=torch.tensor([0, 1, 0]),
    )  # fmt: skip
    assert np.allclose(x, json.loads((FIRST / "samples.json").read_text()), atol=1e-5)


@pytest.mark.parametrize(("name", "steps"), [("dpmpp-3m", 8), ("ddpm", 5)])
def test_plans_are_read(name, steps):
    made = ts.plan(name, "cosine", steps)
    for plan in (
        Plan.from_json((FIRST / f"{name}.plan.json").read_text()),
        Plan.from_npz(FIRST / f"{name}.npz"),
        ts.plan(
            str(FIRST / f"{name}.plan.json"), "edm", 3
        ),  # a name: schedule and steps are its own
    ):
        for part in ("logsnr", "alpha", "sigma", "x", "eps", "noise"):
            assert np.allclose(getattr(plan, part), getattr(made, part), atol=1e-12), part


@pytest.mark.parametrize("name", ["restart", "pf-euler", "lms", "edm"])
def test_samplers_make_the_same_tables(name):
    sampler = restore(SAMPLERS[name])
    assert isinstance(sampler, Sampler) and sampler == ts.samplers[name]
    plan = sampler.plan(VPLinear(), 7)
    for part, table in zip(("logsnr", "x", "eps", "noise"), TABLES[name], strict=True):
        assert np.allclose(getattr(plan, part), table, atol=1e-12), part


def test_solvers_and_grids_that_became_noise():
    langevin = restore(SAMPLERS["langevin"])
    assert langevin.solver == Adams(2, "x", "logsnr")
    assert langevin.stochasticity == Langevin(Eta(0.5), 2, along=Eta(0.3))
    nested = restore(SAMPLERS["nested"])
    inner = Restart(-2.0, 1.0, 1, 3)
    assert nested.stochasticity == Restart(2.4, 5.6, 1, 2, along=inner)
    assert nested.grid == ts.grids.Karras()
    shifted = restore(SAMPLERS["shifted"])
    assert shifted.grid == ts.grids.ShiftedGrid(ts.grids.UniformLogSNR(-5.0, 5.0), 1.5)
    assert shifted.stochasticity == EDMChurn(5.0, 0.1, 20.0)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("unipc", "unipc-published"),
        ("kab", "kab2(0.5, 3)"),
        ("whole", ts.samplers["restart"]),
    ],
)
def test_schedulers_of_pipelines_walk_as_before(name, sampler):
    from diffusers import FlowMatchEulerDiscreteScheduler

    from twosides.integrations.diffusers import Scheduler

    old = Scheduler.from_pretrained(FIRST / f"scheduler-{name}")
    own = FlowMatchEulerDiscreteScheduler(shift=3.0)
    config = {**own.config, "_class_name": "FlowMatchEulerDiscreteScheduler"}
    new = Scheduler.from_config(config, sampler=sampler)
    for scheduler in (old, new):
        scheduler.set_timesteps(6)
    assert torch.equal(old.timesteps, new.timesteps)
    plans = (scheduler._runs.current.whole.plan for scheduler in (old, new))
    assert ts.compare(*plans).verdict == "identical"


def test_a_run_continues(tmp_path):
    from twosides.training.run import train_task

    run = tmp_path / "run"
    shutil.copytree(FIRST / "run", run)
    data = torch.arange(16.0).reshape(8, 2) / 8 - 1
    task = Task(Points(data), (2,), {"class": "MLP", "config": {"dim": 2, "width": 4, "depth": 1}})
    options = {"batch": 4, "checkpoint_every": 2, "log_every": 1, "picture_every": 100}
    finished = train_task(task, run, "sd3+adaptive", steps=4, **options)
    kept = ts.load(FIRST / "run")
    assert all(
        torch.equal(a, b)
        for a, b in zip(finished.state_dict().values(), kept.state_dict().values(), strict=True)
    )
    train_task(task, run, "sd3+adaptive", steps=6, **options)
    steps = [line.split(",")[0] for line in (run / "logs/metrics.csv").read_text().split()[1:]]
    assert steps == [str(step) for step in range(1, 7)]
