"""Teacher runs as a store, and distilling from them: resumable, checked, and better than Euler."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import twosides as ts
from twosides import cli
from twosides.distillation.distill import Distillation, distill, mapped, straightened
from twosides.distillation.flow_map import FlowMap
from twosides.distillation.loss import MapObjective
from twosides.distillation.objectives import objectives
from twosides.generation.notes import load_model
from twosides.generation.request import Request
from twosides.generation.runs import Runs, run_request, teacher_of
from twosides.generation.shards import Job
from twosides.generation.workers import make_shards
from twosides.storage.networks import MLP
from twosides.training.fit import Settings, fit

FLOW = ts.FlowMatching()


@pytest.fixture(autouse=True)
def _own_rng():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A model with curved paths: random weights, which is as good an ODE as any."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        network = MLP(width=32, depth=1, classes=3)
        with torch.no_grad():
            network.leave.weight.mul_(4)
            network.enter.weight[:, 2:].mul_(0.1)  # smooth in time, so that few steps suffice
    folder = tmp_path_factory.mktemp("teacher") / "model"
    about = {"shape": [2], "classes": "ab", "null": {"class_labels": 2}}
    ts.save(ts.Denoiser(network, data_std=2.0), folder, **about)
    return folder


def job(teacher, out, **how):
    how = {"sampler": "rk4", "steps": 4, "count": 10, "seed": 1, **how}
    return Job(run_request(Request.of(**how)), teacher, out, batch=4, shard=5, states=True)


@pytest.mark.parametrize("sampler", ["rk4", "kab2c", "heun", "dpmpp-2m", "midpoint"])
def test_the_store_holds_the_states_of_the_run(teacher, tmp_path, sampler):
    """At equal steps of flow time, whatever the solver asks between and before them."""
    made = job(teacher, tmp_path, sampler=sampler, guidance=1.5)
    make_shards(made)
    runs, denoiser = Runs(made), load_model(teacher)
    guided = ts.guidance.classifier_free(denoiser, 1.5, null={"class_labels": 2})
    for number in (0, 7):
        row = runs[number]
        assert row["states"].shape == (5, 2)
        label = torch.tensor([number % 2])
        assert row["class_labels"] == label[0]
        noise = ts.PerSample(1, [number]).normal((2,))
        assert torch.equal(row["states"][0], noise[0])
        # From each node the solver of one step, rk4, goes where the next node is.
        end = ts.sample(
            guided, (1, 2), sampler=dataclasses.replace(ts.samplers[sampler], grid=ts.grids.UniformTime()),
            steps=4, schedule=FLOW, init=noise, class_labels=label,
        )  # fmt: skip
        assert torch.allclose(denoiser.unstandardise(row["states"][-1]), end[0], atol=1e-5)
    fine = ts.sample(
        guided, (1, 2), sampler="rk4", steps=64, schedule=FLOW, trajectory=True,
        init=ts.PerSample(1, [0]).normal((2,)), class_labels=torch.tensor([0]),
    )  # fmt: skip
    times = [level.sigma / level.scale for level in fine.levels]
    for k, state in enumerate(runs[0]["states"]):
        nodes = [max(n for n, t in enumerate(times) if abs(t - 1 + j / 4) < 1e-9) for j in range(5)]
        far = torch.stack([(state - fine.states[n][0]).norm() for n in nodes])
        assert far.argmin() == k, "it is nearest to the exact ODE at its own node"
        assert sampler not in ("rk4", "midpoint") or far[k] < 0.05


def test_it_goes_on_and_is_the_same_for_any_number_of_processes(teacher, tmp_path):
    whole, parts = job(teacher, tmp_path / "a"), job(teacher, tmp_path / "b")
    make_shards(whole)
    make_shards(parts, devices=2)
    first = whole.path(1).read_bytes()
    assert first == parts.path(1).read_bytes()
    whole.path(1).unlink()
    with pytest.warns(UserWarning, match="made again"):
        assert make_shards(whole).made == 1
    assert whole.path(1).read_bytes() == first
    with pytest.raises(ValueError, match="holds another run"):
        make_shards(job(teacher, tmp_path / "a", guidance=2.0))


def test_what_cannot_be_learned_from_is_refused(teacher, tmp_path):
    made = job(teacher, tmp_path)
    make_shards(made)
    states = np.load(made.path(0))
    for spoiled, said in (
        (np.where(np.arange(2) == 1, np.nan, states), "5 of 5 runs.*NaN"),
        (states[:, ::-1], "wrong way round"),
        (states[:, :-1], "not 5 runs of 5 states"),
        (states[::-1], "does not begin with the noise of its seed"),
    ):
        np.save(made.path(0), spoiled.astype(np.float32))
        with pytest.raises(ValueError, match=said):
            Runs(made)
    for wrong, said in (
        ({"states": "nope"}, "unknown kind of states 'nope'"),
        ({"states": "pairs"}, "learns from trajectory of a teacher's stored runs, not from pairs"),
        ({"objective": "shortcut", "states": "trajectory"}, "reads no stored trajectory"),
    ):
        with pytest.raises(ValueError, match=said):
            Distillation(**wrong)
    assert Distillation("shortcut", 3, "pairs").steps == 16, "only the ends of these runs are read"
    for what, data, said in (
        (Distillation("shortcut", states="noise"), None, "trained on noise of the shape"),
        (Distillation(), torch.zeros(4, 2), "leave data out"),
    ):
        with pytest.raises(ValueError, match=said):
            distill(teacher, tmp_path / "none", what, data=data)
    with pytest.raises(ValueError, match="injects noise"):
        run_request(Request.of("ddpm"))
    with pytest.raises(ValueError, match="leave schedule out"):
        run_request(Request.of("ddim", schedule="cosine"))


def test_a_teacher_of_eps_is_trusted_to_logsnr_minus_5():
    """Where its answer is exact it is the same; beyond, its v is held, which stays finite."""
    ring = ts.oracle.GaussianMixture.ring(8)
    eps = ts.Denoiser(lambda z, t: ring(z, ts.Cosine(-15, 15).at(t)).eps, "eps", ts.Cosine(-15, 15))
    trusted = teacher_of(eps)
    z = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    for t in (0.02, 0.4, 0.9):
        level = FLOW.at(t).floats()
        pair, exact = trusted(z, level), ring(z, level)
        assert (pair.eps - pair.x - exact.eps + exact.x).abs().max() < 1e-3
    noisy = ts.Denoiser(
        lambda z, t: ring(z, ts.Cosine(-15, 15).at(t)).eps + 0.01, "eps", ts.Cosine(-15, 15)
    )
    u = {name: teacher_of(d)(z, FLOW.at(1.0).floats()) for name, d in (("e", noisy), ("r", eps))}
    error = (u["e"].eps - u["e"].x - u["r"].eps + u["r"].x).abs().max()
    assert error < 0.3, (
        "an error of .01 in eps is one of .01 exp(2.5) in u, and not of .01 exp(7.5)"
    )
    assert teacher_of(ts.Denoiser(MLP(), "u")).schedule == FLOW


def test_students_begin_as_the_teacher(teacher):
    source = load_model(teacher)
    z, label = torch.ones(3, 2), torch.tensor([0, 1, 2])
    level = FLOW.at(0.6).floats()
    wanted = source(z, level, class_labels=label)
    for student in (mapped(source), straightened(source)):
        assert torch.equal(student(z, level, class_labels=label).x, wanted.x)
        assert torch.equal(student.data_std, source.data_std)
    eps = ts.Denoiser(MLP(width=8), "eps", ts.ScaledLinear(), "index")
    student = mapped(eps)
    assert (student.output.name, student.schedule, student.clock.scale) == ("u", FLOW, 1000.0)
    assert straightened(eps).coupling == "reflow"


SETTINGS = Settings(
    steps=150, batch=64, optimizer="adam", decay="linear", checkpoint_every=100, picture_every=999,
    learning_rate=3e-3, sigma_rel=0.05,
)  # fmt: skip


def ends(denoiser, source, **options):
    """Root mean square distance from the teacher's own ODE after a number of steps."""
    labels = torch.arange(200) % 2
    run = lambda d, **how: ts.sample(d, (200, 2), seed=9, class_labels=labels, **how)  # noqa: E731
    exact = run(source, sampler="rk4", steps=32)
    return float((run(denoiser, **options) - exact).square().sum(1).mean().sqrt())


@pytest.mark.parametrize(
    ("objective", "calls", "states"),
    [("trajectory", None, ""), ("trajectory", 1, ""), ("reflow", None, ""),
     ("lagrangian", None, "pairs"), ("shortcut", None, "pairs")],
)  # fmt: skip
def test_one_call_comes_nearer_to_the_ode(teacher, tmp_path, objective, calls, states):
    source = load_model(teacher)
    what = Distillation(objective, calls, states, runs=1000, sampler="rk4", steps=8)
    student = distill(teacher, tmp_path / "run", what, SETTINGS)
    assert isinstance(student, FlowMap) == (objective != "reflow")
    before, after = ends(source, source, steps=1), ends(student, source, steps=1)
    assert after < 0.5 * before
    again = ts.load(tmp_path / "run")
    assert type(again) is type(student)
    assert ends(again, source, steps=1) == after
    assert again.coupling == ("reflow" if objective == "reflow" else "independent")
    notes = json.loads((tmp_path / "run/model/config.json").read_text())
    assert notes["distillation"]["objective"] == objective
    if objective == "reflow":
        with pytest.raises(ValueError, match="needs the score"):
            ts.sample(again, (2, 2), sampler="ddpm", class_labels=torch.tensor([0, 1]))


def test_an_interrupted_run_goes_on_to_the_same_model(teacher, tmp_path):
    what = Distillation("shortcut", None, "pairs", runs=100, steps=4)
    short = dataclasses.replace(SETTINGS, steps=12, checkpoint_every=4, decay="constant")
    distill(teacher, tmp_path / "whole", what, short)
    distill(teacher, tmp_path / "parts", what, dataclasses.replace(short, steps=8))
    distill(teacher, tmp_path / "parts", what, short)
    whole, parts = (ts.load(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    with pytest.raises(ValueError, match="holds another run"):
        distill(teacher, tmp_path / "parts", dataclasses.replace(what, guidance=2.0), short)


def test_rounds_of_reflow_follow_one_another(teacher, tmp_path):
    short = dataclasses.replace(SETTINGS, steps=3)
    what = Distillation("reflow", runs=50, steps=2, rounds=2, guidance=1.5)
    distill(teacher, tmp_path, what, short)
    first, second = (json.loads((tmp_path / n).read_text()) for n in
                     ("before-1/runs/run.json", "runs/run.json"))  # fmt: skip
    assert first["guidance"] == 1.5
    assert second["guidance"] == 1.0, "the first student has the guidance inside"
    assert first["model"] != second["model"]
    assert first["seed"] != second["seed"]


def test_without_a_teacher_the_map_is_learned_from_data(tmp_path):
    """Data N(0, .25): one call has their spread, which a straight step of the ODE has not."""
    data = 0.5 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = FlowMap.from_denoiser(ts.Denoiser(MLP(width=32, depth=1)))
    objective = MapObjective(rule=dataclasses.replace(objectives["lagrangian"], diagonal=0.5))
    longer = dataclasses.replace(SETTINGS, steps=250)
    trained = fit(student, data, objective, tmp_path, longer)
    x = ts.sample(trained, (2000, 2), steps=1, seed=1)
    # After so little training. u at pure noise is eps - mean, whose whole step ends at 0.
    assert float(x.std()) == pytest.approx(0.5, abs=0.2)


def test_the_command(teacher, tmp_path, monkeypatch, capsys):
    words = ["distill", str(teacher), "--out", str(tmp_path / "run"), "--to", "2", "--runs", "40"]
    words += ["--teacher-steps", "4", "--steps", "3", "--batch", "8", "--guidance", "1.5"]
    monkeypatch.setattr("sys.argv", ["twosides", *words])
    cli.main()
    assert "is ready: twosides sample" in capsys.readouterr().out
    assert type(ts.load(tmp_path / "run")) is FlowMap
    for more, said in (
        (["--to", "3"], "--steps must be a multiple of 3|multiple of 3"),
        (["--to", "none"], "a number of steps"),
        (["--objective", "nope"], "unknown objective 'nope'"),
        (["--objective", "reflow"], "leave calls out|--to"),
        (["--rounds", "2"], "for reflow"),
    ):
        monkeypatch.setattr("sys.argv", ["twosides", *words, *more])
        with pytest.raises(SystemExit):
            cli.main()
        assert any(part in capsys.readouterr().err for part in said.split("|"))


def test_the_table_of_objectives(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["twosides", "objectives"])
    cli.main()
    said = capsys.readouterr().out
    assert all(name in said for name in ts.objectives)
    assert "arXiv 2209.03003" in said
