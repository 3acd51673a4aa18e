"""k-diffusion's signature: its own formulas, `sample` on the same levels, and what callers see."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from instances import published
from twosides.integrations.kdiffusion import sampler_function
from twosides.oracle import GaussianMixture
from twosides.randomness import PerSample
from twosides.sampling.grids import Given
from twosides.sampling.named import sampler_named
from twosides.sampling.presets import samplers
from twosides.sampling.sample import sample
from twosides.schedules import EDM, FlowMatching, Level

FLOAT64 = torch.float64
MIXTURE = GaussianMixture(
    [0.4, 0.6], [[-1.0, 0.3], [0.8, -0.5]], [[[0.3, 0], [0, 0.2]], [[0.2, 0.1], [0.1, 0.4]]]
)
SIGMAS = torch.tensor([14.6, 7.0, 3.0, 1.2, 0.5, 0.25, 0.1, 0.03, 0.0], dtype=FLOAT64)
DETERMINISTIC = [name for name, preset in samplers.items() if not preset.stochastic]
STOCHASTIC = [name for name, preset in samplers.items() if preset.stochastic]
# These refer to the schedule's time or its first level, which are others on either path.
TIMED = {"pf-euler", "euler-maruyama", "deis-tab", "sa-solver", "edm"}


def ve(x, sigma, data=MIXTURE):
    """The exact denoiser of x + sigma n."""
    return data(x, Level(-2 * sigma.log(), torch.ones_like(sigma), sigma)).x


def flow(x, sigma, data=MIXTURE):
    """The exact denoiser of (1 - sigma) x + sigma n."""
    return data(x, Level(2 * (torch.log1p(-sigma) - sigma.log()), 1 - sigma, sigma)).x


def noise(count=5, seed=3, dtype=FLOAT64):
    return PerSample(seed, range(count)).normal((2,), dtype)


def on(sigmas, name, schedule):
    """The preset on these levels, as `sample` takes it."""
    made = sampler_named(name)
    logsnr = -2 * sigmas.log()
    if isinstance(schedule, FlowMatching):
        logsnr = logsnr + 2 * torch.log1p(-sigmas)
    return replace(made, grid=Given(tuple(logsnr.tolist())))


# ---------------------------------------------------------------------------- the same samples


@pytest.mark.parametrize("name", [*samplers, "kab2(0.5, 3)", "churn(0.6)", "edm(5)"])
def test_a_run_is_that_of_sample(name):
    """Plans and the callable agree, noise included, on levels that may be anyone's."""
    schedule, steps = EDM(0.0, float(SIGMAS[0]), 1.0), len(SIGMAS) - 1
    wanted = sample(
        MIXTURE, (5, 2), sampler=on(SIGMAS, name, schedule), schedule=schedule, steps=steps,
        seed=3, dtype=FLOAT64,
    )  # fmt: skip
    start = noise() * math.hypot(1, SIGMAS[0])
    got = sampler_function(name, seed=3)(ve, start, SIGMAS)
    assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", samplers)
def test_a_flow_run_is_that_of_sample(name):
    sigmas = torch.linspace(1, 0, 9, dtype=FLOAT64)
    if name in ("pf-euler", "euler-maruyama"):  # infinite rates at zero SNR
        sigmas = sigmas.clamp(max=0.97)
    schedule = FlowMatching()
    made = on(sigmas, name, schedule)
    wanted = sample(
        MIXTURE, (5, 2), sampler=made, schedule=schedule, steps=8, seed=3, dtype=FLOAT64
    )
    start = noise() * math.hypot(1 - sigmas[0], sigmas[0])
    got = sampler_function(name, path="flow", seed=3)(flow, start, sigmas)
    assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in samplers if name not in TIMED])
@pytest.mark.parametrize("end", [None, -1], ids=["to the data", "to a noisy end"])
def test_the_flow_path_is_the_ve_path_rescaled(name, end):
    sigmas = SIGMAS[:end]
    start = noise() * sigmas[0]
    wanted = sampler_function(name, seed=1, path="ve")(ve, start, sigmas)
    scale = 1 + sigmas
    got = sampler_function(name, seed=1, path="flow")(flow, start / scale[0], sigmas / scale)
    assert torch.allclose(got * scale[-1], wanted, rtol=1e-11, atol=1e-11)


def test_a_published_form_has_a_name():
    start = noise() * SIGMAS[0]
    names = ("dpmpp-3m", "dpmpp-3m-published")
    ours, theirs = (sampler_function(name)(ve, start, SIGMAS) for name in names)
    made = sampler_function(samplers["dpmpp-3m"].published)(ve, start, SIGMAS)
    assert torch.equal(theirs, made) and not torch.allclose(ours, theirs, atol=1e-6)


# ---------------------------------------------------------------------------- published formulas


def k_euler(model, x, sigmas, draw):
    for here, there in pairwise(sigmas):
        x = x + (there - here) * (x - model(x, here.expand(len(x)))) / here
    return x


def k_heun(model, x, sigmas, draw):
    for here, there in pairwise(sigmas):
        slope = (x - model(x, here.expand(len(x)))) / here
        ahead = x + (there - here) * slope
        if there > 0:
            slope = 0.5 * (slope + (ahead - model(ahead, there.expand(len(x)))) / there)
        x = x + (there - here) * slope
    return x


def k_euler_ancestral(model, x, sigmas, draw):
    for here, there in pairwise(sigmas):
        up = there * (1 - (there / here) ** 2).sqrt()
        down = (there**2 - up**2).clamp(min=0).sqrt()
        x = x + (down - here) * (x - model(x, here.expand(len(x)))) / here
        x = x + up * draw(here, there) if there > 0 else x
    return x


def k_dpmpp_2m(model, x, sigmas, draw):
    old, before = None, None
    for here, there in pairwise(sigmas):
        denoised, h = model(x, here.expand(len(x))), (here / there).log()
        blend = denoised
        if old is not None and there > 0:
            half = 0.5 * h / (before / here).log()
            blend = (1 + half) * denoised - half * old
        x = there / here * x - (-h).expm1() * blend
        old, before = denoised, here
    return x


def k_dpmpp_3m_sde(model, x, sigmas, draw):
    """Newton's polynomial through three calls, but with half of its quadratic term."""
    calls = []  # latest first: -log sigma and the data
    for here, there in pairwise(sigmas):
        calls.insert(0, (-here.log(), model(x, here.expand(len(x)))))
        (place, data), h = calls[0], (here / there).log()
        if there == 0:
            x = data
            continue
        phi_2 = 1 + (-2 * h).expm1() / (2 * h)
        phi_3 = phi_2 / (2 * h) - 0.5
        x = (-2 * h).exp() * x - (-2 * h).expm1() * data
        if len(calls) > 1:
            (last, before) = calls[1]
            slope = (data - before) / (place - last)
            if len(calls) > 2:
                (first, oldest) = calls[2]
                bend = (slope - (before - oldest) / (last - first)) / (place - first)
                x = x - phi_3 * h**2 * bend
                slope = slope + (place - last) * bend
            x = x + phi_2 * h * slope
        x = x + there * (-(-2 * h).expm1()).sqrt() * draw(here, there)
    return x


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("edm-euler", k_euler),
        ("pf-euler", k_euler),
        ("heun", k_heun),
        ("euler-a", k_euler_ancestral),
        ("dpmpp-2m", k_dpmpp_2m),
        ("dpmpp-3m-sde", k_dpmpp_3m_sde),
    ],
)
@pytest.mark.parametrize("part", [slice(None), slice(2, 7)], ids=["whole", "middle"])
def test_formulas_of_k_diffusion(name, reference, part):
    sigmas = SIGMAS[part]

    def draw(here, there):
        return noise(seed=round(1000 * float(here)))

    start = noise() + 0.7
    got = sampler_function(published(name))(ve, start, sigmas, noise_sampler=draw)
    assert torch.allclose(got, reference(ve, start, sigmas, draw), rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------- the exact end


def exact(x, start, end, mean=0.4, std=0.5):
    """The probability-flow ODE of N(mean, std^2), in closed form."""
    return mean + (x - mean) * math.sqrt((std**2 + end**2) / (std**2 + start**2))


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize(("first", "last"), [(5.0, 0.2), (1.0, 0.2)], ids=["noise", "image"])
def test_deterministic_presets_reach_the_end_of_the_ode(name, first, last):
    """From the state as it is given, at any level."""
    data = GaussianMixture.gaussian([0.4, 0.4], 0.25 * torch.eye(2))
    start = torch.tensor([[1.0, -2.0], [0.3, 4.0]], dtype=FLOAT64)

    def error(steps):
        sigmas = torch.logspace(math.log10(first), math.log10(last), steps + 1, dtype=FLOAT64)
        got = sampler_function(name)(lambda x, sigma: ve(x, sigma, data), start, sigmas)
        return float((got - exact(start, first, last)).abs().max())

    coarse, fine = error(16), error(64)
    limit, gain = (0.01, 3) if samplers[name].order == 1 else (2e-4, 5)
    assert fine < limit and fine < coarse / gain


@pytest.mark.parametrize("name", ["ddim", "heun", "rk4", "dpmpp-2s"])
@pytest.mark.parametrize("path", ["ve", "flow"])
def test_two_parts_of_a_run_are_the_run(name, path):
    """The second starts from the state that the first left, with no noise of its own."""
    model, sigmas = (ve, SIGMAS) if path == "ve" else (flow, SIGMAS / (1 + SIGMAS))
    function = sampler_function(name, path=path)
    start = noise() * sigmas[0]
    half = function(model, start, sigmas[:5])
    whole = function(model, start, sigmas)
    assert torch.allclose(function(model, half, sigmas[4:]), whole, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------- what callers see


def visits(name, sigmas=SIGMAS, **options):
    seen, asked = [], []

    def model(x, sigma):
        asked.append((x, sigma))
        return ve(x, sigma)

    function = sampler_function(name, seed=0)
    function(model, noise() * sigmas[0], sigmas, callback=seen.append, **options)
    return seen, asked


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m-sde", "heun", "dpm-3", "edm", "restart"])
def test_callbacks_see_each_call(name):
    seen, asked = visits(name)
    assert len(seen) == len(asked) >= 8
    for told, (x, sigma) in zip(seen, asked, strict=True):
        assert set(told) == {"x", "i", "sigma", "sigma_hat", "denoised"}
        assert torch.equal(told["x"], x) and torch.equal(told["denoised"], ve(x, sigma))
        assert torch.equal(told["sigma"], SIGMAS[told["i"]])
        assert sigma.shape == (5,) and torch.equal(sigma, told["sigma_hat"].expand(5))


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("ddim", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("heun", [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7]),
        # Back from 0.1, the level nearest to 0.06, to 0.3; twice, each time in two steps, which
        # belong to the caller's step that leads to 0.1.
        ("restart", [0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 6, 7]),
    ],
)
def test_callbacks_count_the_callers_steps(name, steps):
    counted = [told["i"] for told in visits(name)[0]]
    if name == "restart":  # two calls per step
        counted = counted[::2]
    assert counted == steps


def test_churn_is_seen_in_sigma_hat():
    seen, _ = visits("edm")
    churned = [told["sigma_hat"] > told["sigma"] * 1.05 for told in seen[2:14:2]]
    assert all(churned)


def test_the_model_is_told_the_callers_own_levels():
    """In float32 to the bit, on either path: ComfyUI looks levels up by equality."""
    for path, sigmas in (("ve", SIGMAS.float()), ("flow", torch.linspace(1, 0, 1001)[:-1])):
        told = []

        def model(x, sigma, told=told):
            told.append(sigma)
            return 0 * x

        sampler_function("ddim", path=path)(model, noise(1, dtype=torch.float32), sigmas)
        assert torch.equal(torch.cat(told), sigmas[:-1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", samplers)
def test_the_state_keeps_its_dtype(name, dtype):
    """And the noise level float32 at least."""

    def model(x, sigma):
        assert x.dtype == dtype and sigma.dtype == torch.float32
        return 0.5 * x.float()

    got = sampler_function(name, seed=0)(model, noise().to(dtype), SIGMAS.float()[2:])
    assert got.dtype == dtype and bool(got.isfinite().all())


def test_extra_args_reach_the_model():
    def model(x, sigma, cond, scale=1.0):
        return scale * cond + 0 * x

    cond = noise()
    extra = {"cond": cond, "scale": 2.0}
    got = sampler_function("dpmpp-2m")(model, noise(seed=9), SIGMAS, extra_args=extra)
    assert torch.allclose(got, 2 * cond, atol=1e-12)
    assert extra == {"cond": cond, "scale": 2.0}


# ---------------------------------------------------------------------------- noise


@pytest.mark.parametrize("name", ["euler-a", "dpmpp-2m-sde", "dpmpp-2s-a", "er-sde", "edm"])
def test_a_noise_sampler_is_asked_for_the_callers_steps(name):
    asked = []

    def draw(here, there):
        asked.append((float(here), float(there)))
        return torch.zeros(5, 2, dtype=FLOAT64)

    start = noise() * SIGMAS[0]
    got = sampler_function(name, seed=0)(ve, start, SIGMAS, noise_sampler=draw)
    steps = [(float(a), float(b)) for a, b in pairwise(SIGMAS)]
    # After the move, which has none at the data; EDM's before the call, between 14.6 and 0.05.
    expected = steps[1:-1] if name == "edm" else steps[:-1]
    assert torch.tensor(asked) == pytest.approx(torch.tensor(expected), rel=1e-12)
    assert not torch.allclose(got, sampler_function(name, seed=0)(ve, start, SIGMAS), atol=1e-3)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_depends_on_seed_and_sample_only(name):
    start = noise() * SIGMAS[0]
    function = sampler_function(name, seed=7)
    whole = function(ve, start, SIGMAS)
    assert torch.equal(whole, function(ve, start, SIGMAS))
    assert torch.allclose(whole[:2], function(ve, start[:2], SIGMAS), rtol=1e-12, atol=1e-12)
    other = sampler_function(name, seed=8)(ve, start, SIGMAS)
    assert float((whole - other).abs().max()) > 1e-3


def test_without_a_seed_noise_is_torchs():
    start = noise() * SIGMAS[0]
    with torch.random.fork_rng():
        results = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            results.append(sampler_function("euler-a")(ve, start, SIGMAS))
    assert torch.equal(*results[:2]) and not torch.allclose(*results[1:], atol=1e-3)


@pytest.mark.parametrize("name", ["ddpm", "dpmpp-2m-sde", "churn"])
def test_noisy_presets_have_the_datas_moments(name):
    """Mean and covariance of a Gaussian, from 3000 samples of 200 steps."""
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=FLOAT64)
    data = GaussianMixture.gaussian([0.4, -0.3], covariance)
    sigmas = torch.cat([torch.logspace(1.5, -2, 200, dtype=FLOAT64), torch.zeros(1)])
    start = noise(3000) * sigmas[0]
    got = sampler_function(name, seed=0)(lambda x, sigma: ve(x, sigma, data), start, sigmas)
    assert torch.allclose(got.mean(0), data.mean, atol=0.05)
    assert torch.allclose(got.T.cov(), covariance, atol=0.05)


# ---------------------------------------------------------------------------- ComfyUI's models


class CONST:
    pass


class Sampling(CONST):
    """ComfyUI makes such a class for each model."""

    noise_scale = 1.0


class Wrapper:
    """What a sampler gets: a wrapped model, somewhere in which noise levels are described."""

    def __init__(self, call, **attributes):
        self.call = call
        self.__dict__.update(attributes)

    def __call__(self, x, sigma):
        return self.call(x, sigma)


def test_the_path_is_read_off_comfyuis_models():
    sigmas = SIGMAS / (1 + SIGMAS)
    start = noise() * sigmas[0]
    wanted = sampler_function("dpmpp-2m", path="flow")(flow, start, sigmas)
    inner = Wrapper(None, inner_model=Wrapper(None, model_sampling=Sampling()))
    function = sampler_function("dpmpp-2m")
    assert torch.equal(function(Wrapper(flow, inner_model=inner), start, sigmas), wanted)
    plain = Wrapper(ve, inner_model=Wrapper(None, model_sampling=object()))
    assert torch.equal(function(plain, start, SIGMAS), function(ve, start, SIGMAS))


def test_flow_models_with_scaled_noise_get_scaled_noise():
    """z = (1 - sigma) x + sigma 2 n is x + r n, rescaled, with r = 2 sigma / (1 - sigma)."""
    sampling = Sampling()
    sampling.noise_scale = 2.0
    sigmas = SIGMAS / (2 + SIGMAS)

    def denoise(x, sigma):
        return ve(x / (1 - sigma[:, None]), 2 * sigma / (1 - sigma))

    start = noise() * SIGMAS[0]
    wanted = sampler_function("ddpm", seed=1)(ve, start, SIGMAS)
    model = Wrapper(denoise, model_sampling=sampling)
    got = sampler_function("ddpm", seed=1)(model, start * (1 - sigmas[0]), sigmas)
    assert torch.allclose(got, wanted, rtol=1e-11, atol=1e-11)


# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("sigmas", "path", "message"),
    [
        ([[1.0, 0.0]], "ve", "1-D tensor"),
        ([1.0, 0.5, 0.7, 0.0], "ve", "must fall.*0.5 is followed by 0.7"),
        ([0.1, 0.7, 0.5, 1.0], "ve", "must fall.*0.5 is followed by 0.7"),
        ([0.0, 0.5, 1.0], "ve", "rising sigmas begin at 0.*FlipSigmas"),
        ([1.0, math.nan, 0.0], "ve", r"sigmas\[1\] is nan"),
        ([math.inf, 1.0, 0.0], "ve", r"sigmas\[0\] is inf"),
        ([1.0, -0.1], "ve", r"sigmas\[1\] is -0.1.*finite and >= 0"),
        ([14.6, 1.0, 0.0], "flow", r"sigmas\[0\] is 14.6.*\[0, 1\].*path"),
        ([0.1, 0.0], "restart", "raise low"),
    ],
)
def test_levels_that_are_refused(sigmas, path, message):
    name, path = ("restart", "ve") if path == "restart" else ("ddim", path)
    with pytest.raises(ValueError, match=message):
        sampler_function(name, path=path)(ve, noise(), torch.tensor(sigmas, dtype=FLOAT64))


@pytest.mark.parametrize("sigmas", [[], [0.7], [0.7, 0.7]])
def test_split_sigmas_at_an_end_changes_nothing(sigmas):
    x = noise()
    assert sampler_function("heun")(ve, x, torch.tensor(sigmas, dtype=FLOAT64)) is x


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "heun", "dpmpp-2m-sde"])
def test_repeated_levels_are_visited_once(name):
    """Callbacks still count the caller's levels."""
    repeated, seen = SIGMAS.repeat_interleave(2), []
    function = sampler_function(name, seed=0)
    got = function(ve, noise() * SIGMAS[0], repeated, callback=seen.append)
    assert torch.equal(got, function(ve, noise() * SIGMAS[0], SIGMAS))
    assert [told["i"] for told in seen][:: samplers[name].nfe_per_step][:3] == [0, 2, 4]
    assert all(repeated[told["i"]] == told["sigma"] for told in seen)


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "heun", "kab2c", "rk4"])
@pytest.mark.parametrize("path", ["ve", "flow"])
def test_flip_sigmas_unsamples(name, path):
    """From data to noise along the ODE, and back: the same data, as exactly as many steps allow."""
    model, sigmas = (ve, SIGMAS) if path == "ve" else (flow, SIGMAS / (1 + SIGMAS))
    dense = torch.cat([sigmas[:-1], sigmas.new_tensor([1e-4])])
    dense = torch.logspace(
        math.log10(float(dense[0])), math.log10(float(dense[-1])), 81, dtype=FLOAT64
    )
    function, seen = sampler_function(name, path=path), []
    data = noise(seed=3)
    encoded = function(model, data, dense.flip(0), callback=seen.append)
    assert next(float(told["sigma"]) for told in seen) == float(dense[-1])
    back = function(model, encoded, dense)
    assert not torch.allclose(encoded, data, atol=0.1)
    assert float((back - data).norm() / data.norm()) < (0.15 if name == "ddim" else 0.01)
    with pytest.raises(ValueError, match="only samplers without noise"):
        sampler_function("ddpm", path=path)(model, data, dense.flip(0))


def test_brownian_noise_is_that_of_sample():
    """And refines itself: twice the steps follow the same path, more or less of it held."""
    from twosides.sampling.grids import Given
    from twosides.sampling.noise import Eta
    from twosides.sampling.sampler import Sampler

    made = Sampler(Given((0.0,)), stochasticity=Eta(1.0))
    function = sampler_function(made, seed=3, noise="brownian")
    fine = torch.logspace(1, -1, 65, dtype=FLOAT64)
    fixed = torch.full((5, 2), 0.3, dtype=FLOAT64)

    def held(x, sigma):
        return fixed

    ends = [function(held, noise() * 10, levels) for levels in (fine, fine[::2], fine[::4])]
    assert torch.allclose(ends[0], ends[1], atol=1e-9) and torch.allclose(
        ends[1], ends[2], atol=1e-9
    )
    plain = sampler_function(made, seed=3)
    assert not torch.allclose(plain(held, noise() * 10, fine), plain(held, noise() * 10, fine[::2]))
    with pytest.raises(ValueError, match="unknown noise"):
        sampler_function("ddpm", noise="brown")


def test_arguments_that_are_refused():
    with pytest.raises(ValueError, match=r"unknown sampler 'dpmp-2m'; did you mean 'dpmpp-2m'"):
        sampler_function("dpmp-2m")
    with pytest.raises(ValueError, match="unknown path 'flw'; did you mean 'flow'"):
        sampler_function("ddim", path="flw")
    with pytest.raises(ValueError, match="as it was published"):
        sampler_function("ddim-published")
    function = sampler_function("ddim")
    with pytest.raises(TypeError, match="eta"):
        function(ve, noise(), SIGMAS, eta=1.0)
    with pytest.raises(ValueError, match="floats of shape"):
        function(ve, torch.ones(2, 2, dtype=torch.int64), SIGMAS)
    with pytest.raises(ValueError, match="floats of shape"):
        function(ve, torch.tensor(1.0), SIGMAS)
    with pytest.raises(ValueError, match=r"answered \(5, 1\) to x of shape \(5, 2\)"):
        function(lambda x, sigma: x[:, :1], noise(), SIGMAS)
    with pytest.raises(ValueError, match="1-D tensor of floats"):
        function(ve, noise(), torch.tensor([2, 1, 0]))
