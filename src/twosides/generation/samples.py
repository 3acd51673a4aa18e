"""Samples of trained models by names, and pictures of them: what `twosides sample` runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twosides.conditioning import nested
from twosides.denoiser import Denoiser, Denoises
from twosides.display import pictures
from twosides.display.pictures import npy, sheet
from twosides.display.progress import bar
from twosides.guidance import classifier_free
from twosides.naming import named, unknown
from twosides.sampling.grids import GRIDS, Grid
from twosides.sampling.noise import STOCHASTICITIES
from twosides.sampling.presets import sampler_named
from twosides.sampling.sample import sample
from twosides.sampling.sampler import Sampler
from twosides.schedules import Cosine, Schedule, schedule_named
from twosides.storage import models, parts
from twosides.storage.files import write_file

BATCH = 250  # samples that are drawn at once


ONE_FILE = 100_000  # samples that are kept in memory until their file is written


def chosen_sampler(
    sampler: str,
    noise: str | None = None,
    grid: str | None = None,
    compat: str | None = None,
    model: Path | None = None,
) -> Sampler:
    """A preset, with other noise or another grid if named: "churn(0.3)", "karras(7)".

    The grid "entropic" is the one that the training of `model`, its folder, has measured.
    """
    chosen = sampler_named(sampler, compat)
    if noise is not None:
        chosen = replace(chosen, stochasticity=named("noise", noise, STOCHASTICITIES))
    if grid is not None:
        measured = measured_grid(model) if model is not None and grid == "entropic" else None
        chosen = replace(chosen, grid=measured or named("grid", grid, GRIDS))
    return chosen


def measured_grid(folder: Path) -> Grid:
    """The grid that a model's training has measured, "entropic" in its notes."""
    notes = models.read_notes(folder)
    if "entropic" not in notes:
        raise ValueError(
            f"{folder} holds no measured grid, because its training kept no errors by level; train "
            "with a recipe that learns, such as sd3+adaptive, or measure one on data with "
            "twosides.losses.learned.measure_entropic"
        )
    grid = parts.restore(notes["entropic"])
    if not isinstance(grid, Grid):
        raise ValueError(f'"entropic" in the notes of {folder} is no grid: {grid!r}')
    return grid


def label_tensor(labels: str | Sequence[str], classes: Sequence[str]) -> Tensor:
    """Class numbers of letters, or of words with commas; ValueError for one that is not known."""
    if isinstance(labels, str) and not isinstance(classes, str):
        labels = labels.split(",")
    wrong = [name for name in labels if name not in classes]
    if wrong:
        raise (
            unknown("class", wrong[0], classes)
            if classes
            else ValueError("the model has no classes")
        )
    return torch.tensor([classes.index(name) for name in labels])


def sample_model(
    folder: Path,
    *,
    sampler: str,
    steps: int,
    schedule: str | None,
    noise: str | None,
    grid: str | None,
    compat: str | None,
    count: int | None,
    labels: str | None,
    guidance: float,
    seed: int,
    trust_code: bool,
    out: Path,
    prompt: str | None = None,
    negative_prompt: str | None = None,
    pipeline: Path | None = None,
) -> Tensor:
    """Sample a model folder and write the samples to a .png or .npy file.

    Models of latents need the pipeline that encoded them, or another `pipeline`: a .png shows the
    images that it decodes, a .npy only if `pipeline` is given; and it reads the prompts.
    """
    if out.suffix not in (".png", ".npy"):
        raise ValueError(f"{out}: samples are written as .png or .npy, not {out.suffix!r}")
    if count is not None and count > ONE_FILE:
        raise ValueError(
            f"{count} samples are too many for {out}, at most {ONE_FILE} go into one file; name a "
            "folder as --out, which takes any number in shards"
        )
    chosen = chosen_sampler(sampler, noise, grid, compat, folder)
    where = schedule_named(schedule) if schedule else None
    said = encoded_by(models.read_config(folder))
    decode = _decoding(said, sample_shape(folder), out, pipeline)
    told = _told(said, prompt, negative_prompt, guidance, pipeline)
    x = model_samples(
        folder,
        count,
        sampler=chosen,
        steps=steps,
        schedule=where,
        labels=labels,
        guidance=guidance,
        seed=seed,
        trust_code=trust_code,
        told=told,
    )
    x = decode(x) if decode else x
    write_file(out, _encoded(x, out))
    return x


def _decoding(
    said: Mapping[str, Any], shape: tuple[int, ...], out: Path, pipeline: Path | None
) -> Callable[[Tensor], Tensor] | None:
    """What makes of samples what is written, if anything does."""
    if pipeline is not None or (said and out.suffix == ".png"):
        return decoder(said, pipeline)
    if out.suffix == ".png" and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise ValueError(
            f"samples of shape {shape} are no pictures; write them as .npy, or decode them if they "
            "are latents: --pipeline FOLDER"
        )
    return None


def decoder(said: Mapping[str, Any], asked: Path | None = None) -> Callable[[Tensor], Tensor]:
    """What makes images of latents: the VAE of "pipeline" in a model's notes, or of another.

    ValueError, before anything is drawn, if it is not there.
    """
    from twosides.integrations.diffusers.encoders import decoded, found

    folder = found(said, "vae", asked)
    return lambda latents: decoded(latents, folder)


@dataclass(frozen=True, eq=False)
class Told:
    """A row of conditioning for all samples, and that which guidance leads away from; flat."""

    row: dict[str, Tensor]
    null: dict[str, Tensor]


def _told(
    said: Mapping[str, Any],
    prompt: str | None,
    negative_prompt: str | None,
    guidance: float,
    pipeline: Path | None,
) -> Told | None:
    """What prompts become in the pipeline; ValueError for those that would not be heard."""
    if prompt is None and negative_prompt is None:
        return None
    if not said.get("texts"):
        raise ValueError("this model takes no prompt: it was not trained on captions; leave it out")
    if prompt is None or (negative_prompt is not None and guidance == 1):
        raise ValueError("a negative prompt is what guidance leads away from: --prompt, --guidance")
    from twosides.integrations.diffusers.encoders import found
    from twosides.integrations.diffusers.texts import Texts

    texts = Texts(found(said, "texts", pipeline), int(said["size"]))
    return Told(texts(prompt), texts.null if negative_prompt is None else texts(negative_prompt))


def encoded_by(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The pipeline that encoded what a model was trained on, by its notes; {} if none did."""
    said = config.get("pipeline", {})
    if not isinstance(said, Mapping):
        raise ValueError(f'"pipeline" in config.json describes none: {said!r}')
    return said


def wordless(config: Mapping[str, Any]) -> None:
    """ValueError for the notes of a model that was trained on captions."""
    if encoded_by(config).get("texts"):
        raise ValueError(
            "this model was trained on captions: it draws what `twosides sample --prompt` says, "
            "into a .png or .npy file"
        )


def sample_shape(folder: Path) -> tuple[int, ...]:
    """Shape of one sample of a model folder; ValueError if it does not say."""
    shape = models.read_config(folder).get("shape")
    if not shape:
        raise ValueError(f"{folder} does not say the shape of its samples; use twosides.sample")
    return tuple(shape)


def model_samples(
    folder: Path,
    count: int | None = None,
    *,
    sampler: str | Sampler = "ddim",
    steps: int = 20,
    schedule: Schedule | None = None,
    labels: str | None = None,
    guidance: float = 1.0,
    seed: int = 0,
    trust_code: bool = False,
    batch: int = BATCH,
    told: Told | None = None,
) -> Tensor:
    """Samples of a model folder, of the labels, by default all classes, in turn; shows a bar.

    count: by default one of each label, if they are given, one of a prompt, or 26.
    schedule: by default the model's own, or `startable`'s.

    Warns of samples that are not finite.
    """
    denoiser = models.load(folder, trust_code=trust_code)
    config, shape = models.read_config(folder), sample_shape(folder)
    if told is None:
        wordless(config)
    classes = config.get("classes", "")
    of = label_tensor(classes if labels is None else labels, classes)
    if labels is not None and not len(of):
        raise ValueError("no label was given; name some, or leave them out for all classes")
    if count is None:
        count = len(of) if labels is not None else 26 if told is None else 1
    conditioning: dict[str, Tensor] = {}
    if told is not None:
        conditioning |= {k: row.expand(count, *row.shape[1:]) for k, row in told.row.items()}
    if len(of):
        conditioning["class_labels"] = of[torch.arange(count) % len(of)]
    null = config.get("null", {}) if told is None else told.null
    steered = guided(denoiser, guidance, null)
    parts, schedule = list[Tensor](), schedule or startable(denoiser, sampler, steps)
    # Sample i depends on (seed, i) only, so batches change nothing but the memory they need.
    with bar("sampling", count) as tell:
        for start in range(0, count, batch):
            rows = range(start, min(start + batch, count))
            given = nested({name: value[start : rows.stop] for name, value in conditioning.items()})
            x = sample(
                steered,
                (len(rows), *shape),
                sampler=sampler,
                steps=steps,
                schedule=schedule,
                seed=seed,
                indices=rows,
                progress=_part_of(tell, rows, count),
                **given,
            )
            parts.append(x)
    samples = torch.cat(parts)
    if bad := int((~samples.isfinite()).flatten(1).any(1).sum()):
        warnings.warn(
            f"{bad} of {count} samples of {folder} hold NaN or infinite numbers; its logs show "
            "when training went wrong",
            stacklevel=2,
        )
    return samples


def _part_of(
    tell: Callable[[int, int], None], rows: range, count: int
) -> Callable[[int, int], None]:
    return lambda done, total: tell(rows.start + len(rows) * done // total, count)


def guided(denoiser: Denoiser, scale: float, null: dict[str, Any]) -> Denoises:
    """The denoiser under classifier-free guidance; itself at scale 1."""
    if scale == 1.0:
        return denoiser
    if not null:
        raise ValueError("guidance needs a model trained with dropped classes; this one was not")
    return classifier_free(denoiser, scale, null=null)


def draw_classes(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    classes: Sequence[str],
    *,
    seed: int,
    count: int = 26,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Any:
    """A picture of one sample of each of the first 52 classes, or of `count`, 20 DDIM steps."""
    count = min(len(classes), 52) or count
    labels: dict[str, Any] = {"class_labels": torch.arange(count)} if classes else {}
    where = startable(denoiser, "ddim", 20)
    x = sample(denoiser, (count, *shape), steps=20, seed=seed, schedule=where, **labels)
    return sheet(decode(x) if decode else x)


def startable(denoiser: Denoiser, sampler: str | Sampler, steps: int) -> Schedule | None:
    """None for the denoiser's own schedule, or cosine(-12, 12) if its output tells no x there.

    That of eps or scores does not where the sampler begins at pure noise.
    """
    first = sampler_named(sampler).grid.logsnrs(denoiser.schedule, steps)[0]
    try:
        denoiser.output.solve(denoiser.schedule.level(first))
    except ValueError:
        return Cosine(-12.0, 12.0)
    return None


def _encoded(x: Tensor, out: Path) -> bytes:
    if out.suffix == ".png":
        return pictures.png(sheet(x))
    return npy(x)
