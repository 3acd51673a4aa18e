"""The denoiser that is tuned, from the folder of a model, of a training run or of a pipeline.

A sampler is tuned for the very denoiser that will be sampled: with its guidance, and told the same
kind of classes or prompts. The initial noises of the tuning (just "noises" here) therefore have a
row of conditioning each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twosides.conditioning import moved, nested
from twosides.denoiser import Denoises
from twosides.generation.notes import Notes, load_model, one_sentence, read_notes
from twosides.generation.samples import decoder, guide, label_tensor
from twosides.placement import device_of
from twosides.storage.models import is_pipeline

Rows = dict[str, Tensor]  # conditioning by its name, a row for each class, prompt or noise


@dataclass(frozen=True, eq=False)
class Wish:
    """How the denoiser will be sampled, which is what the sampler is tuned for.

    count: the number of noises that are fitted, >= 1.
    guidance: the scale of classifier-free guidance; 1, the default, is none.
    labels: the names of classes, which are repeated over the noises; by default all classes in
        turn. A pipeline's classes are numbers with commas, "207,360".
    prompts: texts, which are repeated over the noises; a model or pipeline that reads text needs
        at least one.
    size: the side of a pipeline's square pictures in pixels; by default the size that its network's
        config states. A model's folder states its shape, so that no size may be given for it.
    """

    count: int
    guidance: float = 1.0
    labels: str | None = None
    prompts: tuple[str, ...] = ()
    size: int | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """What is tuned.

    denoiser: the denoiser with its guidance.
    shape: the shape of one sample.
    conditioning: what the network is told, nested as it takes it, one row for each noise.
    decode: the function that makes images of latents; None for samples that are data themselves.
    """

    denoiser: Denoises
    shape: tuple[int, ...]
    conditioning: dict[str, Any]
    decode: Callable[[Tensor], Tensor] | None


def source_of(folder: Path, wish: Wish, *, trust_code: bool = False) -> Source:
    """The denoiser of a folder as it will be sampled, and what it needs for that.

    folder: the folder of a model or of a training run, or of a diffusers pipeline.
    wish: how it will be sampled.
    trust_code: whether a model's class may be imported from outside of diffusers and twosides.

    ValueError for a wish that the folder does not suit: prompts for a model without captions or
    none for one with them, unknown classes, guidance for a model that was not trained for it, a
    size for a model, and a pipeline whose latents are not of one square shape.
    """
    return (
        _pipeline(Path(folder), wish) if is_pipeline(folder) else _model(folder, wish, trust_code)
    )


def _model(folder: Path, wish: Wish, trust_code: bool) -> Source:
    """The source of a model's or a run's folder."""
    notes = read_notes(folder)
    if wish.size is not None:
        raise ValueError(f"{folder} has samples of shape {notes.shape}; leave size out")
    denoiser = load_model(folder, trust_code=trust_code)
    rows, null = dict[str, Tensor](), notes.null
    if wish.prompts or notes.captioned:
        rows, null = _texts(notes, wish)
    names = notes.classes if wish.labels is None else wish.labels
    cycle = label_tensor(names, notes.classes)
    if len(cycle):
        rows["class_labels"] = cycle
    guided = guide(denoiser, wish.guidance, null)
    decode = decoder(notes.pipeline) if notes.pipeline else None
    return _source(guided, notes.shape, rows, wish, decode)


def _texts(notes: Notes, wish: Wish) -> tuple[Rows, Mapping[str, Any]]:
    """The conditioning of the prompts, for a model that was trained on captions, and its null.

    The null is what guidance tells the network instead, here that of an empty text.
    """
    if not notes.captioned:
        raise ValueError("this model takes no prompts: it was not trained on captions")
    from twosides.integrations.diffusers.encoders import find_pipeline
    from twosides.integrations.diffusers.texts import Texts

    pipeline = find_pipeline(notes.pipeline, "texts")
    texts = Texts(pipeline, int(notes.pipeline["size"]))
    return _joined(_needed(wish), texts), texts.null


def _needed(wish: Wish) -> Sequence[str]:
    """The prompts, no more than there are noises; ValueError if there are none."""
    if not wish.prompts:
        raise ValueError("this model draws what a text says; give it some: prompts=FILE")
    return wish.prompts[: wish.count]


def _joined(prompts: Sequence[str], texts: Callable[[str], Rows]) -> Rows:
    """The conditioning of the prompts, a row for each."""
    told = [texts(prompt) for prompt in prompts]
    return {name: torch.cat([each[name] for each in told]) for name in told[0]}


def _pipeline(folder: Path, wish: Wish) -> Source:
    """The source of a diffusers pipeline's folder."""
    from twosides.integrations.diffusers import load_denoiser
    from twosides.integrations.diffusers.networks import parts_of
    from twosides.integrations.diffusers.texts import Texts

    with one_sentence(f"{folder} cannot be read as a pipeline"):
        plain: Any = load_denoiser(folder)
        network = getattr(plain.network, "network", plain.network)
        config = network.config
    # A VAE halves the sides between its blocks: a latent's side is the picture's divided by scale.
    scale = 2 ** (len(plain.vae.config.get("block_out_channels", (1,))) - 1) if plain.vae else 1
    if wish.size is not None and wish.size % scale:
        raise ValueError(
            f"a side of this pipeline is a multiple of {scale} pixels, not {wish.size}"
        )
    side = config.get("sample_size") if wish.size is None else wish.size // scale
    channels = config.get("in_channels")
    if not isinstance(side, int) or not isinstance(channels, int) or config.get("patch_size_t"):
        raise ValueError(
            f"{type(network).__name__} has no latents of one square shape that its config states; "
            "tune it in Python: twosides.tune(load_denoiser(...), shape, ...)"
        )
    rows, null = dict[str, Tensor](), dict[str, Any]()
    if "tokenizer" in parts_of(folder):
        if wish.labels is not None:
            raise ValueError("this pipeline reads text and takes no labels; pass prompts")
        texts = Texts(folder, side * scale)
        rows, null = _joined(_needed(wish), texts), texts.null
    elif config.get("num_embeds_ada_norm") or config.get("num_class_embeds"):
        classes = config.get("num_embeds_ada_norm") or config.get("num_class_embeds")
        numbers = [*(range(classes) if wish.labels is None else map(int, wish.labels.split(",")))]
        if wish.prompts or not all(0 <= number < classes for number in numbers):
            raise ValueError(
                f"this pipeline draws classes by number, 0 to {classes - 1}, and reads no text; "
                f"got labels {wish.labels} and {len(wish.prompts)} prompts"
            )
        rows, null = {"class_labels": torch.tensor(numbers)}, {"class_labels": classes}
    elif wish.labels is not None or wish.prompts:
        raise ValueError("this pipeline takes neither labels nor prompts; leave them out")
    guided = plain if wish.guidance == 1 else guide(plain, wish.guidance, null)
    decode = plain.decode if plain.vae is not None else None
    return _source(guided, (channels, side, side), rows, wish, decode)


def _source(
    denoiser: Denoises,
    shape: tuple[int, ...],
    rows: Rows,
    wish: Wish,
    decode: Callable[[Tensor], Tensor] | None,
) -> Source:
    """The source, with the rows repeated until there is one for each noise."""
    numbers = torch.arange(wish.count)
    told = {name: value[numbers % len(value)] for name, value in rows.items()}
    return Source(denoiser, shape, moved(nested(told), device_of(denoiser)), decode)
