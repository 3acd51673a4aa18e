"""The pipeline that encoded a model's data, found again to decode samples or read prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twosides.integrations.diffusers.latents import to_images
from twosides.integrations.diffusers.networks import load_part, network_name, parts_of
from twosides.storage.devices import device_named
from twosides.storage.reading import sha256

AT_ONCE = 8  # the images that are decoded together


def pipeline_notes(folder: Path, size: int, captions: bool) -> dict[str, Any]:
    """The notes on the pipeline that encoded latents: its folder, its VAE, its text encoders.

    folder: the pipeline's folder.
    size: the pixels a side of the images.
    captions: whether texts were encoded, too.

    "vae" and "texts" are digests of files, "" where these were not used.
    """
    texts = _digest(folder, "texts") if captions else ""
    return {
        "folder": str(folder.absolute()),
        "size": size,
        "vae": _digest(folder, "vae"),
        "texts": texts,
    }


def find_pipeline(notes: Mapping[str, Any], part: str, override: Path | None = None) -> Path:
    """The folder of the pipeline that encoded latents, or another that is to be used.

    notes: the notes of `pipeline_notes`.
    part: "vae" or "texts", the part that will be used, which must be unchanged.
    override: the folder of another pipeline, which is used as it is.

    ValueError if the pipeline is gone or was changed, or if `override` is no pipeline.
    """
    folder = override or Path(str(notes.get("folder")))
    there = (folder / "model_index.json").is_file() and "vae" in parts_of(folder)
    if override is not None and not there:
        raise ValueError(f"{override} is no diffusers pipeline with a VAE; pass the folder of one")
    if override is None and not (there and _digest(folder, part) == notes.get(part)):
        reason = "is changed" if there else "is no longer there"
        raise ValueError(
            f"the samples are latents of the pipeline {folder}, which {reason}; `twosides sample "
            "--pipeline FOLDER` takes another, and without a prompt .npy files need none"
        )
    return folder


def decode_latents(latents: Tensor, folder: Path) -> Tensor:
    """Latents (B, C, h, w) as images (B, 3, H, W) in [-1, 1], without clamping."""
    vae = load_part(folder, "vae").eval()
    vae.to(device_named())
    return torch.cat([to_images(vae, part).cpu() for part in latents.split(AT_ONCE)])


def _digest(folder: Path, part: str) -> str:
    """The SHA-256 of the files of the VAE, or of all parts that read texts."""
    parts, digest = parts_of(folder), hashlib.sha256()
    texts = sorted(parts.keys() - {network_name(parts), "scheduler", "vae"})
    for path in _files(folder, texts if part == "texts" else ["vae"]):
        digest.update(f"{path.parent.name}/{path.name}".encode())
        digest.update(bytes.fromhex(sha256(path)))
    return digest.hexdigest()


def _files(folder: Path, parts: Iterable[str]) -> list[Path]:
    return [path for part in parts for path in sorted((folder / part).glob("*.*"))]
