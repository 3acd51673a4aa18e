"""Pictures of a pipeline by names: what `twosides sample` runs on a pipeline's folder."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from twosides.display import pictures
from twosides.generation.samples import chosen_sampler
from twosides.integrations.diffusers.pipelines import inputs, load_pipeline
from twosides.integrations.diffusers.scheduler import Scheduler
from twosides.storage.files import write_file


def sample_pipeline(
    folder: str | Path,
    *,
    out: Path,
    sampler: str,
    steps: int,
    noise: str | None,
    grid: str | None,
    compat: str | None,
    count: int,
    labels: str | None,
    prompt: str | None,
    negative_prompt: str | None,
    guidance: float | None,
    seed: int,
) -> Tensor:
    """Run a pipeline's folder with a sampler and write the pictures, (B, C, H, W) in [-1, 1].

    out: .png for one picture or all in one, .npy for the numbers, or a folder for a PNG of each.
    Picture i depends on (seed, i) only. ValueError for what the pipeline does not take.
    """
    if out.suffix not in ("", ".png", ".npy"):
        raise ValueError(
            f"{out}: pictures are written as .png, .npy or into a folder, not {out.suffix!r}"
        )
    options = {"sampler": sampler, "compat": compat}
    if noise is not None or grid is not None:
        options = {"sampler": chosen_sampler(sampler, noise, grid, compat)}
    pipe = load_pipeline(Path(folder))
    pipe.scheduler = Scheduler.from_pipeline(pipe, seed=seed, **options)
    given = inputs(pipe, prompt, negative_prompt, guidance, labels, count)
    rows = given.get("batch_size") or len(given.get("class_labels") or given["prompt"])
    generators = [_generator(seed, row) for row in range(rows)]
    answer = pipe(**given, num_inference_steps=steps, generator=generators, output_type="np")
    x = torch.from_numpy(np.asarray(answer.images)).permute(0, 3, 1, 2) * 2 - 1
    _write(x, out)
    return x


def _generator(seed: int, row: int) -> torch.Generator:
    state = np.random.SeedSequence((seed, row)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _write(x: Tensor, out: Path) -> None:
    if out.suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, x.numpy(), allow_pickle=False)
        write_file(out, buffer.getvalue())
    elif out.suffix == ".png":
        columns = math.ceil(len(x) ** 0.5)
        gap = 0 if len(x) == 1 else 1
        write_file(out, pictures.png(pictures.grid(x, columns, zoom=1, gap=gap)))
    else:
        out.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(x):
            picture = pictures.grid(image[None], 1, zoom=1, gap=0)
            write_file(out / f"{number:05d}.png", pictures.png(picture))
