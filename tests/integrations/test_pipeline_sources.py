"""What pipelines ask of their scheduler, read from their source: supported, or refused by name."""

import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from test_scheduler import normal

from twosides.integrations.diffusers import Scheduler
from twosides.integrations.diffusers.demands import demands, find_missing

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
pytestmark = pytest.mark.filterwarnings("ignore")

REFUSED = {
    "StableDiffusionLatentUpscale": "preconditions latents x",
    "CosmosTextToWorld": "preconditions latents x",
    "CosmosVideoToWorld": "_get_conditioning_c_in",
    "Cosmos2TextToImage": "latents x . sigma n; it sets sigmas",
    "LTXCondition": "per_token_timesteps to step",
    "SanaWM": "per_token_timesteps to step",
    "RePaint": "it uses undo_step",
    "ScoreSdeVe": "it uses set_sigmas; it uses step_correct; it uses step_pred",
}
TAKEN = ["StableDiffusion", "StableDiffusionXLImg2Img", "Flux", "Wan", "UnCLIP", "DanceDiffusion"]
TAKEN += ["LatentConsistencyModel", "PixArtAlpha", "StableAudio", "TextToVideoZero", "Lumina2"]


def pipe(name):
    """A pipeline that has a scheduler and nothing else, for its class is all that is looked at."""
    kind = getattr(diffusers, f"{name}Pipeline")
    made = object.__new__(type("Bare", (kind,), {"__module__": "elsewhere"}))
    made.__dict__["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler()
    return made


@pytest.mark.parametrize("name", REFUSED)
def test_pr_1321_and_others_are_refused_before_they_run(name):
    """The latent upscaler's arithmetic gave N(.417, .228^2) for N(.285, .476^2), silently."""
    with pytest.raises(ValueError, match=f"needs the scheduler.*{REFUSED[name]}"):
        Scheduler.from_pipeline(pipe(name))


@pytest.mark.parametrize("name", TAKEN)
def test_others_are_taken(name):
    made = Scheduler.from_pipeline(pipe(name))
    assert made.config["gives_data"] == (name in ("LatentConsistencyModel", "PixArtAlpha"))


def test_what_is_found_in_a_source():
    asked = demands(diffusers.CosmosTextToWorldPipeline)
    assert asked.sets >= {"_step_index"} and "step(pred_original_sample)" in asked.says
    assert asked.takes_data and "scale_model_input" in asked.reads
    assert not find_missing(diffusers.StableDiffusion3Pipeline, Scheduler)
    assert not find_missing(SimpleNamespace, Scheduler)


def test_dance_diffusion_hands_out_timesteps_of_its_own_dtype():
    scheduler = Scheduler("unipc", origin="IPNDMScheduler")
    plain = Scheduler("unipc", origin="IPNDMScheduler")
    ends = []
    for one in (scheduler, plain):
        one.set_timesteps(5)
        if one is scheduler:
            one.timesteps = one.timesteps.to(torch.float16)
        z = normal(2, 3)
        for t in one.timesteps:
            z = one.step(0.1 * z, t, z).prev_sample
        ends.append(z)
    assert torch.equal(*ends)
    with pytest.raises(ValueError, match="laid out by set_timesteps"):
        scheduler.timesteps = torch.ones(3)
