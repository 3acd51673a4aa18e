"""Encode images by a pipeline's VAE once, before training: `twosides encode-latents` runs this.

Shards of ROWS images appear complete or not at all, so that the same command continues after a
kill, and gives what an uninterrupted one gives. Captions are stored as the tensors that the
pipeline gives to its network.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twosides.data.images import File, Images
from twosides.data.latents import BAD, ENCODING, SHARD, SUMMARY, Latents, shard_folder
from twosides.display.progress import bar
from twosides.integrations.diffusers.encoders import pipeline_notes
from twosides.integrations.diffusers.latents import posterior
from twosides.integrations.diffusers.networks import parts_of, read_index
from twosides.integrations.diffusers.pipelines import load_pipeline
from twosides.integrations.diffusers.texts import Texts
from twosides.storage.files import commit_folder, verify_folder
from twosides.storage.owner import claim
from twosides.storage.reading import MAX_JSON, read_file
from twosides.storage.tensors import load_tensors, save_tensors
from twosides.storage.trees import save_tree

ROWS = 256  # the images of a shard, which is what a kill costs at most


def encode_latents(
    data: Images, source: str, pipeline: Path, out: Path, *, batch: int = 16, captions: bool = False
) -> Latents:
    """Write the latents of all good images, mirror images included, and return them.

    data: the images.
    source: the name of the data, which is recorded with the pipeline and the options; another
        command with the same folder is refused.
    pipeline: the folder of a diffusers pipeline with a VAE.
    out: the folder to write.
    batch: the number of images that are encoded at a time.
    captions: whether to encode the texts beside the images, which then replace the classes.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    vae, texts = _load_encoders(pipeline, data.frame.size, captions)
    identity = {"data": source, "images": len(data), "captions": captions, "batch": batch}
    origin = pipeline_notes(pipeline, data.frame.size, captions)
    identity |= {name: value for name, value in origin.items() if name != "folder"}
    claim(out / ENCODING, identity | {"flip": data.flip}, "latents")
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
    summary = {**_summary(out, data, texts.null if texts else {}), "pipeline": origin}
    commit_folder(out / SUMMARY, lambda folder: save_tree(folder, summary))
    return Latents(out)


def _load_encoders(folder: Path, size: int, captions: bool) -> tuple[Any, Texts | None]:
    """The VAE and, for captions, the encoder of texts."""
    if "vae" not in parts_of(folder):
        kind = read_index(folder).get("_class_name")
        raise ValueError(f"{folder} is a {kind} without a VAE: its data are images themselves")
    texts = Texts(folder, size) if captions else None
    pipe = texts.pipe if texts else load_pipeline(folder, network=False)
    factor = getattr(pipe, "vae_scale_factor", 1)
    if size % factor:
        raise ValueError(
            f"images of {size} pixels do not fit the VAE, which makes one latent pixel of {factor} "
            f"by {factor}: take size={size - size % factor or factor}"
        )
    return pipe.vae.float().eval(), texts


def _shard(
    data: Images,
    rows: range,
    batch: int,
    vae: Any,
    texts: Texts | None,
    tell: Callable[[int, int], None],
) -> dict[str, Tensor]:
    """The tensors of the good images among these rows."""
    parts: list[dict[str, Tensor]] = []
    for start in range(rows.start, rows.stop, batch):
        several = [_read(data, row) for row in range(start, min(start + batch, rows.stop))]
        good = [(row, *read) for row, read in several if read is not None]
        if good:
            parts.append(_encode(good, vae, texts))
        tell(min(start + batch, rows.stop), len(data))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _read(data: Images, row: int) -> tuple[int, tuple[Tensor, File] | None]:
    """The image of a row, mirrored in the second half of the rows; None for a bad one."""
    read = data.read(row % len(data.files))
    if read is not None and row >= len(data.files):
        read = (read[0].flip(-1), read[1])
    return row, read


def _encode(
    good: list[tuple[int, Tensor, File]], vae: Any, texts: Texts | None
) -> dict[str, Tensor]:
    """The latents of some images, with their classes or encoded captions."""
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
        encoded = [texts(str(file.caption)) for _, _, file in good]
        found |= {name: torch.cat([row[name] for row in encoded]) for name in texts.null}
    return found


def _writer(tensors: dict[str, Tensor], bad: list[str]) -> Callable[[Path], None]:
    """A function that writes a shard into a folder."""

    def write(folder: Path) -> None:
        save_tensors(folder / SHARD, tensors)
        (folder / BAD).write_text(json.dumps(bad), encoding="utf-8")

    return write


def _summary(out: Path, data: Images, null: dict[str, Tensor]) -> dict[str, Any]:
    """The counts, the classes and the moments of x = mean + std n, over all shards and places."""
    counts, bad, shape = list[int](), list[str](), ()
    totals = torch.zeros(3, 1, dtype=torch.float64)
    for number in range(-(-len(data) // ROWS)):
        folder = shard_folder(out, number)
        verify_folder(folder)
        shard = load_tensors(folder / SHARD)
        bad += json.loads(read_file(folder / BAD, MAX_JSON))
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
        "classes": [] if null else list(data.classes),
        "bad": list(dict.fromkeys(bad)),
        "null": null,
        "data_mean": first.reshape(-1, 1, 1),
        "data_std": (second - first**2).sqrt().reshape(-1, 1, 1),
    }
