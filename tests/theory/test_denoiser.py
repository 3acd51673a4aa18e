import math

import pytest
import torch

import twosides as ts
from instances import SCHEDULES, outputs
from twosides.clocks import CLOCKS, Index, clock_named
from twosides.conversion import convert
from twosides.denoiser import Denoiser
from twosides.oracle import GaussianMixture
from twosides.outputs import OUTPUTS, F
from twosides.schedules import EDM, Cosine, FlowMatching, ScaledLinear, VPLinear
from twosides.storage.networks import MLP

FLOAT64 = torch.float64
RING = GaussianMixture.ring(6, std=0.3)
TIMES = torch.linspace(0.05, 0.95, 12, dtype=FLOAT64)
PLAIN = {n: s for n, s in SCHEDULES.items() if n in ("flow-matching", "cosine", "vp-linear", "edm", "sd")}  # fmt: skip


def noisy(schedule, t=TIMES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    level = schedule.at(t)
    return level.mix(
        RING.sample(len(t), seed=seed), torch.randn(len(t), 2, generator=generator, dtype=FLOAT64)
    )


@pytest.mark.parametrize("name", PLAIN)
def test_an_exact_network_in_any_notation_is_the_same_denoiser(name):
    """oracle -> network of every output -> Denoiser, asked at levels of another schedule."""
    schedule = PLAIN[name]
    asked = FlowMatching()
    low, high = schedule.logsnr_min, schedule.logsnr_max
    logsnr = asked.logsnr(TIMES).clamp(max(low, -5), min(high, 5))
    level = asked.level(logsnr)
    z = noisy(asked, asked.time(logsnr))
    truth = RING(z, level)
    for output in outputs(schedule).values():
        denoiser = Denoiser(convert(RING, output, schedule), output, schedule)
        estimate = denoiser(z, level)
        assert torch.allclose(estimate.x, truth.x, atol=1e-10), output.name
        assert torch.allclose(estimate.eps, truth.eps, atol=1e-10), output.name


@pytest.mark.parametrize("b", PLAIN)
@pytest.mark.parametrize("a", PLAIN)
def test_round_trips_between_notations(a, b):
    """network -> another notation -> back is the same function, to 1e-12, inside."""
    weight = torch.randn(2, 2, generator=torch.Generator().manual_seed(3), dtype=FLOAT64)

    def network(z, t):
        return torch.tanh(z @ weight) + t[:, None]

    first, second = PLAIN[a], PLAIN[b]
    low = max(first.logsnr_min, second.logsnr_min, -4.0)
    high = min(first.logsnr_max, second.logsnr_max, 4.0)
    t = first.time(torch.linspace(low, high, 12, dtype=FLOAT64))
    z = noisy(first, t)
    for output in (*OUTPUTS.values(), F(0.5)):
        original = Denoiser(network, output, first)
        for other in (*OUTPUTS.values(), F(2.0)):
            there = Denoiser(convert(original, other, second), other, second)
            back = convert(there, output, first)(z, t)
            truth = network(z, t)
            assert float((back - truth).abs().max() / truth.abs().max()) < 1e-12, (output, other)


def test_round_trips_at_both_ends_where_defined():
    def network(z, t):
        return torch.tanh(z) + t[:, None]

    ends = torch.tensor([0.0, 1.0], dtype=FLOAT64)
    z = noisy(FlowMatching(), ends)
    for output, schedule in (("v", Cosine()), ("u", Cosine()), ("F", FlowMatching())):
        original = Denoiser(network, "u", FlowMatching())
        there = Denoiser(convert(original, output, schedule), output, schedule)
        back = convert(there, "u", FlowMatching())(z, ends)
        assert torch.allclose(back, network(z, ends), atol=1e-12)
    with pytest.raises(ValueError, match="zero SNR"):
        eps = Denoiser(convert(original, "eps", Cosine()), "eps", Cosine())
        convert(eps, "u")(z[1:], ends[1:])


@pytest.mark.parametrize("name", CLOCKS)
def test_clocks_read_both_ways(name):
    for schedule in (VPLinear(), EDM(), ScaledLinear()):
        t = torch.linspace(0.01, 0.99, 9, dtype=FLOAT64)
        logsnr = schedule.logsnr(t)
        clock = clock_named(name)
        assert torch.allclose(
            clock.logsnr(clock.read(logsnr, schedule), schedule), logsnr, atol=1e-9
        )


@pytest.mark.parametrize("name", ["t", "1-t", "1000t", "index"])
def test_times_that_float32_rounded_past_an_end_are_that_end(name):
    """Four ulps of float32 at 1 and no more; times inside are read as they are."""
    clock, schedule, ulp = clock_named(name), FlowMatching(), torch.finfo(torch.float32).eps
    unit = float(clock.read(torch.tensor([-math.inf], dtype=FLOAT64), schedule)) or 1.0

    def logsnr(t):
        return float(clock.logsnr(torch.tensor([unit * t], dtype=FLOAT64), schedule))

    assert math.isinf(logsnr(1 + 3.9 * ulp)) and math.isinf(logsnr(-3.9 * ulp))
    for beyond in (1 + 4.1 * ulp, -4.1 * ulp):
        with pytest.raises(ValueError, match="t runs from 0"):
            logsnr(beyond)
    assert math.isfinite(logsnr(1 - 1e-12)) and math.isfinite(logsnr(1e-12))


def test_clock_values():
    logsnr = FlowMatching().logsnr(torch.tensor([0.25], dtype=FLOAT64))
    level = FlowMatching().level(logsnr)
    read = {
        n: float(clock_named(n).read(logsnr, FlowMatching()))
        for n in (*CLOCKS, "1000t", "1000(1-t)")
    }
    c_noise = 0.25 * float((level.sigma / level.alpha).log())
    assert read == pytest.approx(
        {"t": 0.25, "1-t": 0.75, "index": 249.75, "c_noise": c_noise, "logsnr": float(logsnr),
         "1000t": 250, "1000(1-t)": 750}
    )  # fmt: skip
    assert float(Index(1000, nearest=True).read(logsnr, FlowMatching())) == 250
    own = clock_named(lambda level: level.sigma)
    assert float(own.read(logsnr, FlowMatching())) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="cannot be read"):
        own.logsnr(logsnr, FlowMatching())
    with pytest.raises(ValueError, match="did you mean 'logsnr'"):
        clock_named("logsnrs")


def test_levels_outside_the_network_are_refused_unless_clamped():
    schedule = ScaledLinear()
    z = torch.zeros(1, 2, dtype=FLOAT64)
    seen = []

    def network(z, t):
        seen.append(float(t[0]))
        return z

    level = FlowMatching().at(0.99)
    with pytest.raises(ValueError, match=r"covers \[-5.36405"):
        Denoiser(network, "v", schedule, "index")(z, level)
    Denoiser(network, "v", schedule, Index(clamp=True))(z, level)
    assert seen == [999.0]


def test_dtypes_of_network_state_and_time_are_independent():
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.bfloat16))

        def forward(self, z, t, *, flag):
            assert z.dtype == torch.bfloat16 and flag == "kept"
            self.time_dtype = t.dtype
            return z * self.weight

    network = Network()
    denoiser = Denoiser(network, "u", FlowMatching())
    for dtype, time in ((torch.float32, torch.float32), (FLOAT64, torch.float32)):
        x, eps = denoiser(torch.ones(3, 2, dtype=dtype), FlowMatching().at(0.5), flag="kept")
        assert x.dtype == eps.dtype == dtype and network.time_dtype == time


def test_data_statistics_and_sample_objects():
    class Answer:
        def __init__(self, sample):
            self.sample = sample

    denoiser = Denoiser(lambda z, t: Answer(z), data_mean=torch.ones(3, 1, 1), data_std=2.0)
    data = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(denoiser.unstandardise(denoiser.standardise(data)), data, atol=1e-6)
    assert torch.equal(denoiser.standardise(data), (data - 1) / 2)
    assert denoiser(data, FlowMatching().at(0.5)).x.shape == data.shape


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Denoiser(lambda z, t: z, "uu"), ValueError, "unknown output"),
        (lambda: Denoiser(lambda z, t: z, data_std=0.0), ValueError, "data_std"),
        (lambda: Denoiser(lambda z, t: z, schedule=FlowMatching), TypeError, "FlowMatching\\(\\)"),
        (lambda: convert(lambda z, t: z), TypeError, "wrap the network"),
        (
            lambda: Denoiser(lambda z, t: z[:, :1])(torch.zeros(2, 2), FlowMatching().at(0.5)),
            ValueError,
            "answered",
        ),
    ],
)
def test_bad_input_is_named(make, error, words):
    # The type checker of the test run may object first, in its own words.
    with pytest.raises((error, TypeError), match=words if error is ValueError else None):
        make()


def test_quantised_weights_do_not_choose_the_dtype():
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.packed = torch.nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)
            self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float16))

        def forward(self, z, t):
            assert z.dtype == torch.float16 and t.dtype == torch.float32
            return z

    z = torch.full((2, 2), 0.5, dtype=FLOAT64)
    assert float(Denoiser(Network())(z, FlowMatching().at(0.5)).x[0, 0]) != 0


def test_a_float32_network_takes_a_float64_state():
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3, 2))

        def forward(self, z, t):
            return torch.cat([z, t[:, None]], 1) @ self.weight

    assert (
        Denoiser(Network())(torch.ones(2, 2, dtype=FLOAT64), FlowMatching().at(0.5)).x.dtype
        == FLOAT64
    )


@pytest.mark.parametrize("schedule", [EDM(), EDM(0.01, 50), Cosine(-19.84, 10.10)])
@pytest.mark.parametrize("time", ["c_noise", "logsnr", "t", "0.3t"])
def test_converted_networks_reach_their_own_ends_in_float32(schedule, time):
    from twosides.sampling.sample import sample

    inner = Denoiser(lambda z, t: torch.sin(z), "v", schedule)
    outer = Denoiser(convert(inner, "v", schedule, time), "v", schedule, time)
    assert bool(torch.isfinite(sample(outer, (2, 3), steps=5, seed=0)).all())


def test_statistics_keep_their_digits_in_bf16_networks():
    denoiser = Denoiser(torch.nn.Identity(), data_mean=0.1234567).to(torch.bfloat16)
    assert float(denoiser.data_mean) == 0.1234567


def test_a_misspelt_option_is_guessed():
    """It becomes conditioning, which the network refuses under a name that nobody gave it."""
    with torch.random.fork_rng(devices=[]):
        denoiser = Denoiser(MLP())
    for call in (
        lambda: ts.sample(denoiser, (4, 2), stpes=3),
        lambda: ts.encode(denoiser, torch.zeros(4, 2), stpes=3),
    ):
        with pytest.raises(TypeError, match="stpes") as caught:
            call()
        assert "was the option 'steps' meant?" in caught.value.__notes__[0]
