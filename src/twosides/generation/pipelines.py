"""Pictures of a pipeline by names: what `twosides sample` runs on a pipeline's folder."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from twosides.display import pictures
from twosides.generation.automatic import sampler_for
from twosides.generation.notes import one_sentence
from twosides.generation.request import Request
from twosides.integrations.diffusers.pipelines import inputs, load_pipeline
from twosides.integrations.diffusers.scheduler import Scheduler
from twosides.storage.files import write_file


def sample_pipeline(folder: str | Path, request: Request, out: Path) -> Tensor:
    """Run a pipeline with a sampler, write the pictures and return them, (B, C, H, W) in [-1, 1].

    folder: the pipeline's; only safetensors are read, and no code of it is run.
    request: how to sample. Picture i depends on (seed, i) only.
    out: a .png for one picture or all in one, a .npy for the numbers, or a folder for a .png each.

    ValueError for what the pipeline does not take.
    """
    if out.suffix not in ("", ".png", ".npy"):
        raise ValueError(
            f"{out}: pictures are written as .png, .npy or into a folder, not {out.suffix!r}"
        )
    if request.schedule is not None:
        raise ValueError("a pipeline is sampled on its own schedule; leave schedule out")
    if request.rule is not None:
        raise ValueError("a pipeline guides in its own way; leave rule out, or use load_denoiser")
    pipe = load_pipeline(Path(folder), device=request.device)
    sampler = sampler_for(Path(folder), request)
    pipe.scheduler = Scheduler.from_pipeline(pipe, sampler, seed=request.seed)
    given = inputs(
        pipe,
        request.count or 1,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        guidance_scale=request.guidance,
        class_labels=request.labels,
    )
    rows = given.get("batch_size") or len(given.get("class_labels") or given["prompt"])
    generators = [_generator(request.seed, row) for row in range(rows)]
    with one_sentence(f"{folder} cannot be run"):
        answer = pipe(
            **given, num_inference_steps=request.steps, generator=generators, output_type="np"
        )
    x = torch.from_numpy(np.asarray(answer.images)).permute(0, 3, 1, 2) * 2 - 1
    _write(x, out)
    return x


def _generator(seed: int, row: int) -> torch.Generator:
    state = np.random.SeedSequence((seed, row)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _write(x: Tensor, out: Path) -> None:
    if out.suffix == ".npy":
        write_file(out, pictures.npy(x))
    elif out.suffix == ".png":
        columns = math.ceil(len(x) ** 0.5)
        gap = 0 if len(x) == 1 else 1
        write_file(out, pictures.png(pictures.grid(x, columns, zoom=1, gap=gap)))
    else:
        out.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(x):
            picture = pictures.grid(image[None], 1, zoom=1, gap=0)
            write_file(out / f"{number:05d}.png", pictures.png(picture))
