"""Images through a pipeline's VAE, once before training: what `twosides encode-latents` runs.

Shards of ROWS images appear complete or not at all, so that the same command goes on after a kill,
and gives what an uninterrupted one gives. Captions go through the pipeline's text encoder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twosides.data.images import File, Images
from twosides.data.latents import BAD, ENCODING, SHARD, SUMMARY, Latents, shard_folder
from twosides.integrations.diffusers.draw import load_pipeline
from twosides.integrations.diffusers.networks import posterior, present, read_index
from twosides.progress import bar
from twosides.storage import (
    commit_folder,
    load_tensors,
    save_tensors,
    save_tree,
    verify_folder,
    write_file,
)

ROWS = 256  # a shard's: what a kill costs at most
READERS = ("StableDiffusionPipeline",)
"""Pipelines whose network is told a text by `encoder_hidden_states` alone."""


def encode_latents(
    data: Images, source: str, pipeline: Path, out: Path, *, batch: int = 16, captions: bool = False
) -> Latents:
    """Write the latents of all good images, mirror images included, and return them.

    source: what `data` is called; the folder belongs to it, to the pipeline and to the options.
    captions: embed the texts beside the images, which then replace the classes.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    vae, texts = _loaded(pipeline, captions)
    identity = {"data": source, "images": len(data), "captions": captions, "batch": batch}
    identity |= {"size": data.frame.size, "flip": data.flip, "pipeline": _weights(pipeline)}
    _same(out, identity)
    shards = range(-(-len(data) // ROWS))
    with bar("encoding", len(data)) as tell:
        for number in shards:
            rows = range(number * ROWS, min((number + 1) * ROWS, len(data)))
            if not shard_folder(out, number).is_dir():
                encoded = _shard(data, rows, batch, vae, texts, tell)
                places = [row % len(data.files) for row in rows]
                bad = [data.bad[place] for place in places if place in data.bad]
                commit_folder(shard_folder(out, number), _writer(encoded, bad))
            tell(rows.stop, len(data))
    null = texts([""]) if texts else None
    commit_folder(out / SUMMARY, lambda folder: save_tree(folder, _summary(out, data, null)))
    return Latents(out)


Texts = Callable[[list[str]], Tensor]
"""Captions to embeddings (B, L, width)."""


def _loaded(folder: Path, captions: bool) -> tuple[Any, Texts | None]:
    """The VAE and, for captions, the text encoder."""
    index = read_index(folder)
    name = index.get("_class_name")
    if not present(index.get("vae")):
        raise ValueError(f"{folder} is a {name} without a VAE: its data are images themselves")
    if captions and name not in READERS:
        raise ValueError(
            f"captions for {name} are more than one tensor; they can be encoded for "
            f"{', '.join(READERS)}. Encode without --captions"
        )
    pipe = load_pipeline(folder, network=False)
    vae = pipe.vae.float().eval()

    @torch.no_grad()
    def texts(words: list[str]) -> Tensor:
        return pipe.encode_prompt(words, vae.device, 1, False)[0].float().cpu()

    return vae, texts if captions else None


def _weights(folder: Path) -> str:
    """What the latents are a function of: the VAE's (and text encoder's) files."""
    digest = hashlib.sha256()
    for part in ("vae", "text_encoder", "tokenizer"):
        for path in sorted((folder / part).glob("*.*")):
            digest.update(f"{part}/{path.name}".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _same(out: Path, identity: dict[str, Any]) -> None:
    path, text = out / ENCODING, json.dumps(identity, indent=1)
    if not path.is_file():
        if out.exists() and any(out.iterdir()):
            raise FileExistsError(f"{out} exists and holds no latents; choose a new folder")
        out.mkdir(parents=True, exist_ok=True)
        write_file(path, text.encode())
    elif (found := path.read_text(encoding="utf-8")) != text:
        changed = sorted(set(text.splitlines()) ^ set(found.splitlines()))
        raise ValueError(
            f"{out} holds other latents. What differs: {'; '.join(s.strip() for s in changed)}. "
            "Choose another folder"
        )


def _shard(
    data: Images,
    rows: range,
    batch: int,
    vae: Any,
    texts: Texts | None,
    tell: Callable[[int, int], None],
) -> dict[str, Tensor]:
    """The tensors of the good images among these."""
    parts: list[dict[str, Tensor]] = []
    for start in range(rows.start, rows.stop, batch):
        several = [_read(data, row) for row in range(start, min(start + batch, rows.stop))]
        good = [(row, *read) for row, read in several if read is not None]
        if good:
            parts.append(_encoded(good, vae, texts))
        tell(min(start + batch, rows.stop), len(data))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _read(data: Images, row: int) -> tuple[int, tuple[Tensor, File] | None]:
    read = data.read(row % len(data.files))
    if read is not None and row >= len(data.files):
        read = (read[0].flip(-1), read[1])
    return row, read


def _encoded(
    good: list[tuple[int, Tensor, File]], vae: Any, texts: Texts | None
) -> dict[str, Tensor]:
    images = torch.stack([x.expand(3, *x.shape[1:]) for _, x, _ in good])
    mean, std = (part.cpu() for part in posterior(vae, images))
    found = {"mean": mean, "std": std, "index": torch.tensor([row for row, _, _ in good])}
    labels = [file.label for _, _, file in good]
    if None not in labels:
        found["class_labels"] = torch.tensor(labels)
    if texts:
        missing = [file.name for _, _, file in good if file.caption is None]
        if missing:
            raise ValueError(f"{missing[0]} has no caption; write one, or leave out --captions")
        found["encoder_hidden_states"] = texts([str(file.caption) for _, _, file in good])
    return found


def _writer(tensors: dict[str, Tensor], bad: list[str]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        save_tensors(folder / SHARD, tensors)
        (folder / BAD).write_text(json.dumps(bad), encoding="utf-8")

    return write


def _summary(out: Path, data: Images, null: Tensor | None) -> dict[str, Any]:
    """Counts, classes and the moments of x = mean + std n, over all shards and places."""
    counts, bad, shape = list[int](), list[str](), ()
    totals = torch.zeros(3, 1, dtype=torch.float64)
    for number in range(-(-len(data) // ROWS)):
        folder = shard_folder(out, number)
        verify_folder(folder)
        shard = load_tensors(folder / SHARD)
        bad += json.loads((folder / BAD).read_text(encoding="utf-8"))
        counts.append(len(shard["index"]) if shard else 0)
        if shard:
            mean, std = shard["mean"].double(), shard["std"].double()
            shape = tuple(mean.shape[1:])
            ones, squares = torch.ones_like(mean), mean**2 + std**2
            totals = totals + torch.stack([t.sum((0, 2, 3)) for t in (ones, mean, squares)])
    if not shape:
        raise ValueError(f"none of the {len(data)} images is good: {bad[:5]}")
    first, second = totals[1] / totals[0], totals[2] / totals[0]
    return {
        "shape": list(shape),
        "counts": counts,
        "classes": [] if null is not None else list(data.classes),
        "bad": list(dict.fromkeys(bad)),
        "null": null,
        "data_mean": first.reshape(-1, 1, 1),
        "data_std": (second - first**2).sqrt().reshape(-1, 1, 1),
    }
