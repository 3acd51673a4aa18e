"""Where a run of the drop-in scheduler stands: steps that come again, and runs that are cut in two.

Cases that people reported of diffusers' schedulers, whose numbers are those of its issues, and of
onnx-web's; then sweeps over every preset.
"""

import math

import diffusers
import numpy as np
import pytest
import torch
from test_scheduler import MODES, SD, network, normal, ours

from twosides.integrations.diffusers import Scheduler
from twosides.integrations.kdiffusion import sampler_function
from twosides.sampling.presets import samplers

diffusers.logging.set_verbosity_error()
FLOAT64 = torch.float64
HEUN = {"prediction_type": "flow_prediction", "origin": "FlowMatchEulerDiscreteScheduler"}
PLACES = {"flow": MODES["flow"], "vp": SD, "zero-snr": MODES["vp-v"], "edm": MODES["edm"]}
REFUSED = {"pf-euler", "euler-maruyama"}  # at infinite log-SNRs; tested elsewhere


def laid_out(name, steps, **config):
    scheduler = Scheduler(name, seed=0, **config)
    scheduler.set_timesteps(steps)
    return scheduler


def step(scheduler, t, z):
    return scheduler.step(network(z, t), t, z, return_dict=False)[0]


def walk(scheduler, timesteps, z):
    for t in timesteps:
        z = step(scheduler, t, z)
    return z


# ---------------------------------------------------------------------------- steps that come again


@pytest.mark.parametrize("name", ["ddim", "unipc", "kab3c", "heun", "dpmpp-2m"])
@pytest.mark.parametrize("kind", ["element", "number"])
def test_onnx_web_465_tiles_take_the_same_step(name, kind):
    """Three tiles, a step each at one timestep: .99957, .99817, .99377 of the same latents."""
    if (name, kind) == ("heun", "number"):
        pytest.skip("two of its calls at a level follow one another: by numbers they are alike")
    scheduler, alone = (laid_out(name, 6, **SD) for _ in range(2))
    z = other = normal(2, 3)
    for t, told in zip(scheduler.timesteps, alone.timesteps, strict=True):
        t = t if kind == "element" else t.item()
        tiles = [step(scheduler, t, z) for _ in range(3)]
        other = step(alone, told, other)
        assert all(torch.equal(tile, other) for tile in tiles)
        z = tiles[-1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", sorted({*samplers} - REFUSED))
def test_a_repeated_step_is_that_step(name, mode):
    """The sweep: every preset, every step twice, the noise given."""
    if (name, mode) == ("leapfrog", "vp-v"):
        pytest.skip("refused at zero SNR")
    twice, once = (laid_out(name, 4, **MODES[mode]) for _ in range(2))
    z = other = normal(2, 3)
    for t, told in zip(twice.timesteps, once.timesteps, strict=True):
        noise = [normal(2, 3, seed=9)]
        answer = 0.1 * network(z, t)
        again = [twice.step(answer, t, z, variance_noise=noise[0]).prev_sample for _ in range(2)]
        other = once.step(answer, told, other, variance_noise=noise[0]).prev_sample
        assert torch.equal(again[0], again[1]) and torch.equal(again[1], other)
        z = again[1]


@pytest.mark.parametrize("name", ["ddim", "ddpm", "flow-euler", "heun", "rk4"])
def test_1213_time_travel_without_memory_is_exact(name):
    """RePaint goes back: 70 % off, silently. A step that remembers nothing is the same anywhere."""
    scheduler = laid_out(name, 8, **SD)
    order, z = scheduler.order, normal(2, 3)
    t = scheduler.timesteps
    reached = walk(scheduler, t[: 5 * order], z)
    for first in (2, 4, 0, 6):
        fresh = laid_out(name, 8, **SD)
        fresh.set_begin_index(first * order)
        expected = walk(fresh, fresh.timesteps[first * order : (first + 2) * order], reached)
        if name == "ddpm":  # the noise is each one's own
            scheduler._runs.current.own = None
        assert torch.equal(
            walk(scheduler, t[first * order : (first + 2) * order], reached), expected
        )


@pytest.mark.parametrize("name", ["unipc", "kab3c", "dpmpp-3m", "leapfrog"])
@pytest.mark.parametrize("first", [0, 2, 6])
def test_1213_time_travel_with_memory_begins_anew(name, first):
    """What was remembered belongs to another state: earlier, or ahead, it is not used."""
    scheduler, fresh = (laid_out(name, 8, **SD) for _ in range(2))
    reached = walk(scheduler, scheduler.timesteps[:5], normal(2, 3))
    fresh.set_begin_index(first)
    expected = walk(fresh, fresh.timesteps[first:], reached)
    assert torch.equal(walk(scheduler, scheduler.timesteps[first:], reached), expected)


def test_numbers_are_looked_up_and_others_are_the_next():
    """Copies in another dtype, such as bfloat16's, are no elements, and equal some by accident."""
    numbers, cast, plain = (laid_out("unipc", 500, **SD) for _ in range(3))
    z = a = b = c = normal(2, 3)
    for t, u, v in zip(numbers.timesteps, cast.timesteps, plain.timesteps, strict=True):
        answer = network(a, t)
        a = numbers.step(answer, int(t), a).prev_sample
        b = cast.step(answer, u.bfloat16(), b).prev_sample
        c = plain.step(answer, v, c).prev_sample
    assert torch.equal(a, c) and torch.equal(b, c) and not torch.equal(a, z)


def test_the_last_step_may_come_again_and_another_run_after_it():
    scheduler = laid_out("unipc", 5, **SD)
    z, noise = normal(2, 3), normal(2, 3)
    for t in scheduler.timesteps:
        before, z = z, step(scheduler, t, z)
    assert torch.equal(step(scheduler, scheduler.timesteps[-1], before), z)
    assert torch.equal(walk(scheduler, scheduler.timesteps, noise), z)


def test_eta_that_moves_the_calls_is_refused():
    """The pipeline has been told where the network is asked; noise of eta would move that."""
    scheduler = laid_out("dpm-2", 6, **SD)
    with pytest.raises(ValueError, match="at other levels"):
        scheduler.step(normal(2, 3), scheduler.timesteps[0], normal(2, 3), eta=1.0)


def test_brownian_noise_is_that_of_its_place():
    """Wherever a run begins and goes, the noise of a step is the path's."""
    options = {"noise": "brownian", "grid": "uniform-logsnr", **SD}
    scheduler = laid_out("ddpm", 8, **options)
    z, t = normal(2, 3), scheduler.timesteps
    whole = walk(scheduler, t, z)
    assert torch.equal(walk(scheduler, t, z), whole)
    reached = walk(scheduler, t[:4], z)
    assert torch.equal(walk(scheduler, t[4:], reached), whole)
    late = laid_out("ddpm", 8, **options)
    late.set_begin_index(4)
    assert torch.equal(walk(late, late.timesteps[4:], reached), whole)
    with pytest.raises(ValueError, match="the path of a seed"):
        Scheduler("ddpm", noise="brownian")


# ---------------------------------------------------------------------------- calls are not steps


def test_1866_timesteps_of_a_step_begin_at_its_number_times_order():
    """From pure noise a two-call step has one: every later step was misplaced."""
    native = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    native.set_timesteps(sigmas=np.linspace(1, 1e-3, 4))
    scheduler = ours(native, "heun")
    scheduler.set_timesteps(4)
    assert float(scheduler.timesteps[2 * scheduler.order]) == pytest.approx(600.7, abs=0.1)
    begins = scheduler.timesteps[:: scheduler.order]
    assert torch.allclose(begins, native.timesteps, rtol=1e-5)
    scheduler.set_begin_index(3 * scheduler.order)
    z = normal(2, 3)
    t = scheduler.timesteps[3 * scheduler.order]
    assert torch.allclose(step(scheduler, t, z), z - network(z, t) * t / 1000, atol=1e-6)


def test_1866_idle_timesteps_change_nothing():
    """A short step's timesteps are filled up: the answers to them are not used."""
    scheduler = laid_out("heun", 4, **MODES["flow"])
    z = normal(2, 3)
    for number, t in enumerate(scheduler.timesteps):
        spoilt = torch.full_like(z, math.nan) if number == 1 else network(z, t)
        z = scheduler.step(spoilt, t, z, return_dict=False)[0]
    denser = laid_out("heun", 4, **MODES["flow"])
    assert z.isfinite().all() and torch.equal(z, walk(denser, denser.timesteps, normal(2, 3)))


def test_1866_the_last_timestep_is_not_dropped():
    """DDIM of a config that ends at index 0 has its last step there, which changes nothing."""
    for config in (
        diffusers.DDIMScheduler(set_alpha_to_one=False, steps_offset=0, clip_sample=False),
        diffusers.CogVideoXDDIMScheduler(set_alpha_to_one=False, steps_offset=0),
    ):
        scheduler = ours(config)
        for one in (config, scheduler):
            one.set_timesteps(20)
        assert torch.equal(scheduler.timesteps, config.timesteps)
        scheduler.set_begin_index(19)
        z = normal(2, 3)
        output = scheduler.step(network(z, torch.tensor(0.0)), scheduler.timesteps[19], z)
        expected = config.step(network(z, torch.tensor(0.0)), 0, z)
        assert torch.allclose(output.prev_sample, expected.prev_sample, atol=1e-6)
        assert torch.allclose(output.pred_original_sample, expected.pred_original_sample, atol=1e-5)


def test_a_strength_below_one_step_is_a_sentence():
    scheduler = laid_out("heun", 4, **MODES["flow"])
    with pytest.raises(ValueError, match="leaves nothing of this run.*less than one step"):
        scheduler.set_begin_index(4 * scheduler.order)
    empty = scheduler.timesteps[8:]
    with pytest.raises(ValueError, match="no timestep to add noise at"):
        scheduler.add_noise(normal(2, 3), normal(2, 3), empty[:1].repeat(2))


def test_restart_says_where_it_cannot_be_cut():
    """It walks a part of the way again; what comes after is not where its number says."""
    scheduler = laid_out("restart", 20, **SD)
    scheduler.set_begin_index(10)
    with pytest.raises(ValueError, match="goes back to more noise before"):
        scheduler.set_begin_index(19 * scheduler.order)


# ---------------------------------------------------------------------------- runs cut in two

STEPS = 6


def laid_out_or_skipped(name, mode):
    try:
        return laid_out(name, STEPS, **PLACES[mode])
    except ValueError as refused:
        pytest.skip(str(refused))


def driven(scheduler, places, z):
    """Some timesteps of a run, whose noise depends on the timestep only."""
    for place in places:
        t = scheduler.timesteps[place]
        noise = normal(*z.shape, seed=place)
        answer = 0.1 * network(z, t / 1000)
        z = scheduler.step(answer, t, z, variance_noise=noise, return_dict=False)[0]
    return z


def remembers(scheduler):
    """Whether a step needs what was answered before it."""
    layout = scheduler._runs.current.whole.layout
    return not all(layout.fresh[call] for call in layout.starts)


def told_at(scheduler):
    """What the network is told at the start of each step of the grid."""
    notation, nodes = scheduler.notation, scheduler._runs.current.whole.nodes[:-1]
    return notation.clock.read(torch.tensor(nodes, dtype=FLOAT64), notation.schedule).float()


RAISED = {"edm"}  # a step of EDM's churn begins at a raised level, not at the grid's
BEGINS = sorted({*samplers} - REFUSED - {"restart"})


@pytest.mark.parametrize("mode", PLACES)
@pytest.mark.parametrize("name", BEGINS)
def test_every_preset_cut_at_a_step(name, mode):
    """Image to image begins at `timesteps[i * order]`, with i from a strength."""
    whole = laid_out_or_skipped(name, mode)
    order, z = whole.order, normal(2, 3)
    if name not in RAISED:
        told = whole.timesteps[:: whole.order].float()
        assert torch.allclose(told, told_at(whole), atol=2e-3)
    end = driven(whole, range(len(whole.timesteps)), z)
    for strength in (0.3, 0.5, 0.84, 1.0):
        begun = max(STEPS - min(int(STEPS * strength), STEPS), 0)  # as pipelines reckon
        first, second = (laid_out(name, STEPS, **PLACES[mode]) for _ in range(2))
        half = driven(first, range(begun * order), z)
        second.set_begin_index(begun * order)
        got = driven(second, range(begun * order, len(whole.timesteps)), half)
        assert got.isfinite().all()
        if not remembers(whole):
            assert torch.allclose(got, end, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["vp", "zero-snr"])
@pytest.mark.parametrize("name", BEGINS)
def test_every_preset_cut_by_denoising_end_and_start(name, mode):
    """SDXL's base and refiner, which count the timesteps on both sides of a level.

    With schedulers of order 2, the refiner's pipeline goes one timestep back, so that it does not
    begin inside of a step; the base's pipeline has ended there all the same, with any scheduler.
    """
    whole = laid_out_or_skipped(name, mode)
    if whole.order == 2:
        pytest.skip("the two pipelines do not agree on where a run of order 2 is cut")
    told, z = whole.timesteps, normal(2, 3)
    end = driven(whole, range(len(told)), z)
    for share in (0.2, 0.5, 0.8):
        cutoff = round(1000 - share * 1000)
        begun, left = int((told >= cutoff).sum()), int((told < cutoff).sum())
        assert begun + left == len(told)
        first, second = (laid_out(name, STEPS, **PLACES[mode]) for _ in range(2))
        half = driven(first, range(begun), z)
        second.set_begin_index(len(told) - left)
        got = driven(second, range(len(told) - left, len(told)), half)
        assert got.isfinite().all()
        if not remembers(whole) and whole.order == 1:
            assert torch.allclose(got, end, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", ["ve", "flow"])
@pytest.mark.parametrize("name", sorted({*samplers} - {"restart", "langevin"}))
def test_every_preset_cut_by_its_sigmas(name, path):
    """k-diffusion's SplitSigmas; ComfyUI's first and last step are the same, with more sigmas."""
    top = 1.0 if path == "flow" and name not in REFUSED else 0.9
    sigmas = torch.linspace(top, 0, STEPS + 1, dtype=FLOAT64)
    function = sampler_function(name, path=path)
    whole = laid_out(name, STEPS, **MODES["flow"]) if name not in REFUSED else None

    def noise(sigma, sigma_next):
        return normal(2, 3, seed=int(1e4 * sigma_next), dtype=FLOAT64)

    def run(z, levels):
        return function(
            lambda z, s: torch.tanh(z) * (1 - s[:, None] / 3), z, levels, noise_sampler=noise
        )

    z = top * normal(2, 3, dtype=FLOAT64)
    end = run(z, sigmas)
    for cut in (1, 3, 5):
        got = run(run(z, sigmas[: cut + 1]), sigmas[cut:])
        assert got.isfinite().all()
        # EDM states its churn by the number of steps, which is another in each half.
        if name != "edm" and (whole is None or not remembers(whole)):
            assert torch.allclose(got, end, rtol=1e-9, atol=1e-9)
