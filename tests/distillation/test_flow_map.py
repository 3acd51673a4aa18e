"""Flow maps: exactly the teacher at the start, told two levels, run by plans of DDIM's steps."""

import copy
import itertools

import diffusers
import pytest
import torch
from torch import nn

import pipelines
import twosides as ts
from few_networks import NETWORKS, built, trained
from twosides.clocks import Time
from twosides.distillation.flow_map import FlowMap, step_end
from twosides.distillation.second import SecondTime, units_of
from twosides.dynamics import require_score
from twosides.schedules import Level
from twosides.storage.networks import MLP


@pytest.fixture(autouse=True)
def _own_rng():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module", params=NETWORKS)
def family(request):
    """A tiny network with random weights as a denoiser, a state, and what it is told."""
    return built(request.param)


@torch.no_grad()
def test_it_is_exactly_the_teacher_until_it_is_trained(family):
    teacher, z, given = family
    flow_map, here = FlowMap.from_denoiser(teacher), ts.FlowMatching().at(0.7)
    for to in (None, ts.FlowMatching().at(0.2), ts.FlowMatching().at(0.0)):
        assert torch.equal(flow_map(z, here, to, **given).x, teacher(z, here, **given).x)
    x = trained(flow_map)(z, here, ts.FlowMatching().at(0.2), **given).x
    assert not torch.equal(x, teacher(z, here, **given).x)
    elsewhere = flow_map(z, here, ts.FlowMatching().at(0.5), **given).x
    assert (elsewhere - x).abs().max() > 1e-4, "the answer depends on where the step goes"


def test_all_that_was_added_learns_even_of_a_frozen_teacher(family):
    teacher, z, given = family
    frozen = copy.deepcopy(teacher).requires_grad_(False)
    flow_map = trained(FlowMap.from_denoiser(frozen))
    level = ts.FlowMatching().at(0.7)
    flow_map(z, level, ts.FlowMatching().at(0.2), **given).x.square().sum().backward()
    added = [
        *flow_map.network.embedders.named_parameters(),
        *flow_map.network.gates.named_parameters(),
    ]
    assert added
    assert all(p.grad is not None and p.grad.any() for name, p in added if p.requires_grad)
    assert any(p.requires_grad for p in flow_map.network.embedders.parameters())


class Own(nn.Module):
    """A user's convolutional network, told the time by a layer of its own."""

    def __init__(self):
        super().__init__()
        self.time_mlp = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 8))
        self.enter, self.leave = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, z, time):
        told = self.time_mlp(time[:, None])[..., None, None]
        return self.leave(torch.relu(self.enter(z) + told))


@torch.no_grad()
def test_a_network_of_ones_own_names_one_module():
    teacher, z = ts.Denoiser(Own()), torch.randn(3, 1, 6, 6)
    with pytest.raises(ValueError, match=r"named_modules"):
        FlowMap.from_denoiser(teacher)
    with pytest.raises(ValueError, match="no module called 'time'"):
        FlowMap.from_denoiser(teacher, at="time")
    flow_map, here, to = (
        FlowMap.from_denoiser(teacher, at="time_mlp"),
        *(ts.FlowMatching().at(t) for t in (0.7, 0.1)),
    )
    assert torch.equal(flow_map(z, here, to).eps, teacher(z, here).eps)
    assert not torch.equal(trained(flow_map)(z, here, to).eps, teacher(z, here).eps)


def linear_map(a):
    """The exact flow map of data N(0, a^2): the ODE scales z by the ratio of deviations."""

    def network(z, time, *, second):
        t, s = (part.double().reshape(-1, *[1] * (z.ndim - 1)) for part in (time, second))
        spread = lambda t: torch.sqrt(((1 - t) * a) ** 2 + t**2)  # noqa: E731
        same = torch.isclose(t, s)
        slope = (spread(s) / spread(t) - 1) / torch.where(same, 1, s - t)
        at_once = (t - (1 - t) * a**2) / spread(t) ** 2
        return (torch.where(same, at_once, slope) * z).to(z)

    return FlowMap(network, "u", ts.FlowMatching())


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "schedule", [ts.FlowMatching(), ts.Cosine(), ts.FlowMatching().with_scaling("ve")], ids=str
)
def test_the_map_is_exact_in_any_number_of_steps_on_any_schedule(steps, schedule):
    flow_map, noise = linear_map(0.25), torch.randn(5, 3, dtype=torch.float64)
    grid = ts.grids.UniformTime(start=0.999) if "ve" in str(schedule).lower() else None
    sampler = ts.Sampler(grid=grid) if grid else "ddim"
    run = ts.sample(
        flow_map, (5, 3), sampler=sampler, steps=steps, schedule=schedule, init=noise,
        dtype=torch.float64, trajectory=True,
    )  # fmt: skip
    first, last = run.levels[0], run.levels[-1]
    deviation = lambda level: (level.alpha**2 * 0.25**2 + level.sigma**2) ** 0.5  # noqa: E731
    wanted = run.states[0] * deviation(last) / deviation(first)
    assert (run.states[-1] - wanted).abs().max() < 1e-10


def test_the_pair_is_the_same_on_every_schedule():
    flow_map, z = linear_map(0.25), torch.randn(5, 3, dtype=torch.float64)
    at, to = (torch.full((5,), value, dtype=torch.float64) for value in (-1.3, 2.1))
    flow = ts.FlowMatching()
    wanted = flow_map(z, flow.level(at), flow.level(to))
    for schedule in (ts.Cosine(), flow.with_scaling("ve"), ts.EDM()):
        level, target = schedule.level(at), schedule.level(to)
        scale = (level.scale / flow.level(at).scale)[:, None]
        pair = flow_map(z * scale, level, target)
        assert max((a - b).abs().max() for a, b in zip(pair, wanted, strict=True)) < 1e-10


@pytest.mark.parametrize("sampler", ["ddim", "flow-euler", "edm-euler"])
def test_the_run_tells_each_call_where_its_step_goes(sampler):
    asked = []

    def network(z, time, *, second):
        asked.append((float(time[0]), float(second[0])))
        return 0 * z

    run = ts.sample(FlowMap(network), (2, 3), sampler=sampler, steps=4, trajectory=True)
    times = [level.sigma / (level.alpha + level.sigma) for level in run.levels]
    wanted = torch.tensor(list(itertools.pairwise(times)))
    assert (torch.tensor(asked) - wanted).abs().max() < 1e-6


def test_noise_is_added_after_the_map_has_gone_to_the_overshoot():
    """Full renoising maps to the data each time; churn a little further than the next level."""
    flow = ts.FlowMatching()
    plan = ts.plan("consistency", flow, 4)
    assert [step_end(plan, k) for k in range(4)] == [float("inf")] * 4
    churned = ts.plan("churn", flow, 4)
    ends = [step_end(churned, k) for k in range(4)]
    assert all(end > level.logsnr for end, level in zip(ends[:3], churned.levels[1:4], strict=True))
    # Data N(0, a^2): whatever the noise, an exact map keeps the exact variance.
    flow_map = linear_map(0.25)
    for sampler in ("consistency", "churn", "ddpm"):
        x = ts.sample(flow_map, (4000, 1), sampler=sampler, steps=3, seed=0)
        assert float(x.std()) == pytest.approx(0.25, rel=0.05), sampler


@pytest.mark.parametrize("sampler", ["kab2", "dpmpp-2m", "heun", "midpoint", "unipc", "pf-euler"])
def test_other_solvers_are_refused_with_the_reason(sampler):
    schedule = ts.Cosine(-12, 12) if sampler == "pf-euler" else None
    with pytest.raises(ValueError, match="does not step from call .* as DDIM does"):
        ts.sample(linear_map(0.25), (2, 3), sampler=sampler, steps=4, schedule=schedule)


def test_without_a_target_it_is_a_denoiser():
    """So that it can be guided, compared and integrated as one."""
    flow_map, exact = linear_map(0.25), ts.oracle.GaussianMixture.gaussian([0.0], [[0.25**2]])
    z, level = torch.randn(6, 1), ts.FlowMatching().at(0.6)
    assert (flow_map(z, level).x - exact(z, level).x).abs().max() < 1e-6
    value = ts.log_likelihood(flow_map, z, sampler="rk4", steps=40)
    wanted = exact.log_prob(z.double(), Level(float("inf"), 1.0, 0.0))
    assert (value.nats - wanted).abs().max() < 1e-3


def test_it_is_stored_with_its_second_time(tmp_path):
    flow_map = trained(FlowMap.from_denoiser(ts.Denoiser(MLP(width=16))))
    ts.save(flow_map, tmp_path / "model", shape=[2])
    again = ts.load(tmp_path / "model")
    assert type(again) is FlowMap
    same = [ts.sample(d, (5, 2), steps=2, seed=0) for d in (flow_map, again)]
    assert torch.equal(*same)


def test_a_file_names_no_class_of_its_own(tmp_path):
    flow_map = FlowMap.from_denoiser(ts.Denoiser(MLP(width=16)))
    ts.save(flow_map, tmp_path / "model", shape=[2], kind="os:system")
    with pytest.raises(ValueError, match="unknown kind of denoiser"):
        ts.load(tmp_path / "model")


# ---------------------------------------------------------------------------- coupling


@pytest.fixture
def coupled():
    denoiser = ts.Denoiser(MLP(width=16))
    denoiser.coupling = "reflow"
    return denoiser


def test_a_coupled_model_runs_without_noise_only(coupled):
    assert ts.sample(coupled, (3, 2), sampler="dpmpp-2m", steps=3).isfinite().all()
    for sampler in ("ddpm", "churn", "edm", "euler-a", "consistency", "restart"):
        with pytest.raises(ValueError, match="needs the score.*reflow"):
            ts.sample(coupled, (3, 2), sampler=sampler, steps=3, schedule=ts.Cosine(-12, 12))


def test_what_else_needs_the_score_is_refused(coupled):
    with pytest.raises(ValueError, match=r"the variational bound needs the score.*reflow"):
        ts.ode.likelihood.variational_bound(coupled, torch.zeros(2, 2), schedule="cosine(-9, 9)")
    with pytest.raises(ValueError, match="needs the score"):
        ts.rollout(coupled, (3, 2), sampler="ddpm", steps=3)


def test_the_coupling_goes_where_the_model_goes(coupled, tmp_path):
    """Into guidance, another notation, a flow map and a file."""
    ts.save(coupled, tmp_path / "model")
    network = ts.convert(coupled, "v", ts.Cosine())
    ts.save(ts.Denoiser(network, "v", ts.Cosine()), tmp_path / "converted")
    everywhere = [
        ts.guidance.classifier_free(coupled, 2.0, null={}),
        ts.Denoiser(network, "v", ts.Cosine()),
        FlowMap.from_denoiser(coupled),
        ts.load(tmp_path / "model"),
        ts.load(tmp_path / "converted"),
    ]
    for denoiser in everywhere:
        with pytest.raises(ValueError, match="needs the score"):
            require_score(denoiser, "this")
    require_score(ts.oracle.GaussianMixture.ring(8), "this")


def test_the_second_time_enters_every_block_that_embeds_the_time():
    with torch.random.fork_rng():
        network = NETWORKS["DiT"][0]()
    assert len(SecondTime(network).places) == 2


def test_networks_of_pipelines_are_known():
    """Those that the tests of pipelines have and that are not above."""
    for build in (pipelines.ltx, pipelines.cogvideox):
        assert SecondTime(build()).places


def test_the_second_time_is_in_the_units_of_the_first():
    """A network told 1 - t is told 1 - s, and one with a factor of its own is not told it twice."""
    with torch.random.fork_rng():
        network, aura = MLP(), NETWORKS["AuraFlow"][0]()
    assert units_of(network, Time(1000.0, reversed=True)) == (-1000.0, 1000.0)
    assert units_of(aura, Time(1000.0)) == (1.0, 0.0)


def test_an_embedding_that_takes_the_logarithm_of_the_time_is_not_copied():
    """At s = 0 it is NaN, and zero times NaN is NaN."""
    with torch.random.fork_rng():
        network = diffusers.UNet2DModel(
            8, 1, 1, time_embedding_type="fourier", block_out_channels=(8, 8), norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        )  # fmt: skip
    with pytest.raises(ValueError, match="no place for a second time is known in UNet2DModel"):
        SecondTime(network)
    named = FlowMap.from_denoiser(ts.Denoiser(network), "time_embedding")
    assert ts.sample(named, (2, 1, 8, 8), steps=2, seed=0).isfinite().all()
