"""The pipeline that encoded what a model was trained on, found again: decodes, reads prompts."""

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

AT_ONCE = 8  # images decoded together


def described(folder: Path, size: int, captions: bool) -> dict[str, Any]:
    """What latents say of the pipeline that encoded them: where it is, its VAE, its text encoders.

    size: of the images. "vae" and "texts" are digests of files, "" where these were not used.
    """
    texts = _digest(folder, "texts") if captions else ""
    return {
        "folder": str(folder.absolute()),
        "size": size,
        "vae": _digest(folder, "vae"),
        "texts": texts,
    }


def found(said: Mapping[str, Any], use: str, asked: Path | None = None) -> Path:
    """The pipeline `asked` for, or else the one `described`, if its "vae" or "texts" is the same.

    ValueError if it is gone or was changed, or if what is asked for is no pipeline.
    """
    folder = asked or Path(str(said.get("folder")))
    there = (folder / "model_index.json").is_file() and "vae" in parts_of(folder)
    if asked is not None and not there:
        raise ValueError(f"{asked} is no diffusers pipeline with a VAE; pass the folder of one")
    if asked is None and not (there and _digest(folder, use) == said.get(use)):
        reason = "is changed" if there else "is no longer there"
        raise ValueError(
            f"the samples are latents of the pipeline {folder}, which {reason}; `twosides sample "
            "--pipeline FOLDER` takes another, and without a prompt .npy files need none"
        )
    return folder


def decoded(latents: Tensor, folder: Path) -> Tensor:
    """Latents (B, C, h, w) as images (B, 3, H, W) in [-1, 1], nothing clamped."""
    vae = load_part(folder, "vae").eval()
    vae.to(device_named())
    return torch.cat([to_images(vae, part).cpu() for part in latents.split(AT_ONCE)])


def _digest(folder: Path, use: str) -> str:
    """SHA-256 of the files of the VAE, or of all that reads texts."""
    parts, digest = parts_of(folder), hashlib.sha256()
    texts = sorted(parts.keys() - {network_name(parts), "scheduler", "vae"})
    for path in _files(folder, texts if use == "texts" else ["vae"]):
        digest.update(f"{path.parent.name}/{path.name}".encode())
        digest.update(bytes.fromhex(sha256(path)))
    return digest.hexdigest()


def _files(folder: Path, parts: Iterable[str]) -> list[Path]:
    return [path for part in parts for path in sorted((folder / part).glob("*.*"))]
