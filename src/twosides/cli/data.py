"""Commands on data: `twosides data | encode-latents`."""

from __future__ import annotations

from pathlib import Path

import tyro

from twosides.display.terminal import say

Positional = tyro.conf.Positional


def data(
    name: Positional[str],
    /,
    *,
    out: Path | None = None,
    most: int | None = None,
) -> None:
    """Read all of the data and say what is there: count, classes, moments, bad files and why.

    Args:
        name: as for train.
        out: a picture to write, .png: samples spread over the data.
        most: read so many samples at most.
    """
    from twosides.data.summary import summary

    say(summary(name, out, most))


def encode_latents(
    data: Positional[str],
    /,
    *,
    pipeline: Path,
    out: Path,
    batch: int = 16,
    captions: bool = False,
) -> None:
    """Encode images with a pipeline's VAE, to train on; continues after an interruption.

    Args:
        data: images, such as "folder:photos?size=256,flip".
        pipeline: a diffusers pipeline's folder; only safetensors are read.
        out: a new folder for the latents: `twosides train latents:FOLDER`.
        batch: images encoded at once.
        captions: encode the texts beside the images too (a.txt beside a.png) as what the pipeline
            tells its network of them, and train on them.
    """
    from twosides.data.encode import encode_latents as encode
    from twosides.data.images import Images
    from twosides.data.named import task_named

    images = task_named(data).data
    if not isinstance(images, Images):
        raise ValueError(f"{data} is no set of images that can be read by number")
    say(f"{len(encode(images, data, pipeline, out, batch=batch, captions=captions))} latents")
    say(f"{out} is ready: twosides train latents:{out}")
