"""The figures against truth: closed forms, the post's published values, and their own Python."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import twosides as ts
from twosides.explorer import expressions, names, problems, wire
from twosides.explorer.figure import Invalid
from twosides.explorer.figures import FIGURES, churn, error, model, straightness
from twosides.storage import models
from twosides.storage.networks import MLP

BY_NAME = {figure.name: figure for figure in FIGURES}


def view(name, **params):
    figure = BY_NAME[name]
    return figure.view(figure.check(params))


def number(made, name):
    return next(each.value for each in made.numbers if each.name == name)


def array(made, panel, mark, name):
    return np.asarray(made.panels[panel].marks[mark].arrays[name])


# ---------------------------------------------------------------------------- their own Python

CASES = [
    ("two-sides", {}),
    ("two-sides", {"eta": 1.0, "data": "two-modes", "output": "v", "schedule": "edm", "steps": 7}),
    ("two-sides", {"pair": "dpmpp-2m", "eta": 0.5, "data": "ring", "output": "F", "seed": 3}),
    ("two-sides", {"pair": "heun", "data": "points", "schedule": "vp-linear", "output": "x", "particles": 3}),
    ("two-sides", {"pair": "adams", "schedule": "scaled-linear", "data": "gaussian-2d"}),
    ("scaling", {"k": 0.7}),
    ("scaling", {"k": 1.0, "data": "two-modes", "steps": 3, "particles": 4}),
    ("straightness", {"variance": 0.5}),
    ("straightness", {"variance": 0.05, "data": "two-modes", "steps": 2}),
    ("weightings", {}),
    ("weightings", {"normalise": "area", "recipes": ["edm", "p2"], "edm_std": 1.0, "log": True}),
    ("weightings", {"normalise": "none", "recipes": ["sd3-mode"], "std": 0.5}),
    ("churn", {}),
    ("churn", {"c": 0.0, "sampler": "unipc", "output": "eps", "steps": 8, "schedule": "edm"}),
    ("churn", {"c": 0.2, "sampler": "heun", "output": "u", "steps": 5}),
    ("reversed", {"t": 0.3}),
    ("reversed", {"t": 1.0, "data": "ring", "steps": "5", "schedule": "cosine", "particles": 20}),
    ("error", {"samplers": ["ddim", "flow-heun"], "data": "moons"}),
    ("error", {"samplers": ["ddpm", "kab2c-sde"], "measure": "variance", "grid": "own"}),
    ("error", {"samplers": ["ddim", "restart"], "measure": "variance", "c": 0.5, "grid": "karras"}),
    ("dictionary", {}),
    ("dictionary", {"schedule": "edm", "eta": "0.5 + t", "t": 0.2, "steps": 7}),
    ("dictionary", {"given": "sde", "f": "-2*t", "g": "sqrt(1 + t^2)", "eta": "0.3"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "params"), CASES)
def test_the_python_of_a_figure_gives_its_numbers(name, params):
    check_python(view(name, **params))


def check_python(made):
    """Every array and number of a view against the expression it states; none may be silent."""
    space = {}
    exec(made.python, space)
    compared = 0
    for panel in made.panels:
        for mark in panel.marks:
            if mark.kind != "table" and mark.label != "data":
                assert mark.code, (panel.title, mark.label)
            for key, code in mark.code.items():
                expected = np.asarray(eval(code, space), dtype=float)
                found = np.asarray(mark.arrays[key], dtype=float)
                assert found.shape == expected.shape and found.size
                np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
                compared += 1
    for each in made.numbers:
        expected = float(eval(each.code, space))
        np.testing.assert_allclose(each.value, expected, rtol=1e-6, atol=1e-9)
    assert compared
    assert wire.reply(1, "figure", 0.0, made)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_every_figure_states_itself(figure):
    spec = figure.spec()
    assert figure.name in dict(CASES) and len(spec["text"]) > 200
    assert set(figure.frames) <= {control.name for control in figure.controls}
    for name, values in figure.frames.items():
        for value in values:
            figure.check({name: value})
    assert figure.check({}) == {c.name: c.default for c in figure.controls}


def test_the_names_offered_are_the_librarys():
    assert set(dict(names.SAMPLERS)) == {
        name for name in ts.samplers if name not in ("euler-ancestral", "lcm", "ipndm-v")
    }
    assert list(dict(names.RECIPES)) == list(ts.recipes)
    assert set(ts.schedules.SCHEDULES) <= set(dict(names.SCHEDULES))
    assert set(dict(names.OUTPUTS)) == set(ts.outputs.OUTPUTS)


def test_commands_run(capsys, monkeypatch):
    import shlex
    import sys

    from twosides.cli import main

    for made in (view("two-sides"), view("weightings", recipes=["sd3", "edm"])):
        words = [w for w in shlex.split(made.cli) if w not in ("--plot", "weightings.png")]
        monkeypatch.setattr(sys, "argv", words)
        main()
    out = capsys.readouterr().out
    assert "ddim and flow-euler, 10 steps" in out and "identical" in out and "sd3 and edm" in out


# ---------------------------------------------------------------------------- two sides


@pytest.mark.parametrize("pair", list(dict(BY_NAME["two-sides"].controls[3].options)))
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_the_two_sides_are_one_run(pair, eta):
    for schedule in ("cosine(-15, 15)", "scaled-linear", "edm"):
        made = view("two-sides", pair=pair, eta=eta, schedule=schedule, output="v")
        assert number(made, "difference") < 1e-10 and number(made, "samples") < 1e-10


def test_the_right_side_is_flow_matchings_euler():
    """z <- z + (s - t) u, in plain arithmetic on the exact velocity."""
    made = view("two-sides", steps=6, output="u", data="ring", particles=5)
    data, flow = problems.mixture("ring"), ts.Cosine(-15, 15).with_scaling("flow")
    times = flow.sigma(torch.linspace(1, 0, 7, dtype=torch.float64))
    first = flow.at(1.0)
    z = ts.PerSample(0, range(5)).normal((2,), torch.float64) * math.hypot(first.alpha, first.sigma)
    for t, s in pairwise(times.tolist()):
        z = z + (s - t) * data.velocity(z, ts.FlowMatching(), t)
    np.testing.assert_allclose(array(made, 1, 1, "x")[:, -1], z[:, 0], atol=1e-12)
    np.testing.assert_allclose(array(made, 1, 1, "y")[:, -1], z[:, 1], atol=1e-12)


def test_eps_at_zero_snr_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="says nothing about the data at zero SNR"):
        view("two-sides", schedule="flow-matching", output="eps")


# ---------------------------------------------------------------------------- paths


def published(k, variance, steps):
    """The post's setup for N(0, variance) data: DDIM and Euler on dz/dt, exact path; NumPy only."""
    t = np.linspace(1, 0, steps + 1)
    length = np.hypot(1 - t, t)
    scale = 1 + k * (1 / length - 1)
    slope = k * (1 - 2 * t) / length**3  # dS/dt
    alpha, sigma = (1 - t) * scale, t * scale
    dalpha, dsigma = -scale + (1 - t) * slope, scale + t * slope
    total = alpha**2 * variance + sigma**2
    x, eps = alpha * variance / total, sigma / total
    y = np.linspace(-2, 2, 6)
    ddim, euler = [y], [y]
    for i in range(steps):
        ddim.append(ddim[-1] * (alpha[i + 1] * x[i] + sigma[i + 1] * eps[i]))
        euler.append(euler[-1] * (1 + (t[i + 1] - t[i]) * (dalpha[i] * x[i] + dsigma[i] * eps[i])))
    exact = y[:, None] * np.sqrt(total / total[0])
    return np.stack(ddim, 1), np.stack(euler, 1), exact


@pytest.mark.parametrize("k", [0.0, 1 / 7, 0.5, 1.0])
def test_scaling_is_the_posts_figure(k):
    made = view("scaling", k=k)
    ddim, euler, _ = published(k, 0.25, 5)
    exact = published(k, 0.25, 32)[2]
    np.testing.assert_allclose(array(made, 0, 0, "y"), exact, atol=5e-4)
    np.testing.assert_allclose(array(made, 0, 1, "y"), ddim, atol=1e-12)
    np.testing.assert_allclose(array(made, 0, 2, "y"), euler, atol=1e-12)
    np.testing.assert_allclose(array(made, 0, 1, "x")[0], np.linspace(0, 1, 6))
    assert number(made, "ddim") < 1e-14
    still = published(0.0, 0.25, 5)[1]
    assert number(made, "euler") == pytest.approx(np.abs(euler - still)[:, -1].max(), abs=1e-12)


@pytest.mark.parametrize("variance", [0.01, 0.05, 0.1, 0.5, 1.0])
def test_straightness_is_the_posts_figure(variance):
    made = view("straightness", variance=variance)
    for panel, k in enumerate((1.0, 0.0)):
        ddim, euler, _ = published(k, variance, 5)
        exact = published(k, variance, 32)[2]
        np.testing.assert_allclose(array(made, panel, 0, "y"), exact, atol=5e-3)
        np.testing.assert_allclose(array(made, panel, 1, "y"), ddim, atol=1e-12)
        np.testing.assert_allclose(array(made, panel, 2, "y"), euler, atol=1e-12)


def test_bend_is_zero_for_straight_and_known_for_a_parabola():
    """z = 1 - t^2: int (2 t - 1)^2 dt = 1/3, |z| = 1 at the noise."""
    t = np.linspace(0, 1, 4001)[None]
    assert straightness.bend(3 * t - 1) < 1e-20 and straightness.bend(0 * t + 2) == 0
    assert straightness.bend(1 - t**2) == pytest.approx(1 / 3, rel=1e-6)
    assert number(view("straightness", variance=1.0), "bend_vp") < 1e-4
    assert number(view("straightness", variance=0.01), "bend_flow") < 0.05
    assert number(view("straightness", variance=1.0), "bend_flow") > 0.1


def test_the_scaling_of_the_first_figure_has_its_derivatives():
    for k in (0.0, 0.4, 1.0):
        own = problems.ScaledFlow(k)
        other = ts.schedules.FromFunctions(own.alpha, own.sigma)
        t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
        torch.testing.assert_close(own.dalpha(t), other.dalpha(t), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(own.dsigma(t), other.dsigma(t), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------- churn


@pytest.mark.parametrize(
    ("c", "total", "initial", "noise"),
    [(0.0, 1.560, 0.9878, 0.0), (0.1, 1.608, 0.4293, 0.790), (0.2, 1.665, 0.1516, 0.948),
     (0.3, 1.734, 0.0398, 0.966), (0.4, 1.820, 0.0067, 0.962), (0.5, 1.930, 0.0006, 0.954)],
)  # fmt: skip
def test_churn_has_the_posts_values(c, total, initial, noise):
    made = view("churn", c=c)
    assert number(made, "sum") == pytest.approx(total, abs=6e-4)
    assert number(made, "initial") == pytest.approx(initial, abs=6e-5)
    assert number(made, "noise") == pytest.approx(noise, abs=6e-4)
    h = array(made, 0, 0, "y")
    assert h.shape == (100,) and number(made, "largest") == h.max() > 0
    if c == 0:
        assert h.min() == pytest.approx(0.015506, abs=1e-6) and h.max() == pytest.approx(
            0.015696, abs=1e-6
        )


def test_the_heat_map_is_the_plans_matrix_and_acts_like_the_sampler():
    made = view("churn", c=0.4, steps=6)
    matrix = array(made, 2, 0, "v")
    plan = churn.plan("ddim", 0.4, "cosine(-15, 15)", 6)
    data = problems.mixture("gaussian")
    drawn = torch.randn(
        1 + matrix.shape[1], 4, 1, generator=torch.Generator().manual_seed(0)
    ).double()
    outputs, noises = [], iter(drawn[1:])
    from twosides.sampling.run import run

    def watch(visit):
        outputs.append(data.predict(visit.z, visit.level, "v"))

    last = run(plan, data, drawn[0], lambda: next(noises), watch=watch)
    columns = torch.stack([drawn[0], *outputs, *drawn[1 : 1 + matrix.shape[1] - 7]])
    np.testing.assert_allclose(matrix[-1] @ columns[:, :, 0].numpy(), last[:, 0], atol=1e-12)


# ---------------------------------------------------------------------------- weightings


def test_flow_matching_lies_on_v_cosine():
    made = view("weightings", recipes=["flow-matching", "v-cosine"], normalise="none")
    flow, cosine = (array(made, 0, i, "y") for i in range(2))
    np.testing.assert_allclose(flow / cosine, math.pi / 2, rtol=1e-12)
    grid = array(made, 0, 0, "x")
    np.testing.assert_allclose(  # p of uniform t: t (1 - t) / 2
        array(made, 1, 0, "y"), 0.125 / np.cosh(grid / 4) ** 2, rtol=1e-10
    )
    assert "factor 1.5708" in made.panels[2].marks[0].style["rows"][0][2]


def test_scales_of_weightings():
    top = view("weightings", recipes=["sd3", "edm"])
    area = view("weightings", recipes=["sd3", "edm"], normalise="area")
    for i in range(2):
        assert array(top, 0, i, "y").max() == 1
        assert np.trapezoid(array(area, 0, i, "y"), array(area, 0, i, "x")) == pytest.approx(1)


def test_edms_data_deviation_moves_its_curve():
    """By 2 log(data_std): where data of that deviation are as noisy."""
    unit, half = (view("weightings", recipes=["edm"], edm_std=std) for std in (1.0, 0.5))
    moved = np.interp(
        array(unit, 0, 0, "x") - 2 * math.log(0.5), array(unit, 0, 0, "x"), array(half, 0, 0, "y")
    )
    inside = np.abs(array(unit, 0, 0, "x")) < 12
    assert np.abs(moved - array(unit, 0, 0, "y"))[~inside].max() < 1
    grid = array(unit, 0, 0, "x")
    assert number(unit, "peak_edm") - number(half, "peak_edm") == pytest.approx(
        2 * math.log(2), abs=0.06
    )
    assert grid.size == 601


# ---------------------------------------------------------------------------- reversed, error


def test_diffused_points_and_densities():
    made = view("reversed", t=0.25, particles=50)
    x = problems.mixture("moons").sample(50, seed=0)
    noise = ts.PerSample(0, range(50)).normal((2,), torch.float64)
    np.testing.assert_allclose(array(made, 0, 1, "x"), (0.75 * x + 0.25 * noise)[:, 0], atol=1e-12)
    field = array(made, 0, 0, "v")
    axis = np.linspace(-2.6, 2.6, 48)
    assert np.trapezoid(np.trapezoid(field, axis), axis) == pytest.approx(1, abs=2e-3)
    z = torch.tensor([[axis[30], axis[10]]])
    density = problems.mixture("moons").log_prob(z, ts.FlowMatching().at(0.25)).exp()
    assert field[10, 30] == pytest.approx(float(density), rel=1e-12)


def test_reversed_ddim_reaches_the_exact_marginals():
    start, end = view("reversed", t=0.0, particles=500), view("reversed", t=1.0, particles=500)
    assert number(start, "carried") == number(start, "forward")
    np.testing.assert_allclose(array(start, 1, 2, "x"), array(start, 0, 1, "x"))
    assert number(end, "exact") == 1 and number(end, "carried") == pytest.approx(1, abs=0.15)


def test_error_is_measured_against_the_exact_solution():
    """One Gaussian: DDIM's end point and the ODE's are known in closed form."""
    made = view("error", samplers=["ddim"], data="gaussian-2d", schedule="flow-matching")
    nfe, errors = array(made, 0, 0, "x"), array(made, 0, 0, "y")
    start = ts.PerSample(0, range(64)).normal((2,), torch.float64).numpy()
    covariance, mean = np.array([[0.5, 0.3], [0.3, 0.4]]), np.array([0.3, -0.2])
    values, axes = np.linalg.eigh(covariance)
    exact = mean + ((start @ axes) * np.sqrt(values)) @ axes.T
    for count, found in zip(nfe, errors, strict=True):
        t, z = np.linspace(1, 0, count + 1), start @ axes
        centre = mean @ axes
        for a, b in pairwise(t):
            total = (1 - a) ** 2 * values + a**2
            away = z - (1 - a) * centre
            x = centre + (1 - a) * values / total * away
            z = (1 - b) * x + b * (a / total * away)
        gap = z @ axes.T - exact
        assert found == pytest.approx(np.sqrt((gap**2).mean() / (exact**2).mean()), rel=1e-3)
    assert number(made, "order_ddim") == pytest.approx(1, abs=0.1)


def test_noise_has_no_end_point_but_a_variance():
    made = view("error", samplers=["ddim", "ddpm"])
    assert len(made.panels[0].marks) == 1 and "ddpm adds noise" in made.notes[0]
    made = view("error", samplers=["ddpm"], measure="variance", schedule="edm")
    assert number(made, "order_ddpm") == pytest.approx(1, abs=0.3)


def test_slopes():
    n = np.array([4, 8, 16])
    assert error.slope(n, 3.0 / n**2) == pytest.approx(2) and math.isnan(error.slope(n, 0.0 * n))


# ---------------------------------------------------------------------------- dictionary


def test_dictionary_of_vp_linear():
    made = view("dictionary", schedule="vp-linear", eta="1")
    t = array(made, 0, 0, "x")
    np.testing.assert_allclose(array(made, 0, 0, "y"), -0.5 * (0.1 + 19.9 * t), rtol=1e-10)
    np.testing.assert_allclose(array(made, 0, 1, "y") ** 2, 0.1 + 19.9 * t, rtol=1e-10)
    np.testing.assert_allclose(array(made, 1, 2, "y"), array(made, 0, 1, "y"))
    assert number(made, "gap") < 1e-12
    assert [number(made, name) for name in ("Churn", "DDIMEta", "Tau")] == pytest.approx(
        [0.5, 1, 1]
    )


def test_dictionary_of_typed_functions():
    made = view("dictionary", given="sde", f="-0.5*(0.1 + 19.9*t)", g="sqrt(0.1+19.9*t)")
    t = torch.from_numpy(array(made, 1, 0, "x"))
    np.testing.assert_allclose(array(made, 1, 0, "y"), ts.VPLinear().alpha(t), rtol=1e-11)
    np.testing.assert_allclose(array(made, 1, 1, "y"), ts.VPLinear().sigma(t), rtol=1e-11)
    assert number(made, "gap") < 1e-8


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "t.__class__", "().__class__", "lambda: 1", "[t]", "t if t else 1", "open(t)",
     "sqrt", "sqrt(t, t)", "sqrt(x=t)", "(lambda t: t)(t)", "t[0]", "'a'", "True", "1j", "a", "t @ t",
     "t // 2", "~t", "not t", "t < 1", "2 t", "", "(" * 40 + "t" + ")" * 3, "-" * 79 + "t", "f'{t}'",
     "t := 1", "*t", "print(t)", "torch.exp(t)", "\ud800"],
)  # fmt: skip
def test_typed_functions_hold_arithmetic_only(text):
    with pytest.raises(ValueError, match="f = .* cannot be read"):
        expressions.parse(text, "f")


def test_typed_functions_are_what_they_say():
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    text = "-2*t**2 + sqrt(1 + t)/exp(-t) - 2^-t * pi + sin(cos(t)) * log(e) + tanh(t) - tan(t)"
    function, python = expressions.parse(text, "f")
    expected = (
        -2 * t**2
        + (1 + t).sqrt() / (-t).exp()
        - 2**-t * math.pi
        + t.cos().sin()
        + t.tanh()
        - t.tan()
    )
    torch.testing.assert_close(function(t), expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(
        eval(python, {"t": t, "torch": torch}), expected, rtol=1e-14, atol=1e-14
    )
    assert expressions.parse("2", "f")[0](t).shape == t.shape
    assert float(expressions.parse("9**9**9**9", "f")[0](t)[0]) == math.inf  # at once


@pytest.mark.parametrize(
    ("f", "g"), [("1/(t-0.5)", "1"), ("t", "0"), ("t", "-1"), ("log(t-2)", "1"), ("1", "1e9")]
)
def test_typed_processes_must_make_sense(f, g):
    with pytest.raises(ValueError, match="f and g must|must be finite"):
        view("dictionary", given="sde", f=f, g=g)


@pytest.mark.parametrize("f", ["1/t", "-1/t", "50", "-9999"])
def test_processes_without_a_schedule_are_refused_in_words(f):
    with pytest.raises(Invalid, match="make no schedule in floating point") as refused:
        view("dictionary", given="sde", f=f, g="1")
    assert refused.value.control == "f"


# ---------------------------------------------------------------------------- problems, model


@pytest.mark.parametrize("name", ["gaussian", "two-modes", "ring", "moons", "gaussian-2d"])
def test_problems_have_the_variance_asked_for(name):
    made = problems.mixture(name, 0.3)
    assert float(made.covariance.trace()) / made.means.shape[1] == pytest.approx(0.3)
    assert name in {**dict(names.DATA_1D), **dict(names.DATA_2D)}
    assert (made.means.shape[1] == 1) == (name in dict(names.DATA_1D))


def test_an_unknown_problem():
    with pytest.raises(ValueError, match="did you mean 'ring'"):
        problems.mixture("rng")


def test_a_model_of_points(tmp_path):
    with torch.random.fork_rng(devices=[]):
        models.save(ts.Denoiser(MLP(2), "v", "cosine"), tmp_path / "m", shape=[2])
    figure = model.of(tmp_path / "m")
    for params in ({}, {"c": 0.3, "steps": 5, "count": 3, "sampler": "unipc"}):
        made = figure.view(figure.check(params))
        check_python(made)
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        model.of(tmp_path)


def test_a_model_of_pictures_with_classes(tmp_path):
    from diffusers import UNet2DModel

    with torch.random.fork_rng(devices=[]):
        network = UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,),
            down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4,
            num_class_embeds=3,
        )  # fmt: skip
    denoiser = ts.Denoiser(network, "u", "flow-matching", "1000t")
    models.save(denoiser, tmp_path / "m", shape=[1, 8, 8], classes="ab")
    figure = model.of(tmp_path / "m")
    assert figure.controls[0].options == (("", "each in turn"), ("a", "a"), ("b", "b"))
    made = figure.view(figure.check({"steps": 4, "count": 3}))
    check_python(made)
    shown = made.panels[0].marks[0]
    assert shown.arrays["v"].shape == (3, 8, 8) and shown.style["labels"] == ["a", "b", "a"]
    assert 0 <= shown.arrays["v"].min() <= shown.arrays["v"].max() <= 1
    assert "--labels aba" in made.cli


@pytest.mark.parametrize("eta", ["-1", "1/0", "log(0 - t)"])
def test_a_noise_that_is_none_is_refused_beside_its_control(eta):
    (figure,) = (each for each in FIGURES if each.name == "dictionary")
    with pytest.raises(Invalid, match="eta must be finite and not negative") as caught:
        figure.view(figure.check({"eta": eta}))
    assert caught.value.control == "eta"
