"""Commands that draw samples and measure them: `twosides sample | evaluate | report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

Positional = tyro.conf.Positional


def sample(
    model: Positional[Path],
    /,
    *,
    out: Path = Path("samples.png"),
    sampler: str = "ddim",
    steps: int = 20,
    schedule: str | None = None,
    noise: str | None = None,
    grid: str | None = None,
    compat: str | None = None,
    count: int | None = None,
    labels: str | None = None,
    prompt: str | None = None,
    negative_prompt: str | None = None,
    guidance: Annotated[float | None, tyro.conf.arg(aliases=["--guidance-scale"])] = None,
    seed: int = 0,
    devices: int | None = None,
    batch: int | None = None,
    shard: int | None = None,
    pipeline: Annotated[Path | None, tyro.conf.arg(aliases=["--vae"])] = None,
    trust_code: bool = False,
) -> None:
    """Draw samples from a trained model, or from a diffusers pipeline with any sampler.

    Args:
        model: a model's or a run's folder, or a pipeline's (only safetensors are read).
        out: .png for a picture, .npy for the numbers, or a folder: of a model for any number of
            samples in .npy files, which the same command continues; of a pipeline for PNGs.
        sampler: ddim, dpmpp-2m, unipc, kab2c, ddpm, ...: see `twosides samplers`.
        steps: of the sampler.
        schedule: where to sample, by default the model's own: cosine, "cosine(-15, 15)", ...
        noise: other noise for the sampler: "churn(0.3)", "eta(1)", "ddim-eta(0.5)", deterministic.
        grid: another grid: karras, "karras(5)", uniform-logsnr, beta, ays-sdxl, ...; "entropic" is
            the one measured in training with a recipe that learns. A pipeline's is its own, but
            with --noise the sampler's.
        compat: "published" for the sampler as its authors' code has it, known errors included.
        count: number of samples, by default 26, or 1 of a pipeline or a prompt (with labels: their
            number).
        labels: classes to draw, one letter each, by default all in turn; of a pipeline 207,360.
        prompt: for pipelines that read text, and for models trained on captions.
        negative_prompt: what to guide away from instead of no text.
        guidance: classifier-free guidance scale, by default 1, none, or the pipeline's own.
        seed: sample i depends on (seed, i) only.
        devices: into a folder: processes, by default one for each GPU, or one on the CPU; under
            torchrun or srun their processes share the work.
        batch: into a folder: samples per network call, by default 256.
        shard: into a folder: samples per file, by default 1000.
        pipeline: of a model of latents: the folder of a pipeline that decodes them and reads the
            prompt, by default that which encoded what was trained on. Samples in a .png are always
            decoded, those in a .npy only if this is given, and those in a folder are latents.
        trust_code: import the network's class from outside diffusers and twosides.
    """
    from twosides.storage.models import is_pipeline

    if count is not None and count < 1:
        raise ValueError(f"--count must be at least 1, got {count}")
    many = {"devices": devices, "batch": batch, "shard": shard}
    many = {name: value for name, value in many.items() if value is not None}
    if many and (out.suffix or is_pipeline(model)):
        raise ValueError(f"--{', --'.join(many)} are for a model's samples and a folder as --out")
    if pipeline is not None and (is_pipeline(model) or not out.suffix):
        raise ValueError(
            "--pipeline decodes a model's samples into a .png or .npy file; a pipeline decodes its "
            "own, and files in a folder are latents: leave it out"
        )
    if is_pipeline(model):
        from twosides.generation.pipelines import sample_pipeline

        if schedule is not None:
            raise ValueError("a pipeline is sampled on its own schedule; leave --schedule out")
        numbers = sample_pipeline(
            model,
            out=out,
            sampler=sampler,
            steps=steps,
            noise=noise,
            grid=grid,
            compat=compat,
            count=1 if count is None else count,
            labels=labels,
            prompt=prompt,
            negative_prompt=negative_prompt,
            guidance=guidance,
            seed=seed,
        )
        print(f"{out}: {tuple(numbers.shape)}, {sampler}, {steps} steps, seed {seed}")
        return
    from twosides.generation.samples import chosen_sampler, sample_model

    if not out.suffix:
        if prompt is not None or negative_prompt is not None:
            raise ValueError("a model is prompted for a .png or .npy file; name one as --out")
        from twosides.generation.workers import sample_shards

        result = sample_shards(
            model,
            out,
            count or len(labels or "") or 26,
            sampler=chosen_sampler(sampler, noise, grid, compat, model),
            steps=steps,
            schedule=schedule,
            guidance=1.0 if guidance is None else guidance,
            labels=labels,
            seed=seed,
            trust_code=trust_code,
            progress=True,
            **many,
        )
        print(f"{result}; {sampler}, {steps} steps, seed {seed}")
        return
    numbers = sample_model(
        model,
        sampler=sampler,
        steps=steps,
        schedule=schedule,
        noise=noise,
        grid=grid,
        compat=compat,
        count=count,
        labels=labels,
        guidance=1.0 if guidance is None else guidance,
        seed=seed,
        trust_code=trust_code,
        out=out,
        prompt=prompt,
        negative_prompt=negative_prompt,
        pipeline=pipeline,
    )
    print(f"{out}: {tuple(numbers.shape)}, {sampler}, {steps} steps, seed {seed}")


def evaluate(
    source: Positional[Path],
    /,
    *,
    data: str,
    count: int | None = None,
    metrics: tuple[str, ...] = (),
    extractor: str | None = None,
    sampler: str = "ddim",
    steps: int = 20,
    schedule: str | None = None,
    guidance: float = 1.0,
    seed: int = 0,
    json: Path | None = None,
    trust_code: bool = False,
) -> None:
    """Measure how far samples are from data, beside other data's distance, with standard errors.

    Args:
        source: a model's or a run's folder, or samples: .npy, .safetensors, or a folder of them.
        data: as in `twosides train`: glyphs, ring, folder:, tar:, hf:, latents:, module:function.
        count: samples, and as many rows of data; by default 1000 of a model, or all in the files.
        metrics: some of frechet, kid, mmd, sliced-w2, precision, recall, density, coverage.
        extractor: pixels, reader (letters), the folder of a transformers vision model, or
            package.module:function; by default reader for letters and pixels for all else.
        sampler: of a model: ddim, dpmpp-2m, ...: see `twosides samplers`.
        steps: of the sampler.
        schedule: where to sample a model, by default its own.
        guidance: classifier-free guidance scale of a model.
        seed: of the samples, the reference rows, and the groups that give the errors.
        json: a file to write the numbers to.
        trust_code: import a network's class, or an extractor, from outside diffusers and twosides.
    """
    from twosides.metrics.command import evaluate as run

    found = run(
        source,
        data,
        count=count,
        metrics=metrics,
        extractor=extractor,
        json_file=json,
        sampler=sampler,
        steps=steps,
        schedule=schedule,
        guidance=guidance,
        seed=seed,
        trust_code=trust_code,
    )
    print(found, end="")


def report(
    runs: Positional[tuple[Path, ...]],
    /,
    *,
    out: Path = Path("report.html"),
    data: str | None = None,
    count: int = 520,
    extractor: str | None = None,
    sampler: str = "ddim",
    steps: int = 20,
    schedule: str | None = None,
    guidance: float = 1.0,
    seed: int = 0,
    trust_code: bool = False,
) -> None:
    """Put training runs side by side on one page: recipes, losses, weightings, samples, metrics.

    Args:
        runs: the folders of finished runs.
        out: the page to write; one file that needs no network.
        data: what to measure against, as in `twosides train`; by default nothing is measured.
        count: samples of each run, and rows of data.
        extractor: pixels, reader, ...: see `twosides evaluate`.
        sampler: for all of them: ddim, dpmpp-2m, ...
        steps: of the sampler.
        schedule: where to sample, by default each run's own.
        guidance: classifier-free guidance scale.
        seed: of the samples, the same noise for all runs.
        trust_code: import networks' classes, or an extractor, from outside diffusers and twosides.
    """
    from twosides.reports.side_by_side import report as run

    made = run(
        runs,
        out,
        data=data,
        count=count,
        extractor=extractor,
        sampler=sampler,
        steps=steps,
        schedule=schedule,
        guidance=guidance,
        seed=seed,
        trust_code=trust_code,
    )
    print(f"{out}: {len(made)} run{'s' * (len(made) != 1)}")
