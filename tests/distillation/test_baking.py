"""Baked flow maps: the unchanged network, in plain diffusers, does what the map does in K steps."""

import itertools
import json

import diffusers
import numpy as np
import pytest
import torch

import twosides as ts
from few_networks import NETWORKS, built, randomised, trained
from twosides.cli.models import export
from twosides.distillation.baking import baked, grid_of
from twosides.distillation.flow_map import FlowMap
from twosides.storage.networks import MLP


def single(value):
    """The conditioning of the first sample."""
    if isinstance(value, dict):
        return {name: single(inner) for name, inner in value.items()}
    if isinstance(value, torch.Tensor):
        return value[:1] if value.shape[0] == 2 else value
    return value[:1] if isinstance(value, list) else value


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_unchanged_network_is_the_map_at_its_steps(name):
    teacher, z, given = built(name)
    flow_map, z, given = trained(FlowMap.from_denoiser(teacher)), z[:1], single(given)
    for steps in (1, 4):
        grid = ts.FlowMatching().logsnr(torch.linspace(1, 0, steps + 1, dtype=torch.float64))
        stock = baked(flow_map, grid, z.shape[1:], **given)
        assert type(stock.network) is type(teacher.network)
        assert stock.state_dict().keys() == teacher.state_dict().keys()
        flow, far = ts.FlowMatching(), 0.0
        levels = [flow.level(logsnr).floats() for logsnr in grid]
        for here, there in itertools.pairwise(levels):
            wanted = flow_map(z, here, there, **given)
            pair = stock(z, here, **given)
            u, right = pair.eps - pair.x, wanted.eps - wanted.x
            assert (u - right).abs().max() <= 1e-5 * right.abs().max(), steps
            at_once = flow_map(z, here, **given)
            far = max(far, float((at_once.eps - at_once.x - right).abs().max() / right.abs().max()))
        assert far > 1e-3, "the second time has an effect that had to be folded in"


def letters(classes=0):
    config = {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1,
        "block_out_channels": (16, 32), "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "norm_num_groups": 8,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomised(diffusers.UNet2DModel(**config, num_class_embeds=classes or None))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_pipeline_of_plain_diffusers_runs_it(tmp_path, steps):
    """Saved, loaded and run by diffusers alone, with its own scheduler."""
    flow_map = trained(FlowMap.from_denoiser(ts.Denoiser(letters(), "u", time="1000t")))
    ts.save(flow_map, tmp_path / "run/model", shape=[1, 8, 8], classes="")
    export(tmp_path / "run", tmp_path / "out", steps=steps)
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(pipe.scheduler) is diffusers.FlowMatchEulerDiscreteScheduler
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(3)
    pictures = pipe(2, generator=noise, num_inference_steps=steps, output_type="np").images
    init = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    wanted = ts.sample(flow_map, (2, 1, 8, 8), steps=steps, init=init)
    shown = (wanted / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(pictures - shown).max() < 1e-5
    assert 0.05 < shown.std(), "the pictures are not all clipped"
    assert f"num_inference_steps={steps}" in (tmp_path / "out/README.md").read_text()
    config = json.loads((tmp_path / "out/unet/config.json").read_text())
    assert config["_class_name"] == "UNet2DModel"


@torch.no_grad()
def test_classes_are_told_to_the_network_as_before(tmp_path):
    flow_map = trained(FlowMap.from_denoiser(ts.Denoiser(letters(3), "u", time="1000t")))
    about = {"shape": [1, 8, 8], "classes": "ab", "distillation": {"calls": 2, "guidance": 1.5}}
    ts.save(flow_map, tmp_path / "run/model", **about)
    with pytest.raises(ValueError, match="distilled for 2 calls, and steps=3"):
        export(tmp_path / "run", tmp_path / "out", steps=3)
    export(tmp_path / "run", tmp_path / "out", steps=2)
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    z, labels = torch.randn(3, 1, 8, 8, generator=torch.Generator()), torch.tensor([0, 1, 2])
    wanted = ts.sample(flow_map, z.shape, steps=2, init=z, class_labels=labels)
    pipe.scheduler.set_timesteps(2)
    for t in pipe.scheduler.timesteps:
        answer = pipe.unet(z, t, class_labels=labels).sample
        z = pipe.scheduler.step(answer, t, z, return_dict=False)[0]
    assert (z - wanted).abs().max() < 1e-5
    assert "which is inside" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(("output", "steps"), [("v", 2), ("eps", 4), ("x", 1)])
@torch.no_grad()
def test_discrete_models_are_run_by_ddim(output, steps, tmp_path):
    schedule = ts.ScaledLinear(zero_terminal_snr=False)
    flow_map = trained(FlowMap.from_denoiser(ts.Denoiser(letters(), output, schedule, "index")))
    ts.save(flow_map, tmp_path / "run/model", shape=[1, 8, 8])
    export(tmp_path / "run", tmp_path / "out", steps=steps)
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(pipe.scheduler) is diffusers.DDIMScheduler
    grid, _ = grid_of(flow_map, steps)
    z = torch.randn(2, 1, 8, 8, generator=torch.Generator())
    sampler = ts.Sampler(grid=ts.grids.Given(tuple(grid.tolist())))
    start = schedule.level(grid[0]).floats()
    unit = (start.alpha**2 + start.sigma**2) ** 0.5
    wanted = ts.sample(flow_map, z.shape, sampler=sampler, steps=steps, init=z / unit)
    pipe.scheduler.set_timesteps(steps)
    for t in pipe.scheduler.timesteps:
        z = pipe.scheduler.step(pipe.unet(z, t).sample, t, z).prev_sample
    assert (z - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))


def test_what_cannot_be_written_is_said(tmp_path):
    with torch.random.fork_rng():
        own = FlowMap.from_denoiser(ts.Denoiser(MLP(width=16)))
    with pytest.raises(TypeError, match="keep this flow map in a twosides folder"):
        baked(own, torch.tensor([0.0, 1.0]), (2,))
    cosine = FlowMap.from_denoiser(ts.Denoiser(letters(), "v", ts.Cosine()))
    with pytest.raises(ValueError, match="no scheduler of 2 steps for v on Cosine"):
        grid_of(cosine, 2)
    discrete = FlowMap.from_denoiser(
        ts.Denoiser(letters(), "v", ts.ScaledLinear(zero_terminal_snr=False), "index")
    )
    with pytest.raises(ValueError, match="makes 62 timesteps of 61, by rounding"):
        grid_of(discrete, 61)
    plain = ts.Denoiser(letters(), "u", time="1000t")
    trained_map = trained(FlowMap.from_denoiser(plain))
    grid = ts.FlowMatching().logsnr(torch.linspace(1, 0, 201, dtype=torch.float64))
    with pytest.raises(ValueError, match="200 steps do not fit into a layer of 64 inputs"):
        baked(trained_map, grid, (1, 8, 8))
    ts.save(plain, tmp_path / "plain", shape=[1, 8, 8])
    with pytest.raises(ValueError, match="no flow map"):
        export(tmp_path / "plain", tmp_path / "out", steps=2)
    ts.save(FlowMap.from_denoiser(plain), tmp_path / "map", shape=[1, 8, 8])
    with pytest.raises(ValueError, match="pass steps=2"):
        export(tmp_path / "map", tmp_path / "out")
