"""Pipelines by their folders, and the arguments of a call: `twosides sample` uses them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from twosides.integrations.diffusers.facts import stored_dtype
from twosides.integrations.diffusers.folders import guard_reading
from twosides.integrations.diffusers.networks import (
    in_dtype,
    is_present,
    network_name,
    read_index,
)
from twosides.storage.devices import device_named


def load_pipeline(folder: Path, *, network: nn.Module | bool = True, device: str = "auto") -> Any:
    """A pipeline from safetensors, on the device of this name. No code of it is run.

    folder: the pipeline's folder.
    network: True for its own network, another network to use in its place, or False for the parts
        around it alone: the VAE, the text encoders.
    device: "auto", the accelerator if there is one and else the CPU, or a name, see
        `storage.devices.device_named`.
    """
    with guard_reading(folder):
        index = read_index(folder)
        parts = {key: value for key, value in index.items() if isinstance(value, list | tuple)}
        _refuse_strangers(str(index.get("_class_name")), parts)
        # diffusers has to be told again of parts that were saved as absent.
        absent: dict[str, Any] = {}
        absent |= {k: None for k, v in parts.items() if len(v) == 2 and not is_present(v)}
        name = network_name({key: value for key, value in parts.items() if is_present(value)})
        place, dtype = placement(folder / name, device)
        absent |= {} if network is True else {name: network or None}
        pipeline: Any = getattr(diffusers, "DiffusionPipeline")  # noqa: B009 - exported lazily
        with torch.random.fork_rng(devices=[]):  # some parts are built with random weights first
            options = {"use_safetensors": True, "local_files_only": True, **in_dtype(dtype)}
            pipe = pipeline.from_pretrained(str(folder), **options, **absent)
    return pipe if place.type == "cpu" else pipe.to(place)


def placement(network: Path, device: str = "auto") -> tuple[torch.device, torch.dtype | None]:
    """The device and dtype of a pipeline: on an accelerator, the dtype of the stored network."""
    place = device_named(device)
    return place, None if place.type == "cpu" else stored_dtype(network)


def _refuse_strangers(kind: str, parts: dict[str, Any]) -> None:
    """Refuse modules of other packages, which diffusers would import, and connected pipelines."""
    if getattr(getattr(diffusers, kind, None), "_load_connected_pipes", False):
        raise ValueError(f"{kind} loads pipelines that its model card names; do that in Python")
    for part, entry in parts.items():
        root = str(entry[0]).split(".")[0] if is_present(entry) else "diffusers"
        own = root in ("diffusers", "transformers", "twosides")
        if not own and part != "_class_name" and not hasattr(diffusers.pipelines, root):
            raise ValueError(
                f"the pipeline's {part} is of the module {entry[0]}, neither of diffusers nor of "
                "transformers; load it in Python"
            )


def inputs(pipe: Any, count: int, **wishes: Any) -> dict[str, Any]:
    """The keyword arguments with which a pipeline is called.

    pipe: the pipeline.
    count: the number of pictures, unless it follows from the class labels.
    wishes: prompt, negative_prompt, guidance_scale, and class_labels as a text of numbers with
        commas; None leaves the choice to the pipeline.

    ValueError for an argument that the pipeline does not take, or that is missing.
    """
    takes, name = inspect.signature(type(pipe).__call__).parameters, type(pipe).__name__
    given = {key: value for key, value in wishes.items() if value is not None}
    if wrong := [key for key in given if key not in takes]:
        raise ValueError(f"{name} takes no {wrong[0].replace('_', ' ')}; leave it out")
    if {"image", "num_frames"} & takes.keys():
        raise ValueError(f"{name} makes or takes more than pictures from noise; run it in Python")
    if "prompt" in takes:
        _check_text(pipe, given.get("prompt"))
        guidance = given.get("guidance_scale")
        if "negative_prompt" in given and guidance is not None and guidance <= 1:
            raise ValueError(
                f"guidance {guidance} does not use a negative prompt; leave negative_prompt out"
            )
        texts = {key: [given[key]] * count for key in ("prompt", "negative_prompt") if key in given}
        return given | texts
    if "class_labels" not in takes:
        return given | {"batch_size": count}
    return given | {"class_labels": _numbers(given.get("class_labels"), name)}


def _check_text(pipe: Any, prompt: str | None) -> None:
    if getattr(pipe, "tokenizer", None) is None:
        raise ValueError(
            "this pipeline has no tokenizer, so it cannot read a prompt; run it in Python with "
            "prompt_embeds"
        )
    if prompt is None:
        raise ValueError(f"{type(pipe).__name__} needs a prompt: prompt='a lighthouse at dusk'")


def _numbers(labels: str | None, name: str) -> list[int]:
    try:
        return [int(label) for label in (labels or "").split(",")]
    except ValueError:
        raise ValueError(
            f"{name} draws classes by number, labels=207,360, but got {labels!r}"
        ) from None
