"""Configs of diffusers' scheduler classes: what their words mean, and what becomes of them here."""

import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from test_scheduler import SD, network, normal, ours

from twosides.integrations.diffusers import Scheduler
from twosides.integrations.diffusers.notation import ORIGINS, REFUSED

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import scheduler_words

diffusers.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", ORIGINS)
def test_every_word_that_moves_timesteps(name):
    """The table of docs/schedulers.md at few steps: every difference has its reason."""
    rows = scheduler_words.everything([name], (1, 2, 10))
    assert rows
    for row in filter(scheduler_words.differs, rows):
        assert scheduler_words.reason(row), row


def test_every_class_is_read_or_refused_by_name():
    made = {name for name in dir(diffusers) if name.endswith("Scheduler")}
    base = {"KarrasDiffusionSchedulers", "FlaxScheduler"}
    named = {*ORIGINS, *REFUSED}
    deprecated = {name for name in made if "Flax" in name or name.startswith("Deprecated")}
    assert made - named - base - deprecated <= set()
    for name in REFUSED:
        with pytest.raises(ValueError, match=f"{name} is not a scheduler that can be read"):
            Scheduler.from_config({"_class_name": name})


@pytest.mark.parametrize("kind", ["LCM", "TCD"])
def test_sd_cpp_983_and_5815_consistency_models_begin_at_the_top(kind):
    """4 steps gave 750, 500, 250, 0, and 1 step timestep 0, so that the noise came back."""
    scheduler = ours(getattr(diffusers, f"{kind}Scheduler")(), "lcm", seed=0, gives_data=True)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 759, 499, 259]
    scheduler.set_timesteps(4, original_inference_steps=100)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    scheduler.set_timesteps(2, strength=0.5)
    assert scheduler.timesteps.tolist() == [499, 259]
    scheduler.set_timesteps(1)
    z = normal(2, 3)
    state, x = scheduler.step(network(z, z), scheduler.timesteps[0], z, return_dict=False)
    assert scheduler.timesteps.tolist() == [999] and torch.allclose(state, x)
    scheduler.set_timesteps(2)  # their pipelines take the data of every step
    assert len(scheduler.step(z, scheduler.timesteps[0], z, return_dict=False)) == 2
    with pytest.raises(ValueError, match="more than the 50 levels"):
        scheduler.set_timesteps(51)


def test_8716_stable_audio_is_told_the_angle():
    """`atan(sigma) 2 / pi`, not `log(sigma) / 4`; latents and answers as in EDM."""
    native = scheduler_words.load("CosineDPMSolverMultistepScheduler")()
    scheduler = ours(native, "ddim")
    for one in (native, scheduler):
        one.set_timesteps(5)
    expected = [0.9987, 0.9919, 0.9481, 0.6939, 0.1855]
    assert np.allclose(scheduler.timesteps, expected, atol=1e-4)
    z, answer = native.init_noise_sigma * normal(2, 3), normal(2, 3, seed=1)
    x = native.precondition_outputs(z, answer, native.sigmas[0])
    told = scheduler.step(answer, scheduler.timesteps[0], z / (1 + 500**2) ** 0.5)
    assert torch.allclose(told.pred_original_sample, x, rtol=1e-3, atol=1e-3)


def test_ipndm_and_minimax_h3_reach_what_their_own_classes_do():
    z = normal(2, 3)
    for native, sampler, steps in (
        (diffusers.IPNDMScheduler(), "ipndm", 1000),
        (diffusers.MiniMaxH3Scheduler(), "flow-euler", 6),
    ):
        ends = []
        for scheduler in (native, ours(native, sampler)):
            scheduler.set_timesteps(steps)
            state = z
            for t in scheduler.timesteps:
                answer = torch.tanh(0.7 * state + t)
                state = scheduler.step(answer, t, state, return_dict=False)[0]
            ends.append(state)
        assert torch.allclose(*ends, rtol=2e-3, atol=2e-3)


def test_unclip_steps_as_its_class_does():
    native = diffusers.UnCLIPScheduler(clip_sample=False)
    scheduler, z, ends = ours(native, "ddpm"), normal(2, 3), []
    for one in (native, scheduler):
        one.set_timesteps(5)
        generator, state = torch.Generator().manual_seed(0), z
        for t, after in zip(one.timesteps, [*one.timesteps[1:], None], strict=True):
            extra = {"prev_timestep": after, "generator": generator}
            state = one.step(0.1 * state, int(t), state, **extra).prev_sample
        ends.append(state)
    assert torch.allclose(*ends, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["DPMSolverMultistep", "UniPCMultistep", "DEISMultistep"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_as_many_steps_as_training_timesteps(kind, spacing):
    """ "must fall strictly" was said of timesteps that nobody gave."""
    native = getattr(diffusers, f"{kind}Scheduler")(timestep_spacing=spacing)
    scheduler = ours(native)
    scheduler.set_timesteps(1000)
    assert len(scheduler.timesteps) == 1000 and bool((scheduler.timesteps.diff() < 0).all())


def test_singlestep_has_no_spacing():
    scheduler = ours(diffusers.DPMSolverSinglestepScheduler())
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist()[::9] == [999, 100]


@pytest.mark.parametrize("name", ORIGINS)
@pytest.mark.parametrize("saved", [False, True])
def test_to_our_scheduler_and_back_loses_no_word(name, saved, tmp_path):
    """Nor is a class handed None for a word that has a value of its own."""
    kind = scheduler_words.load(name)
    words = {"solver_order": 3, "algorithm_type": "sde-dpmsolver++", "euler_at_final": True}
    taken = scheduler_words.inspect.signature(kind.__init__).parameters
    if kind.__name__.startswith(("UniPC", "DEIS", "Cosine", "SASolver")):
        words.pop("algorithm_type")
    native = kind(**{key: value for key, value in words.items() if key in taken})
    mine = ours(native, "unipc")
    if saved:
        mine.save_config(tmp_path)
        mine = Scheduler.from_pretrained(tmp_path)
    back = kind.from_config(mine.config)
    for word in {*taken} - {"self"}:
        assert back.config[word] == native.config[word], word
    for other in (diffusers.DPMSolverMultistepScheduler, diffusers.EDMEulerScheduler):
        there = other.from_config(mine.config)
        own = {key: value for key, value in other().config.items() if key[0] != "_"}
        assert not [key for key in own if there.config[key] is None and own[key] is not None]
    assert kind.from_config(mine.config).__class__ is kind


def test_numbers_of_steps_of_any_kind():
    for steps in (20, np.int64(20), 20.0, torch.tensor(20)):
        scheduler = Scheduler(**SD)
        scheduler.set_timesteps(steps)
        assert len(scheduler.timesteps) == scheduler.num_inference_steps == 20
    for wrong in (0, 2.5, float("nan"), "4", None, True):
        with pytest.raises(ValueError, match="whole number >= 1"):
            Scheduler(**SD).set_timesteps(wrong)


def test_svd_takes_its_own_timesteps():
    """They are logarithms of sigma, and negative towards the data."""
    words = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
    scheduler = Scheduler(**words, use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0)
    scheduler.set_timesteps(5)
    told = scheduler.timesteps
    scheduler.set_timesteps(timesteps=told)
    assert torch.allclose(scheduler.timesteps, told, atol=1e-6)
