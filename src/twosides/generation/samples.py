"""Samples of trained models, and pictures of them: what `twosides sample` runs on a model.

`drawer` makes of a model and a request a function that draws the samples of any numbers; samples in
one file, in shards, and those that are measured all come from it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twosides.conditioning import nested
from twosides.denoiser import Denoiser, Denoises
from twosides.display import pictures
from twosides.display.pictures import npy, sheet
from twosides.display.progress import bar
from twosides.generation.automatic import sampler_for
from twosides.generation.notes import Notes, load_model, one_sentence, read_notes
from twosides.generation.request import Request
from twosides.guidance import classifier_free
from twosides.mixing import rule_named
from twosides.naming import unknown
from twosides.outputs import output_named
from twosides.placement import device_of
from twosides.sampling.named import plan, sampler_named
from twosides.sampling.sample import Trajectory, sample
from twosides.sampling.sampler import Sampler
from twosides.schedules import Cosine, Schedule
from twosides.storage.devices import device_named
from twosides.storage.files import write_file

BATCH = 250  # samples that are drawn at once
ONE_FILE = 100_000  # samples that are kept in memory until their file is written
IN_TURN = 26  # samples that are drawn of a model if nobody says how many

Draw = Callable[..., Tensor]  # draw(rows: range, tell=None), the samples of these numbers


@dataclass(frozen=True, eq=False)
class TextConditioning:
    """What a network is told of a prompt.

    row: tensors (1, ...) by flat names, for every sample.
    null: the same for the other side of guidance.
    """

    row: dict[str, Tensor]
    null: dict[str, Tensor]


# ---------------------------------------------------------------------------- to files


def sample_model(
    folder: Path,
    request: Request,
    out: Path,
    *,
    trust_code: bool = False,
    pipeline: Path | None = None,
) -> Tensor:
    """Sample a model folder, write the samples to a .png or .npy file and return them.

    folder: a model's or a training run's.
    request: how to sample.
    out: the file. A .png shows images; of a model of latents, what the pipeline that encoded its
        data decodes. A .npy holds the samples as they are, decoded only if `pipeline` is given.
    trust_code: whether the network's class may be imported from outside diffusers and twosides.
    pipeline: another pipeline's folder to decode latents and read the prompts with.
    """
    if out.suffix not in (".png", ".npy"):
        raise ValueError(f"{out}: samples are written as .png or .npy, not {out.suffix!r}")
    if request.count is not None and request.count > ONE_FILE:
        raise ValueError(
            f"{request.count} samples are too many for {out}, at most {ONE_FILE} go into one file; "
            "shards in a folder take any number: out=FOLDER"
        )
    notes = read_notes(folder)
    decode = _decoder_for(notes, out, pipeline)
    text = encode_prompts(notes, request, pipeline)
    x = model_samples(folder, request, trust_code=trust_code, text=text)
    x = decode(x) if decode else x
    write_file(out, pictures.png(sheet(x)) if out.suffix == ".png" else npy(x))
    return x


def _decoder_for(
    notes: Notes, out: Path, pipeline: Path | None
) -> Callable[[Tensor], Tensor] | None:
    """The function that makes of samples what `out` holds; None if they are written as they are."""
    picture, shape = out.suffix == ".png", notes.shape
    if pipeline is not None or (notes.pipeline and picture):
        return decoder(notes.pipeline, pipeline)
    if picture and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise ValueError(
            f"samples of shape {shape} are no pictures; write them as .npy, or decode them if they "
            "are latents: pipeline=FOLDER"
        )
    return None


def decoder(
    encoded_by: Mapping[str, Any], pipeline: Path | None = None
) -> Callable[[Tensor], Tensor]:
    """A function from latents to images.

    encoded_by: "pipeline" in a model's notes, the pipeline whose VAE encoded its data.
    pipeline: another one's folder, in its place.

    ValueError, before anything is drawn, if the pipeline is not there.
    """
    from twosides.integrations.diffusers.encoders import decode_latents, find_pipeline

    folder = find_pipeline(encoded_by, "vae", pipeline)
    return lambda latents: decode_latents(latents, folder)


def encode_prompts(
    notes: Notes, request: Request, pipeline: Path | None = None
) -> TextConditioning | None:
    """What the request's prompts tell the network, by the pipeline that encoded its captions.

    None if there is no prompt; ValueError for prompts that the network would not hear.
    """
    if request.prompt is None:
        return None
    if not notes.captioned:
        raise ValueError("this model takes no prompt: it was not trained on captions; leave it out")
    if request.negative_prompt is not None and request.scale == 1:
        raise ValueError(
            "a negative prompt is what guidance leads away from, and there is no guidance; give it "
            "a scale: guidance=3"
        )
    from twosides.integrations.diffusers.encoders import find_pipeline
    from twosides.integrations.diffusers.texts import Texts

    with one_sentence(f"the notes of {notes.folder} describe no pipeline that reads texts"):
        folder = find_pipeline(notes.pipeline, "texts", pipeline)
        texts = Texts(folder, int(notes.pipeline["size"]))
        away = request.negative_prompt
        return TextConditioning(texts(request.prompt), texts.null if away is None else texts(away))


# ---------------------------------------------------------------------------- in memory


def model_samples(
    folder: Path,
    request: Request,
    *,
    trust_code: bool = False,
    batch: int = BATCH,
    text: TextConditioning | None = None,
) -> Tensor:
    """Samples of a model's or a run's folder as one tensor; options as in `sample_batches`."""
    return torch.cat(
        list(sample_batches(folder, request, trust_code=trust_code, batch=batch, text=text))
    )


def sample_batches(
    folder: Path,
    request: Request,
    *,
    trust_code: bool = False,
    batch: int = BATCH,
    text: TextConditioning | None = None,
) -> Iterator[Tensor]:
    """Draw samples of a model's or a run's folder, a batch on the CPU at a time, and show a bar.

    batch: samples per network call. Sample i depends on (seed, i) only, so batches change nothing
        but the memory they need.
    text: what prompts tell the network, for models trained on captions.

    A warning says how many samples are not finite.
    """
    notes = read_notes(folder)
    if text is None:
        notes.refuse_captions()
    count, bad = count_of(request, notes, text), 0
    denoiser = load_model(folder, trust_code=trust_code).to(device_named(request.device))
    draw = drawer(denoiser, notes, request, text=text)
    with bar("sampling", count) as tell:
        for start in range(0, count, batch):
            rows = range(start, min(start + batch, count))
            x = draw(rows, _part_of(tell, rows, count)).cpu()
            bad += int((~x.isfinite()).flatten(1).any(1).sum())
            yield x
    if bad:
        warnings.warn(
            f"{bad} of {count} samples of {folder} hold NaN or infinite numbers; its logs show "
            "when training went wrong",
            stacklevel=2,
        )


def _part_of(
    tell: Callable[[int, int], None], rows: range, count: int
) -> Callable[[int, int], None]:
    """A bar of steps as a part of the bar of all samples."""
    return lambda done, total: tell(rows.start + len(rows) * done // total, count)


def count_of(request: Request, notes: Notes, text: TextConditioning | None = None) -> int:
    """How many samples are wanted: by default one of each label given, one of a prompt, or 26."""
    if request.count is not None:
        return request.count
    if request.labels is not None:
        return len(label_tensor(request.labels, notes.classes))
    return IN_TURN if text is None else 1


def label_tensor(labels: str | Sequence[str], classes: Sequence[str]) -> Tensor:
    """The numbers of classes, (N,), from their names; ValueError for one that is not known.

    labels: a letter each, words with commas where `classes` are words, or a sequence of names.
    classes: the names of the classes 0, 1, ...
    """
    if isinstance(labels, str) and not isinstance(classes, str):
        labels = labels.split(",")
    numbers = {name: number for number, name in reversed(list(enumerate(classes)))}
    for name in labels:
        if name not in numbers:
            none = ValueError("the model has no classes; leave labels out")
            raise unknown("class", name, classes) if classes else none
    return torch.tensor([numbers[name] for name in labels], dtype=torch.long)


# ---------------------------------------------------------------------------- a model and a request


def drawer(
    denoiser: Denoiser,
    notes: Notes,
    request: Request,
    *,
    text: TextConditioning | None = None,
    kept: Callable[[Trajectory], Tensor] | None = None,
) -> Draw:
    """The function `draw(rows, tell=None)` that draws the samples of the numbers `rows`.

    The samples lie where the network is.

    denoiser, notes: the model.
    request: how to sample. Its labels, or else all classes, repeat over the numbers.
    text: what prompts tell the network.
    kept: what is kept of a run, by default the samples.

    The plan, a table of the sampler's coefficients, is made once. ValueError for labels that the
    model does not know, and for guidance of a model that was not trained for it.
    """
    sampler = sampler_named(sampler_for(notes.folder, request))
    where = request.schedule
    where = where or schedule_to_start_on(denoiser, sampler, request.steps, request.rule)
    table = plan(sampler, where or denoiser.schedule, request.steps)
    null = notes.null if text is None else text.null
    network = guide(denoiser, request.scale, null, request.rule)
    device = device_of(denoiser)
    cycle = label_tensor(notes.classes if request.labels is None else request.labels, notes.classes)
    given_to_all = {} if text is None else {k: row.to(device) for k, row in text.row.items()}

    def draw(rows: range, tell: Callable[[int, int], None] | None = None) -> Tensor:
        given = {k: row.expand(len(rows), *row.shape[1:]) for k, row in given_to_all.items()}
        if len(cycle):
            given["class_labels"] = cycle[torch.tensor(rows) % len(cycle)].to(device)
        with one_sentence(f"{notes.folder} cannot be sampled in its shape, {notes.shape}"):
            drawn = sample(
                network,
                (len(rows), *notes.shape),
                sampler=table,
                seed=request.seed,
                indices=rows,
                progress=tell or False,
                trajectory=kept is not None,
                **nested(given),
            )
            return kept(drawn) if kept else drawn

    return draw


def guide(
    denoiser: Denoiser, scale: float, null: Mapping[str, Any], rule: str | None = None
) -> Denoises:
    """The denoiser under classifier-free guidance; the denoiser itself at scale 1.

    rule: the name of another rule, see `mixing.rule_named`.
    null: the conditioning that stands for none, by name; ValueError if guidance needs one.
    """
    if scale == 1.0:
        return denoiser
    if not null:
        raise ValueError("guidance needs a model trained with dropped classes; this one was not")
    mixed = None if rule is None else rule_named(rule)
    return classifier_free(denoiser, scale, null=dict(null), rule=mixed)


def schedule_to_start_on(
    denoiser: Denoiser, sampler: str | Sampler, steps: int, rule: str | None = None
) -> Schedule | None:
    """The schedule that a run should be on, None if that is the denoiser's own.

    Where a sampler begins at pure noise, an output of eps or a score tells nothing of x, be it the
    network's or that in which a guidance rule acts; then it is cosine(-12, 12), which begins a
    little below.
    """
    outputs = [denoiser.output]
    if rule is not None:
        outputs.append(output_named(rule_named(rule).output, denoiser.schedule))
    first = sampler_named(sampler).grid.logsnrs(denoiser.schedule, steps)[0]
    try:
        for output in outputs:
            output.solve(denoiser.schedule.level(first))
    except ValueError:
        return Cosine(-12.0, 12.0)
    return None


def draw_classes(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    classes: Sequence[str],
    *,
    seed: int,
    count: int = IN_TURN,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Any:
    """A picture, by 20 DDIM steps, of one sample of each class.

    shape: of one sample.
    classes: their names, of which the first 52 are drawn; if there are none, `count` samples.
    decode: the function that makes images of samples, for models of latents.
    """
    count = min(len(classes), 52) or count
    labels: dict[str, Any] = {"class_labels": torch.arange(count)} if classes else {}
    where = schedule_to_start_on(denoiser, "ddim", 20)
    x = sample(denoiser, (count, *shape), steps=20, seed=seed, schedule=where, **labels)
    return sheet(decode(x) if decode else x)
