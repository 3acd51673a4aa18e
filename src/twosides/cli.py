"""The command line: `twosides train | finetune | sample | samplers | recipes | convert | ...`.

Signatures are the options and docstrings the help. Nothing heavy is imported before a command runs,
so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

Positional = tyro.conf.Positional


def train(
    data: Positional[str],
    /,
    *,
    out: Path,
    recipe: str = "flow-matching",
    network: Path | None = None,
    time: str | None = None,
    steps: int = 2000,
    batch: int = 64,
    learning_rate: float = 1e-3,
    sigma_rel: float = 0.1,
    seed: int = 0,
    minutes: float | None = None,
    checkpoint_every: int = 200,
    picture_every: int = 500,
    validate_every: int | None = None,
    snapshot_every: int | None = None,
    precision: str = "32-true",
    devices: str = "auto",
    nodes: int = 1,
    strategy: str = "auto",
    accumulate: int = 1,
    workers: int = 0,
    trust_code: bool = False,
) -> None:
    """Train a network; the same command continues after an interruption.

    Args:
        data: glyphs, glyphs-32, ring; your own, such as "folder:photos?size=64,flip", hf:path,
            "tar:shards/{000..009}.tar", latents:path; or package.module:function giving a Task.
        out: the run's folder (checkpoints, logs, samples, and at the end the model).
        recipe: flow-matching, v-cosine, edm, sd3, ...: see `twosides recipes`; also with +adaptive,
            +entropy-rate or +uncertainty, which follow the errors that are measured.
        network: JSON file {"class": "diffusers.UNet2DModel" or "module:Class", "config": {...}}.
        time: how the network is told the level: t, 1000t, 1-t, index, c_noise, logsnr.
        steps: optimizer steps.
        batch: samples per step, over all devices and micro-batches.
        learning_rate: AdamW's.
        sigma_rel: relative width of the weights' power-function average.
        seed: of the initial weights, the order of the data, the noise and its levels.
        minutes: stop training after so long.
        checkpoint_every: steps between checkpoints.
        picture_every: steps between pictures.
        validate_every: steps between measurements of the error by noise level, on letters of fonts
            that are not trained on; by default none.
        snapshot_every: steps between snapshots of averages, for `twosides ema`; by default none.
        precision: Lightning's: 32-true, bf16-mixed, 16-mixed.
        devices: processes on each machine, one for each GPU, or auto: what there is.
        nodes: machines; each needs the command, by torchrun or SLURM.
        strategy: ddp (a copy of the network per device), fsdp (shards of it), or auto.
        accumulate: micro-batches per step and device, one after another.
        workers: processes that read data, for each device.
        trust_code: import the network's class from outside diffusers and twosides.
    """
    from twosides.training.run import is_first, train_task

    train_task(
        data,
        out,
        recipe,
        network_file=network,
        time=time,
        trust_code=trust_code,
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        sigma_rel=sigma_rel,
        seed=seed,
        minutes=minutes,
        checkpoint_every=checkpoint_every,
        picture_every=picture_every,
        validate=validate_every is not None,
        validate_every=validate_every or steps,
        snapshot_every=snapshot_every,
        precision=precision,
        devices=int(devices) if devices.isdigit() else devices,
        nodes=nodes,
        strategy=strategy,
        accumulate=accumulate,
        workers=workers,
    )
    if is_first():
        print(f"{out / 'model'} is ready: twosides sample {out}")


def finetune(
    model: Positional[Path],
    data: Positional[str],
    /,
    *,
    out: Path,
    recipe: str | None = None,
    convert: bool = False,
    widen_at: float | None = None,
    zero_terminal_snr: bool = False,
    lora: int | None = None,
    lora_target: tuple[str, ...] = (),
    steps: int = 1000,
    batch: int = 8,
    learning_rate: float | None = None,
    sigma_rel: float = 0.1,
    seed: int = 0,
    minutes: float | None = None,
    checkpoint_every: int = 200,
    precision: str = "32-true",
    trust_code: bool = False,
) -> None:
    """Train a network further: as it is, as a flow model, or by LoRA; the same command continues.

    Args:
        model: a diffusers pipeline's folder, or a model's or a run's.
        data: as in `twosides train`, in the network's units and with the conditioning it takes.
        out: the run's folder; at the end also pipeline/ or lora/, for diffusers.
        recipe: own (the default): plain error of its own output at its own levels; or a recipe's
            levels and weighting, see `twosides recipes`. Converted, by default flow-matching.
        convert: train it as a predictor of u in flow matching's time, which it is exactly.
        widen_at: converted, the step (below 1: the part of all steps) from which on levels beyond
            those that it knows are trained, up to pure noise; by default never.
        zero_terminal_snr: move its levels so that the last is pure noise; not of eps networks.
        lora: train low-rank adapters of this rank.
        lora_target: the layers that get them, by default to_q to_k to_v to_out.0.
        steps: optimizer steps.
        batch: samples per step.
        learning_rate: AdamW's, by default 1e-5, or 1e-4 with LoRA.
        sigma_rel: relative width of the weights' power-function average.
        seed: of the adapters, the order of the data, the noise and its levels.
        minutes: stop training after so long.
        checkpoint_every: steps between checkpoints.
        precision: Lightning's: 32-true, bf16-mixed, 16-mixed.
        trust_code: import the network's class from outside diffusers and twosides.
    """
    from twosides.training.finetune import Tuning, finetune_task

    finetune_task(
        model,
        data,
        out,
        Tuning(recipe, convert, widen_at, zero_terminal_snr, lora, lora_target),
        trust_code=trust_code,
        steps=steps,
        batch=batch,
        learning_rate=learning_rate or (1e-5 if lora is None else 1e-4),
        sigma_rel=sigma_rel,
        seed=seed,
        minutes=minutes,
        checkpoint_every=checkpoint_every,
        precision=precision,
    )
    for name in ("model", "pipeline", "lora"):
        if (out / name).is_dir():
            print(f"{out / name} is ready")


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
        count: number of samples, by default 26, or 1 of a pipeline (with labels: their number).
        labels: classes to draw, one letter each, by default all in turn; of a pipeline 207,360.
        prompt: for pipelines that read text.
        negative_prompt: what to guide away from, for pipelines that read text.
        guidance: classifier-free guidance scale, by default 1, none, or the pipeline's own.
        seed: sample i depends on (seed, i) only.
        devices: into a folder: processes, by default one for each GPU, or one on the CPU; under
            torchrun or srun their processes share the work.
        batch: into a folder: samples per network call, by default 256.
        shard: into a folder: samples per file, by default 1000.
        trust_code: import the network's class from outside diffusers and twosides.
    """
    many = {"devices": devices, "batch": batch, "shard": shard}
    many = {name: value for name, value in many.items() if value is not None}
    if many and (out.suffix or _is_pipeline(model)):
        raise ValueError(f"--{', --'.join(many)} are for a model's samples and a folder as --out")
    if _is_pipeline(model):
        from twosides.integrations.diffusers.draw import sample_pipeline

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
    from twosides.draw import chosen_sampler, sample_model

    if prompt is not None or negative_prompt is not None:
        raise ValueError(f"{model} takes no prompt: it is no diffusers pipeline; leave it out")
    if not out.suffix:
        from twosides.atscale import sample_shards

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
        count=26 if count is None else count,
        labels=labels,
        guidance=1.0 if guidance is None else guidance,
        seed=seed,
        trust_code=trust_code,
        out=out,
    )
    print(f"{out}: {tuple(numbers.shape)}, {sampler}, {steps} steps, seed {seed}")


def ema(
    run: Positional[Path],
    /,
    *,
    out: Path,
    sigma_rel: tuple[float, ...],
    step: int | None = None,
    trust_code: bool = False,
) -> None:
    """Make models with averages of other widths from the snapshots that training stored.

    Args:
        run: the folder of a finished run that was trained with --snapshot-every.
        out: the model's folder to write; of several widths, one in it for each.
        sigma_rel: relative widths of the averages, in (0, 0.288): --sigma-rel 0.05 0.1 0.15.
        step: the step at which the averages end, by default the newest snapshot's.
        trust_code: import the network's class from outside diffusers and twosides.
    """
    import warnings

    from twosides.training.posthoc import save_averages

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lines = save_averages(run, out, sigma_rel, step=step, trust_code=trust_code)
    for warning in caught:
        print(f"twosides: {warning.message}", file=sys.stderr)
    print("\n".join(lines))


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
        data: glyphs, glyphs-32, ring, or package.module:function returning a Task.
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
        data: what to measure against: glyphs, glyphs-32, ring, or package.module:function; by
            default nothing is measured.
        count: samples of each run, and rows of data.
        extractor: pixels, reader, ...: see `twosides evaluate`.
        sampler: for all of them: ddim, dpmpp-2m, ...
        steps: of the sampler.
        schedule: where to sample, by default each run's own.
        guidance: classifier-free guidance scale.
        seed: of the samples, the same noise for all runs.
        trust_code: import networks' classes, or an extractor, from outside diffusers and twosides.
    """
    from twosides.sidebyside import report as run

    run(
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
    print(f"{out}: {len(runs)} runs side by side")


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
    from twosides import checkpoint
    from twosides.denoiser import Denoiser
    from twosides.denoiser import convert as converted
    from twosides.schedules import schedule_named

    if out.exists():
        raise ValueError(f"{out} exists; name a new folder for the converted model")
    if _is_pipeline(model):
        from twosides.integrations.diffusers import load_denoiser

        source: Any = load_denoiser(model)
        about: dict[str, Any] = {}
    else:
        source, about = checkpoint.load(model, trust_code=trust_code), checkpoint.read_notes(model)
    target = schedule_named(schedule)
    network = converted(source, output, target, time)
    statistics = {"data_mean": source.data_mean, "data_std": source.data_std}
    checkpoint.save(Denoiser(network, output, target, time, **statistics), out, **about)
    print(f"{out}: {source.output.name} on {source.schedule} -> {output} on {target}, time {time}")


def export(
    model: Positional[Path],
    out: Positional[Path],
    /,
    *,
    sampler: str | None = None,
    trust_code: bool = False,
) -> None:
    """Write a trained model as a diffusers pipeline, for those who load it with diffusers.

    Args:
        model: a model's or a run's folder, over diffusers' UNet2DModel.
        out: the folder to write.
        sampler: run it with this one, by twosides; by default with diffusers' own of that path.
        trust_code: import the network's class from outside diffusers and twosides.
    """
    from twosides import checkpoint
    from twosides.integrations.diffusers import save_as_pipeline

    save_as_pipeline(checkpoint.load(model, trust_code=trust_code), out, sampler)
    print(f"{out}: a diffusers pipeline, DiffusionPipeline.from_pretrained({str(out)!r})")


def explain(model: Positional[str], /, *, steps: int = 20, mu: float | None = None) -> None:
    """Say what a diffusers pipeline's network predicts, at which levels, and what traps it is in.

    Args:
        model: a pipeline's folder, or its name on the hub; only its configs are read.
        steps: of its own scheduler.
        mu: logarithm of the shift, where it depends on the resolution; by default the largest.
    """
    from twosides.integrations.diffusers.report import explain as explained

    print(explained(model, steps, mu=mu))


def _is_pipeline(model: Path) -> bool:
    return (model / "model_index.json").is_file()


def compare(
    a: Positional[str],
    b: Positional[str],
    /,
    *,
    steps: int = 10,
    schedule: str = "flow-matching",
    data_std: tuple[float, float] | None = None,
    plot: Path | None = None,
) -> None:
    """Say whether two samplers, or two training recipes, are the same thing, or how far apart.

    Args:
        a: a sampler or a recipe.
        b: another of the same kind.
        steps: for samplers.
        schedule: for samplers: flow-matching, cosine, "cosine(-15, 15)", ...
        data_std: for recipes: the standard deviations of the data that a and b are made for, to
            compare them where these are equally noisy: "sd3 edm --data-std 1 0.5".
        plot: for recipes: a picture to write, .png, of their weightings and levels.
    """
    from twosides.comparison import compare as compared
    from twosides.naming import unknown
    from twosides.sampling.samplers import plan
    from twosides.sampling.samplers import samplers as presets
    from twosides.schedules import schedule_named
    from twosides.training.recipes import recipes

    kinds = [name.split("(")[0] in presets for name in (a, b)]
    for name, sampler in zip((a, b), kinds, strict=True):
        if not sampler and name not in recipes:
            raise unknown("sampler or recipe", name, [*presets, *recipes])
    if a in recipes and b in recipes:
        stds = data_std or (1.0, 1.0)
        print(f"{a} and {b}: {compared(recipes[a], recipes[b], data_std=stds)}")
        if plot is not None:
            from twosides.catalogue import picture

            picture([(a, recipes[a]), (b, recipes[b])], plot, stds)
            print(plot)
    elif all(kinds):
        if plot is not None or data_std is not None:
            raise ValueError("--plot and --data-std are for recipes; leave them out for samplers")
        where = schedule_named(schedule)
        result = compared(plan(a, where, steps), plan(b, where, steps))
        print(f"{a} and {b}, {steps} steps on {where}: {result}")
    else:
        raise ValueError(
            f"{a!r} and {b!r} are not of one kind: compare two samplers or two recipes"
        )


def samplers(*, measure: bool = False, markdown: bool = False) -> None:
    """List the samplers: frame, variable, order, network calls per step, source.

    Args:
        measure: measure the orders, on exact mixtures with three schedules; a minute and a half.
        markdown: as a Markdown table.
    """
    from twosides import orders
    from twosides.progress import bar

    with bar("measuring", 1) if measure else contextlib.nullcontext() as tell:
        table = list(orders.rows(measure, tell))
    print((orders.markdown if markdown else orders.text)(table), end="")


def recipes(*, markdown: bool = False) -> None:
    """List the training recipes: output, schedule, weighting, levels, what is equal, source.

    Args:
        markdown: as a Markdown table.
    """
    from twosides import catalogue

    table = catalogue.rows()
    print((catalogue.markdown if markdown else catalogue.text)(table), end="")


def data(
    name: Positional[str],
    /,
    *,
    out: Path | None = None,
    most: int | None = None,
) -> None:
    """Read all of the data and say what is there: count, classes, moments, bad files and why.

    Args:
        name: as for train.
        out: a picture to write, .png: samples spread over the data.
        most: read so many samples at most.
    """
    from twosides.data.summary import summary

    print(summary(name, out, most))


def encode_latents(
    data: Positional[str],
    /,
    *,
    pipeline: Path,
    out: Path,
    batch: int = 16,
    captions: bool = False,
) -> None:
    """Encode images with a pipeline's VAE, to train on; continues after an interruption.

    Args:
        data: images, such as "folder:photos?size=256,flip".
        pipeline: a diffusers pipeline's folder; only safetensors are read.
        out: a new folder for the latents: `twosides train latents:FOLDER`.
        batch: images encoded at once.
        captions: encode the texts beside the images too (a.txt beside a.png) and train on them.
    """
    from twosides.data.encode import encode_latents as encode
    from twosides.data.images import Images
    from twosides.data.tasks import task_named

    images = task_named(data).data
    if not isinstance(images, Images):
        raise ValueError(f"{data} is no set of images that can be read by number")
    print(f"{len(encode(images, data, pipeline, out, batch=batch, captions=captions))} latents")
    print(f"{out} is ready: twosides train latents:{out}")


def verify() -> None:
    """Check every claim of "Diffusion Meets Flow Matching", errata included; exit 1 on failure."""
    from twosides.verify import verify as check

    results = check(lambda number, result: print(f"{number:2d} {result}", flush=True))
    failed = sum(not result.passed for result in results)
    print(f"{len(results) - failed} of {len(results)} claims hold")
    if failed:
        sys.exit(1)


def demo(
    *,
    out: Path = Path("runs/demo"),
    steps: int = 850,
    minutes: Annotated[float, tyro.conf.arg(help="stop training after so long")] = 3.5,
    seed: int = 0,
) -> None:
    """Train a network on letters in front of you, sample it both ways, write a report.

    Args:
        out: the folder: report.html and the run.
        steps: of training; about three minutes on two cores.
        minutes: stop training after so long.
        seed: of the training; the letters are drawn from seed 0.
    """
    from twosides.demo import demo as run

    print(run(out, steps=steps, minutes=minutes, seed=seed))


def explore(
    *,
    port: int = 0,
    no_browser: bool = False,
    model: Path | None = None,
    trust_code: bool = False,
    export: Path | None = None,
) -> None:
    """Show the figures of the post, live, in a page of the browser; Ctrl-C ends it.

    Args:
        port: of 127.0.0.1, 0 for a free one.
        no_browser: only print the page's address.
        model: a model's or a run's folder, to sample it in a figure of its own.
        trust_code: import the network's class from outside diffusers and twosides.
        export: write the page with precomputed figures to this .html file instead; a minute.
    """
    from twosides.explorer.figures import FIGURES
    from twosides.explorer.figures import model as own

    figures = FIGURES if model is None else (*FIGURES, own.of(model, trust_code=trust_code))
    if export is not None:
        from twosides.explorer.export import write
        from twosides.progress import bar

        with bar("computing", 1) as tell:
            size = write(export, figures, tell)
        print(f"{export}: {size / 1e6:.1f} MB, {len(figures)} figures, no server needed")
        return
    from twosides.explorer.server import explore as serve

    serve(figures, port=port, browser=not no_browser)


COMMANDS = (
    train,
    finetune,
    sample,
    ema,
    evaluate,
    report,
    data,
    encode_latents,
    explore,
    samplers,
    recipes,
    convert,
    export,
    explain,
    compare,
    verify,
    demo,
)


def main() -> None:
    """The `twosides` program; errors of use are one clear line and exit status 2."""
    app = tyro.extras.SubcommandApp()
    for command in COMMANDS:
        app.command(command)
    try:
        app.cli(prog="twosides", description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"twosides: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("twosides: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
