"""Any sampler in a pipeline of diffusers.

    python examples/pipeline_sampler.py [PIPELINE] [sampler] [steps]

PIPELINE is a folder or a name on the hub; without it a tiny one with random weights is made.
"""

import sys

import diffusers
import torch

from twosides.integrations.diffusers import Scheduler, explain


def tiny() -> diffusers.DiffusionPipeline:
    """A pipeline that needs no download; its pictures are noise."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = diffusers.UNet2DModel(16, block_out_channels=(32, 32), layers_per_block=1, **blocks)
    return diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())


def main(path: str = "", sampler: str = "kab2c", steps: str = "8") -> None:
    """Say what the pipeline is, exchange its sampler, and draw a picture."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(path) if path else tiny()
    pipe.set_progress_bar_config(disable=True)
    print(explain(pipe, steps=int(steps)))
    pipe.scheduler = Scheduler.from_pipeline(pipe, sampler=sampler)
    prompt = {"prompt": "a lighthouse"} if hasattr(pipe, "tokenizer") else {}
    image = pipe(**prompt, num_inference_steps=int(steps)).images[0]
    image.save("picture.png")
    print(f"picture.png: {image.size}, {sampler}, {steps} steps")


if __name__ == "__main__":
    main(*sys.argv[1:])
