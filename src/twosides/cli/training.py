"""Commands that train: `twosides train | finetune | ema`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

Positional = tyro.conf.Positional


@dataclass(frozen=True)
class Training:
    """What `train` and `finetune` share; each of these is an option of both.

    Args:
        steps: optimizer steps.
        batch: samples per step, over all devices and micro-batches.
        learning_rate: the optimizer's, after the warm-up; by default 1e-3 (fine-tuning: 1e-5, or
            1e-4 with LoRA).
        sigma_rel: relative width of the weights' power-function average.
        seed: of the initial weights or adapters, the order of the data, the noise and its levels.
        minutes: stop training after so long.
        checkpoint_every: steps between checkpoints.
        picture_every: steps between pictures, of data that pictures can be drawn of; None for none.
        validate_every: steps between measurements of the error by noise level, on data that are
            not trained on (glyphs: letters of other fonts); by default none.
        snapshot_every: steps between snapshots of averages, for `twosides ema`; by default none.
        precision: Lightning's: 32-true, bf16-mixed, 16-mixed.
        devices: processes on each machine, one for each GPU, or auto: what there is.
        nodes: machines; each needs the command, by torchrun or SLURM.
        strategy: ddp (a copy of the network per device), fsdp (shards of it), or auto.
        accumulate: micro-batches per step and device, one after another.
        workers: processes that read data, for each device.
        optimizer: adamw, adam, sgd, or package.module:Class with --trust-code.
        decay: of the learning rate to the last step, after the warm-up: constant, cosine, linear.
        trust_code: import the network's class from outside diffusers and twosides.
    """

    steps: int = 2000
    batch: int = 64
    learning_rate: float | None = 1e-3
    sigma_rel: float = 0.1
    seed: int = 0
    minutes: float | None = None
    checkpoint_every: int = 200
    picture_every: int | None = 500
    validate_every: int | None = None
    snapshot_every: int | None = None
    precision: str = "32-true"
    devices: str = "auto"
    nodes: int = 1
    strategy: str = "auto"
    accumulate: int = 1
    workers: int = 0
    optimizer: str = "adamw"
    decay: str = "constant"
    trust_code: bool = False

    def settings(self, learning_rate: float) -> dict[str, Any]:
        """As `train_task` and `finetune_task` take them; learning_rate: where none is asked."""
        given = asdict(self)
        given["validate"] = self.validate_every is not None
        given["validate_every"] = self.steps if self.validate_every is None else self.validate_every
        given["devices"] = int(self.devices) if self.devices.isdigit() else self.devices
        if self.learning_rate is None:
            given["learning_rate"] = learning_rate
        return given


Flat = Annotated[Training, tyro.conf.arg(name="")]  # its fields are options like all others


def train(
    data: Positional[str],
    /,
    *,
    out: Path,
    recipe: str = "flow-matching",
    coupling: str = "independent",
    network: Path | None = None,
    time: str | None = None,
    training: Flat = Training(),
) -> None:
    """Train a network; the same command continues after an interruption.

    Args:
        data: glyphs, glyphs-32, ring; your own, such as "folder:photos?size=64,flip", hf:path,
            "tar:shards/{000..009}.tar", latents:path; or package.module:function giving a Task.
        out: the run's folder (checkpoints, logs, samples, and at the end the model).
        recipe: flow-matching, v-cosine, edm, sd3, ...: see `twosides recipes`; also with +adaptive,
            +entropy-rate or +uncertainty, which follow the errors that are measured.
        coupling: of noise and data in a batch: independent, or minibatch-ot for straighter paths,
            which only samplers without noise follow.
        network: JSON file {"class": "diffusers.UNet2DModel" or "module:Class", "config": {...}}.
        time: how the network is told the level: t, 1000t, 1-t, index, c_noise, logsnr.
        training: what is shared with finetune.
    """
    from twosides.training.run import is_first, train_task

    options = training.settings(1e-3)
    train_task(data, out, recipe, network_file=network, time=time, coupling=coupling, **options)
    if is_first():
        print(f"{out / 'model'} is ready: twosides sample {out}")


def finetune(
    model: Positional[Path],
    data: Positional[str],
    /,
    *,
    out: Path,
    recipe: str | None = None,
    convert: bool = False,
    widen_at: float | None = None,
    zero_terminal_snr: bool = False,
    lora: int | None = None,
    lora_target: tuple[str, ...] = (),
    training: Flat = Training(steps=1000, batch=8, learning_rate=None, picture_every=None),
) -> None:
    """Train a network further: as it is, as a flow model, or by LoRA; the same command continues.

    Args:
        model: a diffusers pipeline's folder, or a model's or a run's.
        data: as in `twosides train`, in the network's units and with the conditioning it takes:
            latents:path, which `twosides encode-latents` made, with --captions if it reads text.
        out: the run's folder; at the end also pipeline/ or lora/, for diffusers.
        recipe: own (the default): plain error of its own output at its own levels; or a recipe's
            levels and weighting, see `twosides recipes`. Converted, by default flow-matching.
        convert: train it as a predictor of u in flow matching's time, which it is exactly.
        widen_at: converted, the step (below 1: the part of all steps) from which on levels beyond
            those that it knows are trained, up to pure noise; by default never.
        zero_terminal_snr: move its levels so that the last is pure noise; not of eps networks.
        lora: train low-rank adapters of this rank.
        lora_target: the layers that get them, by default to_q to_k to_v to_out.0.
        training: what is shared with train.
    """
    from twosides.training.finetune import Tuning, finetune_task
    from twosides.training.run import is_first

    tuning = Tuning(recipe, convert, widen_at, zero_terminal_snr, lora, lora_target)
    finetune_task(model, data, out, tuning, **training.settings(1e-5 if lora is None else 1e-4))
    for name in ("model", "pipeline", "lora"):
        if is_first() and (out / name).is_dir():
            print(f"{out / name} is ready")


def ema(
    run: Positional[Path],
    /,
    *,
    out: Path,
    sigma_rel: tuple[float, ...],
    step: int | None = None,
    trust_code: bool = False,
) -> None:
    """Make models with averages of other widths from the snapshots that training stored.

    Args:
        run: the folder of a finished run that was trained with --snapshot-every.
        out: the model's folder to write; of several widths, one in it for each.
        sigma_rel: relative widths of the averages, in (0, 0.288): --sigma-rel 0.05 0.1 0.15.
        step: the step at which the averages end, by default the newest snapshot's.
        trust_code: import the network's class from outside diffusers and twosides.
    """
    from twosides.training.posthoc import save_averages

    print("\n".join(save_averages(run, out, sigma_rel, step=step, trust_code=trust_code)))
