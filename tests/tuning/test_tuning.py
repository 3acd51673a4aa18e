"""Tuning: its tables against the library's own solvers, its fits against exact data, its refusals."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import twosides as ts
from twosides.denoiser import as_denoiser
from twosides.oracle import GaussianMixture
from twosides.sampling.named import sampler_named
from twosides.sampling.plan import Plan
from twosides.sampling.presets import kappa_adams
from twosides.sampling.run import run
from twosides.sampling.sample import sample
from twosides.sampling.solvers import Tabled
from twosides.schedules import EDM, Cosine, FlowMatching, ScaledLinear
from twosides.tuning import tables
from twosides.tuning.candidates import candidates
from twosides.tuning.effort import BUDGETS, effort_of
from twosides.tuning.fit import checked_difference, fit, losses
from twosides.tuning.search import bootstrap_bound
from twosides.tuning.tables import RULES, Range, Rule, Tables
from twosides.tuning.teacher import Teacher, teacher_plan
from twosides.tuning.trials import Account, Network, Noises, robust
from twosides.tuning.tune import check, tune

FLOAT64 = torch.float64
RING = GaussianMixture.ring(8, std=0.1)
FLOW = Range.of(FlowMatching())


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=FLOAT64)


def network(denoiser=RING, **options):
    return Network(as_denoiser(denoiser), {}, 1, 512, **options)


def noises(count, first=0, denoiser=RING, calls=64):
    made = Teacher(network(denoiser), FlowMatching(), (2,), 0, torch.empty(0, dtype=FLOAT64))
    return made.noises(range(first, first + count), calls)


# ---------------------------------------------------------------------------- tables


@pytest.mark.parametrize("rule", [*RULES, Rule(2, 3, lower_final=True)])
@pytest.mark.parametrize("kappa, shift", [(1.0, 1.0), (0.3, 0.4), (2.0, 2.5)])
def test_the_first_family_is_kappa_adams(rule, kappa, shift):
    """Its tables are the plans of the library's own solver, to rounding."""
    levels = tables.law(FLOW, 6, np.array([shift]), np.ones(1), np.ones(1))
    made = tables.adams(levels, np.full((1, 6), kappa), rule)
    known = kappa_adams(kappa, shift, order=rule.order, corrector=rule.corrector)
    solver = replace(known.solver, limit=math.inf, lower_order_final=rule.lower_final)
    wanted = Tables.of(Tabled.of(replace(known, solver=solver).plan(FlowMatching(), 6)))
    assert np.allclose(made.x, wanted.x, atol=1e-13) and np.allclose(
        made.eps, wanted.eps, atol=1e-13
    )
    finite = np.isfinite(wanted.logsnr)
    assert np.allclose(made.logsnr[finite], wanted.logsnr[finite], atol=1e-12)


@pytest.mark.parametrize("schedule", [FlowMatching(), Cosine(-12, 12), EDM(), ScaledLinear()])
def test_no_parameter_leaves_the_range_of_the_network(schedule):
    where, generator = Range.of(schedule), np.random.default_rng(0)
    start = tables.low(where, 7, RULES[1], np.zeros(4))
    levels = start.tables(np.zeros((1, 4))).logsnr[0]
    each = tables.each(where, levels, 1.0, RULES[1])
    for family in (start, each, tables.full(where, each.tables(each.start[None]))):
        made = family.tables(family.start + 3 * generator.normal(size=(50, len(family.start))))
        asked = made.logsnr[:, :-1]
        assert (asked[:, 0] == schedule.logsnr_min).all()
        assert (asked[:, 1:] >= asked[:, :-1]).all() and (asked <= schedule.logsnr_max).all()
        assert np.isinf(made.logsnr[:, -1]).all()


def test_families_start_where_the_one_before_ended():
    theta = np.log([0.7, 0.5, 0.8, 0.9])
    low = tables.low(FLOW, 6, RULES[1], theta).tables(theta[None])
    each = tables.each(FLOW, low.logsnr[0], 0.7, RULES[1])
    again = each.tables(each.start[None])
    full = tables.full(FLOW, again)
    last = full.tables(full.start[None])
    for made in (again, last):
        assert np.allclose(made.logsnr[0, 1:-1], low.logsnr[0, 1:-1], atol=1e-9)
        assert np.allclose(made.x, low.x, atol=1e-9) and np.allclose(made.eps, low.eps, atol=1e-9)


def test_a_batch_of_tables_ends_where_their_plans_end():
    """The runner of fits against the library's loop, for presets with inner calls too."""
    start = noises(5).start
    for name in ("kab3c", "deis", "heun"):
        plan = ts.plan(name, FlowMatching(), 4)
        table = Tables.of(Tabled.of(plan))
        both = Tables(*(np.concatenate([part, part]) for part in table))
        found = network().ends(both, start, torch.arange(5))
        wanted = run(plan, RING, start)
        assert found.shape == (2, 5, 2)
        assert float((found - wanted).abs().max()) < 1e-12


def test_the_teacher_ends_at_the_truth():
    """A Gaussian's trajectories are known: x = m + (z - alpha m) std / |(alpha std, sigma)|."""
    gaussian = GaussianMixture.gaussian([0.3, -0.2], 0.25 * torch.eye(2))
    for schedule in (FlowMatching(), ScaledLinear(), EDM()):
        plan = teacher_plan(schedule, 64)
        z, level = normal(6, 2), plan.levels[0]
        mean = torch.tensor([0.3, -0.2], dtype=FLOAT64)
        start = z * math.hypot(level.alpha, level.sigma)
        width = math.hypot(0.5 * level.alpha, level.sigma)
        exact = mean + 0.5 * (start - level.alpha * mean) / width
        found = run(plan, gaussian, z)
        assert float((found - exact).abs().max()) < 2e-2 * (schedule.logsnr_max < 20) + 1e-5


# ---------------------------------------------------------------------------- the fit


def test_a_fit_lowers_the_loss_on_noises_it_has_not_seen():
    train, valid, held = noises(12), noises(16, 100), noises(32, 200)
    family = tables.low(FLOW, 5, RULES[1], np.log([0.5, 0.4, 1.0, 1.0]))
    asked = network()
    found = fit(family, asked, train, valid, difference=1e-4, iterations=6)
    before, after = (
        losses(asked, held, each)[0] for each in (family.tables(family.start[None]), found.tables)
    )
    assert after < 0.5 * before
    assert found.valid == min(valid for _, valid in found.history)


def test_the_slopes_of_a_fit_are_those_of_the_loss():
    """`J' W r` against differences of the loss itself: the gradient of rho is 2 J' W r."""
    from twosides.tuning.fit import _equations

    train, asked = noises(6), network()
    family = tables.low(FLOW, 5, RULES[1], np.log([0.6, 0.5, 0.9, 0.9]))
    _, slope = _equations(family, asked, train, family.start, 1e-5)
    for number in range(4):
        step = 1e-5 * np.eye(4)[number] * family.scale
        up, down = (losses(asked, train, family.tables((family.start + s)[None]))[0]
                    for s in (step, -step))  # fmt: skip
        assert 2 * slope[number] == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-9)


class Rounded:
    """A network that answers in bfloat16."""

    schedule = FlowMatching()

    def __call__(self, z, level):
        x, eps = RING(z, level)
        u = (eps - x).bfloat16().to(z.dtype)
        alpha, sigma = (ts.schedules.along_batch(v, z) for v in level[1:])
        total = alpha + sigma
        return ts.outputs.Estimate((z - sigma * u) / total, (z + alpha * u) / total)


def test_a_step_that_drowns_in_rounding_is_widened_and_said():
    family = tables.low(FLOW, 5, RULES[1], np.log([0.5, 0.4, 1.0, 1.0]))
    some = noises(4)
    assert checked_difference(family, network(), some, 1e-4) == 1e-4
    assert checked_difference(family, network(Rounded()), some, 1e-6) > 1e-3
    tuned = tune(Rounded(), (8, 2), steps=5, budget="fast", difference=1e-6)
    assert any("drown in the network's rounding" in note for note in tuned.report.notes)
    assert tuned.report.accepted


def test_the_bound_is_that_of_a_mean():
    """For many noises it is the mean and 1.645 standard errors."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.rand(2, 4000, generator=generator, dtype=FLOAT64)
    gap = robust(ours[:, None]) - robust(theirs[:, None])
    wanted = float(gap.mean() + 1.645 * gap.std() / 4000**0.5)
    assert bootstrap_bound(ours, theirs) == pytest.approx(wanted, abs=0.1 * float(gap.std()) / 63)


# ---------------------------------------------------------------------------- the whole


@pytest.fixture(scope="module")
def tuned():
    return tune(RING, (8, 2), steps=5, budget="fast")


def test_it_is_better_than_the_best_preset_in_hindsight(tuned):
    """On noises of this test, where every preset and grid is tried."""
    test = noises(128, 5000, calls=96)
    asked = network()

    def median(table):
        return float(test.errors(asked, table)[0].median())

    untuned = min(median(each.table) for each in candidates(FlowMatching(), 5))
    assert tuned.report.accepted
    assert median(Tables.of(Tabled.of(tuned.plan))) < 0.75 * untuned


def test_what_it_costs_is_counted_and_kept(tuned):
    calls = 0

    class Counting:
        schedule = FlowMatching()

        def __call__(self, z, level):
            nonlocal calls
            calls += len(z)
            return RING(z, level)

    told = []
    report = tune(Counting(), (8, 2), steps=5, budget="fast",
                  progress=lambda done, total: told.append((done, total))).report  # fmt: skip
    shown = 1 + 2 * 8 * 5  # the first question, and the samples for eyes
    assert calls - shown <= report.evaluations <= calls <= BUDGETS["fast"].evaluations
    assert [stage.name for stage in report.stages] == ["teacher", "presets", "low", "proof"]
    assert told == sorted(told) and told[-1][0] <= told[-1][1] == 10_000
    assert report.evaluations == tuned.report.evaluations  # nothing is left to chance


def test_it_is_a_sampler_and_a_file(tuned, tmp_path):
    tuned.save(tmp_path / "5.json")
    assert sampler_named(str(tmp_path / "5.json")) == tuned.sampler
    assert json.loads((tmp_path / "5.json").read_text())["tuned"]["accepted"]
    start = normal(4, 2)
    wanted = sample(RING, (4, 2), sampler=tuned.plan, init=start, dtype=FLOAT64)
    for schedule in (FlowMatching(), FlowMatching().with_scaling("vp"), Cosine()):
        found = sample(RING, (4, 2), sampler=str(tmp_path / "5.json"), steps=5, init=start,
                       schedule=schedule, dtype=FLOAT64)  # fmt: skip
        assert float((found - wanted).abs().max()) < 1e-12
    assert isinstance(tuned.plan, Plan) and not tuned.plan.stochastic


def test_a_check_proves_it_anew_for_another_network(tuned):
    assert check(tuned.sampler, RING, (8, 2)).accepted
    other = GaussianMixture.ring(3, radius=2.5, std=0.4)
    report = check(tuned.sampler, other, (8, 2))
    assert not report.accepted and "the best preset is kept" in report.why
    with pytest.raises(ValueError, match="lists no levels"):
        check(sampler_named("kab2"), RING, (8, 2))


def test_where_nothing_is_to_gain_it_is_a_preset():
    gaussian = GaussianMixture.gaussian([0.3, -0.2], 0.25 * torch.eye(2))
    tuned = tune(gaussian, (8, 2), steps=8, budget="fast")
    assert not tuned.report.accepted and "nothing to gain" in tuned.report.why
    assert not isinstance(tuned.sampler.solver, Tabled) and tuned.plan.nfe == 8


def test_networks_that_cannot_be_tuned_are_told():
    generator = torch.Generator().manual_seed(0)

    class Dropout:
        schedule = FlowMatching()

        def __call__(self, z, level):
            x, eps = RING(z + 0.01 * torch.randn(z.shape, generator=generator), level)
            alpha, sigma = (ts.schedules.along_batch(v, z) for v in level[1:])
            noise = torch.randn(z.shape, generator=generator)
            return ts.outputs.Estimate(x + 0.02 * sigma * noise, eps - 0.02 * alpha * noise)

    class Rough(Dropout):
        """The answer jumps in time, so that no number of calls follows it."""

        def __call__(self, z, level):
            x, eps = RING(z, level)
            alpha, sigma = (ts.schedules.along_batch(v, z) for v in level[1:])
            time = torch.as_tensor(sigma / (alpha + sigma))
            jump = torch.sign(torch.sin(3e5 * time))
            return ts.outputs.Estimate(x + 10 * sigma * jump, eps - 10 * alpha * jump)

    class Broken(Dropout):
        def __call__(self, z, level):
            return ts.outputs.Estimate(z * math.nan, z)

    for denoiser, why in (
        (Dropout(), "answers the same question in two ways"),
        (Rough(), "the teacher does not converge"),
        (Broken(), "not finite somewhere between"),
    ):
        with pytest.raises(ValueError, match=why):
            tune(denoiser, (8, 2), steps=8, budget="fast")


def test_words_that_mean_nothing_are_told(tuned):
    for options, why in (
        ({"steps": 1}, "nothing to tune"),
        ({"budget": "lots"}, "lots"),
        ({"budget": 10}, "network evaluations >= 5000"),
        ({"class_labels": torch.zeros(3)}, "3 rows for 8 noises"),
    ):
        with pytest.raises(ValueError, match=why):
            tune(RING, (8, 2), **{"steps": 5, "budget": "fast", **options})
    with pytest.raises(ValueError, match="number of noises to fit"):
        tune(RING, (1, 2))
    assert effort_of(20_000).families == ("low",) and effort_of(20_000).evaluations == 20_000
    few = tune(RING, (4, 2), steps=5, budget="fast").report
    assert any("4 noises are few" in note for note in few.notes)


def test_an_interrupted_teacher_goes_on(tmp_path):
    """What was finished is read, not run again; another network's is not taken."""

    class Failing:
        schedule, left = FlowMatching(), 10**9

        def __call__(self, z, level):
            self.left -= len(z)
            if self.left < 0:
                raise KeyboardInterrupt
            return RING(z, level)

    def ends(denoiser, count=64):
        account = Account(2**40)
        made = Teacher(network(denoiser, account=account), FlowMatching(), (2,), 0,
                       torch.empty(0, dtype=FLOAT64))  # fmt: skip
        made.keep(tmp_path)
        return made.ends(range(count), 16), account.used

    failing = Failing()
    failing.left = 3 + 40 * 16
    with pytest.raises(KeyboardInterrupt):
        ends(failing)
    assert len(list(tmp_path.iterdir())) == 1
    failing.left = 10**9
    found, used = ends(failing)
    assert used == 3 + 32 * 16  # the fingerprint, and the second block
    again, used = ends(failing)
    assert used == 3 and torch.equal(found, again)
    assert ends(GaussianMixture.ring(5))[1] == 3 + 64 * 16
    broken = max(tmp_path.iterdir())
    broken.write_bytes(b"no tensors")
    assert torch.equal(ends(failing)[0], found)


def test_conditioning_and_guidance_are_those_of_each_noise():
    """Rows go with their noises, in batches of any size."""
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, 2.0]], dtype=FLOAT64)

    class Classes:
        schedule = FlowMatching()

        def __call__(self, z, level, label):
            alpha, sigma = (ts.schedules.along_batch(v, z) for v in level[1:])
            x = means[label] + 0.09 * alpha * (z - alpha * means[label]) / (
                0.09 * alpha**2 + sigma**2
            )
            eps = (z - alpha * x) / sigma
            return ts.outputs.Estimate(x, eps)

    label = torch.tensor([0, 1, 2, 0])
    made = Network(as_denoiser(Classes()), {"label": label}, 4, 3)
    table = Tables.of(Tabled.of(ts.plan("kab2c", FlowMatching(), 6)))
    start = normal(8, 2)
    found = made.ends(table, start, torch.arange(8))[0]
    wanted = sample(Classes(), (8, 2), sampler="kab2c", steps=6, init=start, dtype=FLOAT64,
                    label=torch.cat([label, label]))  # fmt: skip
    assert float((found - wanted).abs().max()) < 1e-12


def test_teachers_of_other_conditioning_have_other_names():
    """Rows beyond those that are run, and their number, count too."""

    class Labelled:
        schedule = FlowMatching()

        def __call__(self, z, level, label):
            return RING(z, level)

    def name(label):
        made = Network(as_denoiser(Labelled()), {"label": torch.tensor(label)}, len(label), 3)
        empty = torch.empty(0, dtype=FLOAT64)
        return Teacher(made, FlowMatching(), (2,), 0, empty)._fingerprint()

    names = [name(label) for label in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 5], [0, 1, 2, 3])]
    assert len(set(names)) == 3 and name([0, 1, 2, 3]) == names[2]


def test_a_network_that_says_nothing_at_pure_noise_starts_below_it():
    eps = ts.Denoiser(ts.convert(RING, "eps", Cosine()), "eps", Cosine())
    tuned = tune(eps, (8, 2), steps=6, budget="fast")
    assert any("start at logsnr -12" in note for note in tuned.report.notes)
    assert tuned.report.accepted and tuned.plan.logsnr[0] == pytest.approx(-12)


def test_networks_are_in_eval_mode_and_returned_as_they_were():
    class Small(torch.nn.Module):
        def forward(self, z, t):
            assert not self.training
            return -z

    denoiser = ts.Denoiser(Small().double())
    denoiser.train()
    tune(denoiser, (8, 2), steps=4, budget="fast")
    assert denoiser.training and denoiser.network.training
    with pytest.raises(TypeError):  # forgotten conditioning
        tune(ts.Denoiser(denoiser.network), (8, 2), steps=4, budget="fast", label=torch.zeros(8))
    assert denoiser.network.training


def test_noises_are_other_ones_than_those_of_samples():
    ours = noises(4).start
    theirs = ts.PerSample(0, range(4)).normal((2,), FLOAT64)
    assert float((ours - theirs).abs().min()) > 1e-6
    assert isinstance(noises(2), Noises)
