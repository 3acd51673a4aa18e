"""The command that finds the best sampler for a model: `twosides tune`."""

from __future__ import annotations

from pathlib import Path

import tyro

from twosides.display.terminal import say

Positional = tyro.conf.Positional


MOST_PROMPTS = 1 << 20  # bytes of the file of prompts that are read


def tune(
    model: Positional[Path],
    /,
    *,
    steps: tuple[int, ...] = (8,),
    out: Path | None = None,
    n: int = 16,
    budget: str = "normal",
    guidance: float = 1.0,
    labels: str | None = None,
    prompts: Path | None = None,
    size: int | None = None,
    seed: int = 0,
    batch: int = 64,
    check: Path | None = None,
    trust_code: bool = False,
) -> None:
    """Find the best sampler for a model and a number of network calls, and prove it.

    It is fitted to where many calls lead from the same noise, by forward passes only, and compared
    with the best of all presets on other noise; where it is not proven to be better, the preset is
    what is written. The files OUT/8.json are names of samplers everywhere: `twosides sample MODEL
    --sampler OUT/8.json --steps 8`, in diffusers pipelines, in ComfyUI.

    Args:
        model: a model's or a run's folder, or a pipeline's (only safetensors are read).
        steps: numbers of network calls: 4 6 8.
        out: the folder for the samplers, report.html, and the teacher's runs, from which the same
            command goes on if it was interrupted; by default MODEL-tuned, beside the
            model's, in which the sampler "auto" finds them.
        n: noises to fit.
        budget: fast (about 10,000 network evaluations), normal (100,000), thorough (1,000,000), or
            their number; under guidance a pair counts as one. Many steps or noises may need more.
        guidance: classifier-free guidance scale that it will be used with, 1 for none.
        labels: classes to fit on, by default all in turn; of a pipeline 207,360.
        prompts: a file of texts, one a line, for what reads text.
        size: of a pipeline's pictures, in pixels, by default the network's own.
        seed: of the noises, which are others than those of samples.
        batch: samples per network call.
        check: instead, prove this tuned file anew for the model, its guidance and prompts.
        trust_code: import the network's class from outside diffusers and twosides.
    """
    from twosides.generation.automatic import tuned_folder
    from twosides.reports.tuning import write_page
    from twosides.sampling.named import sampler_named
    from twosides.storage.reading import read_file
    from twosides.tuning.sources import Wish, source_of
    from twosides.tuning.tune import check as checked
    from twosides.tuning.tune import tune as tuned

    texts = read_file(prompts, MOST_PROMPTS).decode("utf-8").split("\n") if prompts else ()
    wish = Wish(n, guidance, labels, tuple(text for text in texts if text.strip()), size)
    source = source_of(model, wish, trust_code=trust_code)
    shape, options = (n, *source.shape), {"seed": seed, "batch": batch, "progress": True}
    if check is not None:
        options["seed"] = seed + 1
        sampler = sampler_named(str(check))
        report = checked(sampler, source.denoiser, shape, **options, **source.conditioning)
        say(f"{check}: {'still proven' if report.accepted else 'not proven'}\n{report}")
        return
    found, out = [], out or tuned_folder(model)
    for calls in steps:
        result = tuned(
            source.denoiser,
            shape,
            steps=calls,
            budget=int(budget) if budget.isdigit() else budget,
            cache=out / "teacher",
            **options,
            **source.conditioning,
        )
        out.mkdir(parents=True, exist_ok=True)
        result.save(out / f"{calls}.json")
        say(f"{out / f'{calls}.json'}: {result.report}")
        found.append(result)
        write_page(out / "report.html", model.name, found, source.decode)
    say(f"{out / 'report.html'}: the same noise before and after")
