"""Commands that draw samples and measure them: `twosides sample | evaluate | report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from twosides.display.terminal import say

if TYPE_CHECKING:
    from twosides.generation.request import Request
    from twosides.generation.shards import Shards

Positional = tyro.conf.Positional


@dataclass(frozen=True)
class Sampling:
    """What all commands that draw samples share; each of these is an option of them all.

    Args:
        sampler: ddim, dpmpp-2m, unipc, kab2c, ddpm, ...: see `twosides samplers`; unipc-published,
            ... for one as its authors' code has it, known errors included; "auto" for what
            was tuned for the model and these steps, or else is good at so many; or a sampler's
            .json file.
        steps: of the sampler.
        schedule: where to sample, by default the model's own: cosine, "cosine(-15, 15)", ...
        grid: another grid: karras, "karras(5)", uniform-logsnr, beta, ays-sdxl, ...; "entropic" is
            the one measured in training with a recipe that learns. A pipeline keeps its own, but
            with other noise it has the sampler's.
        guidance: classifier-free guidance scale, by default 1, none, or the pipeline's own.
        rule: how guidance mixes its two estimates: apg, "cfg-zero*", tcfg, mambo-g, rescale,
            "rescale(0.5)", ...; not of a pipeline. By default plain guidance.
        seed: sample i depends on (seed, i) only.
        device: auto (the accelerator if there is one, else the CPU), cpu, cuda:1, mps, xpu, ...
        trust_code: import what is named as package.module:name, and networks' classes from outside
            diffusers and twosides.
    """

    sampler: str = "ddim"
    steps: int = 20
    schedule: str | None = None
    grid: str | None = None
    guidance: Annotated[float | None, tyro.conf.arg(aliases=["--guidance-scale"])] = None
    rule: str | None = None
    seed: int = 0
    device: str = "auto"
    trust_code: bool = False

    def request(self, *models: Path, **others: Any) -> Request:
        """How to sample, in words that every command means alike.

        models: the folders that are sampled; the grid "entropic" is what was measured in the
            training of the only one.
        others: what not all commands have, such as labels; see `Request.of`.
        """
        from twosides.generation.notes import measured_grid
        from twosides.generation.request import Request
        from twosides.storage.models import is_pipeline

        grid = self.grid
        if grid == "entropic" and not any(map(is_pipeline, models)):
            if len(models) != 1:
                raise ValueError("--grid entropic is one run's own; name the grid for several runs")
            grid = measured_grid(models[0])
        return Request.of(
            self.sampler,
            grid=grid,
            schedule=self.schedule,
            steps=self.steps,
            guidance=self.guidance,
            rule=self.rule,
            seed=self.seed,
            device=self.device,
            **others,
        )


Flat = Annotated[Sampling, tyro.conf.arg(name="")]  # its fields are options like all others


def sample(
    model: Positional[Path],
    /,
    *,
    out: Path = Path("samples.png"),
    noise: str | None = None,
    count: int | None = None,
    labels: str | None = None,
    prompt: str | None = None,
    negative_prompt: str | None = None,
    devices: int | None = None,
    batch: int | None = None,
    shard: int | None = None,
    pipeline: Annotated[Path | None, tyro.conf.arg(aliases=["--vae"])] = None,
    reward: str | None = None,
    particles: int = 16,
    sampling: Flat = Sampling(),
) -> None:
    """Draw samples from a trained model, or from a diffusers pipeline with any sampler.

    Args:
        model: a model's or a run's folder, or a pipeline's (only safetensors are read).
        out: .png for a picture, .npy for the numbers, or a folder: of a model for any number of
            samples in .npy files, which the same command continues; of a pipeline for PNGs.
        noise: other noise for the sampler: "churn(0.3)", "eta(1)", "ddim-eta(0.5)", deterministic.
        count: number of samples, by default 26, or 1 of a pipeline or a prompt (with labels: their
            number).
        labels: classes to draw, one letter each, by default all in turn; of a pipeline 207,360.
        prompt: for pipelines that read text, and for models trained on captions.
        negative_prompt: what to guide away from instead of no text.
        devices: into a folder: processes, by default one for each GPU, or one on the CPU; under
            torchrun or srun their processes share the work.
        batch: into a folder: samples per network call, by default 256.
        shard: into a folder: samples per file, by default 1000.
        pipeline: of a model of latents: the folder of a pipeline that decodes them and reads the
            prompt, by default that which encoded what was trained on. Samples in a .png are always
            decoded, those in a .npy only if this is given, and those in a folder are latents.
        reward: package.module:function from samples to numbers; draws are then of the model's
            probability times exp(reward), by particles and a sampler with noise, such as ddpm.
        particles: with --reward, how many for each sample.
        sampling: what is shared with restore, evaluate and report.
    """
    from twosides.storage.models import is_pipeline

    piped = is_pipeline(model)
    sizes = {"devices": devices, "batch": batch, "shard": shard}
    sizes = {name: value for name, value in sizes.items() if value is not None}
    if sizes and (out.suffix or piped):
        raise ValueError(f"--{', --'.join(sizes)} are for a model's samples and a folder as --out")
    if pipeline is not None and (piped or not out.suffix):
        raise ValueError(
            "--pipeline decodes a model's samples into a .png or .npy file; a pipeline decodes its "
            "own, and files in a folder are latents: leave it out"
        )
    request = sampling.request(
        model,
        noise=noise,
        count=count,
        labels=labels,
        prompt=prompt,
        negative_prompt=negative_prompt,
    )
    if reward is not None:
        from twosides.generation.restoring import steer_model

        if piped or pipeline is not None or sizes:
            raise ValueError("--reward is for a model's own samples in a .png or .npy file")
        numbers, told = steer_model(
            model, out, request, reward=reward, particles=particles, trust_code=sampling.trust_code
        )
        say(f"{out}: {tuple(numbers.shape)}, {told}")
        return
    if piped:
        from twosides.generation.pipelines import sample_pipeline

        numbers = sample_pipeline(model, request, out)
    elif out.suffix:
        from twosides.generation.samples import sample_model

        numbers = sample_model(
            model, request, out, trust_code=sampling.trust_code, pipeline=pipeline
        )
    else:
        say(f"{_shards(model, request, out, sizes, sampling.trust_code)}; {request}")
        return
    say(f"{out}: {tuple(numbers.shape)}, {request}")


def restore(
    model: Positional[Path],
    damaged: Positional[Path],
    /,
    *,
    operator: str,
    noise: float = 0.05,
    out: Path = Path("restored.png"),
    method: str = "mmps",
    particles: int = 1,
    count: int | None = None,
    labels: str | None = None,
    sampling: Flat = Sampling("ddpm", steps=50),
) -> None:
    """Draw what a damaged picture may have been, from a model that has seen whole ones.

    Args:
        model: a model's or a run's folder.
        damaged: the picture as the operator leaves it; a .npy for what is no picture.
        operator: inpaint:mask.png (white is known), downsample:4, blur:2, crop:8 (the middle), or
            package.module:function, which needs --trust-code.
        noise: deviation of the noise in the picture, where black is -1 and white 1.
        out: .png, the damaged picture first, or .npy.
        method: mmps, pigdm, gaussian, diffpir or dps: see docs/posteriors.md.
        particles: for each picture; more than 1 corrects the method, at as many times the cost.
        count: number of pictures, by default 4; each is another possibility.
        labels: classes, if they are known, by default none.
        sampling: what is shared with sample; particles need a sampler with noise.
    """
    from twosides.generation.restoring import restore as run

    request = sampling.request(model, count=count, labels=labels)
    numbers, told = run(
        model,
        damaged,
        out,
        request,
        operator=operator,
        noise=noise,
        method=method,
        particles=particles,
        trust_code=sampling.trust_code,
    )
    say(f"{out}: {tuple(numbers.shape)}, {told}")


def _shards(
    model: Path, request: Request, out: Path, sizes: dict[str, Any], trust_code: bool
) -> Shards:
    """The samples of a model in a folder of shards."""
    from dataclasses import replace

    from twosides.generation.notes import read_notes
    from twosides.generation.samples import count_of
    from twosides.generation.shards import Job
    from twosides.generation.workers import make_shards

    request = replace(request, count=count_of(request, read_notes(model)))
    devices = sizes.pop("devices", None)
    job = Job(request, model, out, trust_code=trust_code, **sizes)
    return make_shards(job, devices=devices, progress=True)


def evaluate(
    source: Positional[Path],
    /,
    *,
    data: str,
    count: int | None = None,
    metrics: tuple[str, ...] = (),
    extractor: str | None = None,
    json: Path | None = None,
    uncertainty: Path | None = None,
    sampling: Flat = Sampling(),
) -> None:
    """Measure how far samples are from data, beside other data's distance, with standard errors.

    Args:
        source: a model's or a run's folder, or samples: .npy, .safetensors, or a folder of them.
        data: as in `twosides train`: glyphs, ring, folder:, tar:, hf:, latents:, module:function.
        count: samples, and as many rows of data; by default 1000 of a model, or all in the files.
        metrics: some of frechet, kid, mmd, sliced-w2, precision, recall, density, coverage.
        extractor: pixels, reader (letters), the folder of a transformers vision model, or
            package.module:function; by default reader for letters and pixels for all else.
        json: a file to write the numbers to.
        uncertainty: a .png file: instead, draw how well the model knows its own error on the data,
            level by level, which `restore` relies on; no samples are drawn.
        sampling: how a model is sampled; the seed is also that of the reference rows, and of the
            groups that give the errors.
    """
    from twosides.metrics.command import evaluate as run

    request = sampling.request(source, count=count)
    if uncertainty is not None:
        from twosides.metrics.command import evaluate_uncertainty

        if metrics or json is not None or extractor is not None:
            raise ValueError(
                "uncertainty measures no samples: leave metrics out, leave extractor out and "
                "leave json out"
            )
        for name in ("sampler", "steps", "schedule", "grid"):
            if getattr(sampling, name) != getattr(Sampling(), name):
                raise ValueError(f"uncertainty draws no samples: leave {name} out")
        say(
            evaluate_uncertainty(
                source, data, request, uncertainty, trust_code=sampling.trust_code
            ),
            end="",
        )
        return
    table = run(
        source,
        data,
        request,
        metrics=metrics,
        extractor=extractor,
        json_file=json,
        trust_code=sampling.trust_code,
    )
    say(table, end="")


def report(
    runs: Positional[tuple[Path, ...]],
    /,
    *,
    out: Path = Path("report.html"),
    data: str | None = None,
    count: int = 520,
    extractor: str | None = None,
    sampling: Flat = Sampling(),
) -> None:
    """Put training runs side by side on one page: recipes, losses, weightings, samples, metrics.

    Args:
        runs: the folders of finished runs.
        out: the page to write; one file that needs no network.
        data: what to measure against, as in `twosides train`; by default nothing is measured.
        count: samples of each run, and rows of data.
        extractor: pixels, reader, ...: see `twosides evaluate`.
        sampling: how all of them are sampled, with the same noise.
    """
    from twosides.reports.side_by_side import report as run

    request = sampling.request(*runs, count=count)
    made = run(runs, out, request, data=data, extractor=extractor, trust_code=sampling.trust_code)
    say(f"{out}: {len(made)} run{'s' * (len(made) != 1)}")
