"""Commands on trained models: `twosides convert | export | explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tyro

from twosides.display.terminal import say

Positional = tyro.conf.Positional


def convert(
    model: Positional[Path],
    out: Positional[Path],
    /,
    *,
    output: str = "u",
    schedule: str = "flow-matching",
    time: str = "t",
    trust_code: bool = False,
) -> None:
    """Write the same model in another notation, as a model folder of its own.

    Args:
        model: a model's or a run's folder, or a diffusers pipeline's: of that, its network.
        out: the folder to write.
        output: what the new network predicts: u, v, eps, x, score, velocity, "F(0.5)", -u.
        schedule: flow-matching, cosine, vp-linear, edm, geometric, scaled-linear.
        time: how it is told the level: t, 1000t, 1-t, index, c_noise, logsnr.
        trust_code: import the network's class from outside diffusers and twosides.
    """
    from twosides.conversion import convert as converted
    from twosides.denoiser import Denoiser
    from twosides.generation.notes import load_model, one_sentence
    from twosides.schedules import schedule_named
    from twosides.storage import models

    if out.exists():
        raise ValueError(f"{out} exists; name a new folder for the converted model")
    if models.is_pipeline(model):
        from twosides.integrations.diffusers import load_denoiser

        with one_sentence(f"{model} cannot be read as a pipeline"):
            source: Any = load_denoiser(model)
        about: dict[str, Any] = {}
    else:
        source, about = load_model(model, trust_code=trust_code), models.read_notes(model)
    if getattr(source, "stored_as", "") == "FlowMap":
        raise ValueError(
            f"{model} is a flow map, which any schedule samples as it is; another notation would "
            "not be told where a step goes. Write it for diffusers with twosides export"
        )
    target = schedule_named(schedule)
    statistics = {"data_mean": source.data_mean, "data_std": source.data_std}
    with one_sentence(f"{model} cannot be converted"):
        network = converted(source, output, target, time)
        models.save(Denoiser(network, output, target, time, **statistics), out, **about)
    say(f"{out}: {source.output.name} on {source.schedule} -> {output} on {target}, time {time}")


def export(
    model: Positional[Path],
    out: Positional[Path],
    /,
    *,
    sampler: str | None = None,
    steps: int | None = None,
    trust_code: bool = False,
) -> None:
    """Write a trained model as a diffusers pipeline, for those who load it with diffusers.

    Args:
        model: a model's or a run's folder, over diffusers' UNet2DModel.
        out: the folder to write.
        sampler: run it with this one, by twosides; by default with diffusers' own of that path.
        steps: of a flow map, which is then what the pipeline does in so many steps.
        trust_code: import the network's class from outside diffusers and twosides.
    """
    from twosides.generation.notes import load_model, one_sentence
    from twosides.integrations.diffusers import save_as_pipeline
    from twosides.storage import models

    denoiser, readme = load_model(model, trust_code=trust_code), ""
    with one_sentence(f"{model} cannot be written as a pipeline"):
        if steps is not None or getattr(denoiser, "stored_as", "") == "FlowMap":
            from twosides.distillation.export import exported

            denoiser, readme = exported(denoiser, models.read_notes(model), steps, sampler)
        save_as_pipeline(denoiser, out, sampler, steps=steps, readme=readme)
    say(f"{out}: a diffusers pipeline, DiffusionPipeline.from_pretrained({str(out)!r})")
    if steps is not None:
        say(f"it is to be run in {steps} steps, without guidance: num_inference_steps={steps}")
    if models.read_config(model).get("classes"):
        say("diffusers' own pipeline takes no class labels; load_denoiser of twosides does")


def explain(model: Positional[str], /, *, steps: int = 20, mu: float | None = None) -> None:
    """Say what a diffusers pipeline's network predicts, at which levels, and what traps it is in.

    Args:
        model: a pipeline's folder, or its name on the hub; only its configs are read.
        steps: of its own scheduler.
        mu: logarithm of the shift, where it depends on the resolution; by default the largest.
    """
    from twosides.generation.notes import one_sentence
    from twosides.integrations.diffusers.report import explain as explained

    with one_sentence(f"{model} cannot be read as a pipeline"):
        report = explained(model, steps, mu=mu)
    say(report)
