"""Commands for models of few steps: `twosides distill | objectives`."""

from __future__ import annotations

from pathlib import Path

import tyro

from twosides.display.terminal import say

Positional = tyro.conf.Positional


def distill(
    model: Positional[Path],
    data: Positional[str | None] = None,
    /,
    *,
    out: Path,
    to: str = "any",
    objective: str = "trajectory",
    guidance: float = 1.0,
    states: str = "",
    runs: int = 20_000,
    teacher_sampler: str = "kab2c",
    teacher_steps: int = 16,
    rounds: int = 1,
    steps: int = 2000,
    batch: int = 64,
    learning_rate: float = 1e-3,
    sigma_rel: float = 0.1,
    seed: int = 0,
    minutes: float | None = None,
    checkpoint_every: int = 200,
    picture_every: int = 500,
    precision: str = "32-true",
    devices: str = "auto",
    nodes: int = 1,
    strategy: str = "auto",
    accumulate: int = 1,
    workers: int = 0,
    trust_code: bool = False,
) -> None:
    """Make a model of one to a few steps from a trained one; the same command continues.

    Args:
        model: the teacher: a model's or a run's folder.
        data: as in `twosides train`, where noisy states are made of data; by default they are
            states of the teacher's runs, and no data are needed.
        out: the run's folder; in it runs/ holds the teacher's runs, and at the end model/ the
            student.
        to: the number of steps that it is for, 1, 2, 4, ..., or any.
        objective: trajectory, lagrangian, shortcut, reflow, ...: see `twosides objectives`.
        guidance: scale of classifier-free guidance of the teacher; the student has it inside.
        states: where noisy states come from: data, pairs, trajectory or noise; by default as the
            objective says, and pairs where there are no data.
        runs: how many runs of the teacher are stored.
        teacher_sampler: of these runs; one without noise.
        teacher_steps: of these runs, a multiple of the steps that the student is for.
        rounds: of reflow: the student of one is the teacher of the next.
        steps: optimizer steps.
        batch: samples per step, over all devices and micro-batches.
        learning_rate: the optimizer's, after the warm-up and before the linear decay.
        sigma_rel: relative width of the weights' power-function average.
        seed: of the runs, the order of the data, the noise and its levels.
        minutes: stop training after so long.
        checkpoint_every: steps between checkpoints.
        picture_every: steps between pictures.
        precision: Lightning's: 32-true, bf16-mixed, 16-mixed.
        devices: processes on each machine, one for each GPU, or auto: what there is.
        nodes: machines; each needs the command, by torchrun or SLURM.
        strategy: ddp (a copy of the network per device), fsdp (shards of it), or auto.
        accumulate: micro-batches per step and device, one after another.
        workers: processes that read data, for each device.
        trust_code: import the network's class from outside diffusers and twosides.
    """
    from twosides.data.named import task_named
    from twosides.distillation.distill import Distillation
    from twosides.distillation.distill import distill as distilled
    from twosides.distillation.objectives import objectives as known
    from twosides.naming import named
    from twosides.training.run import is_first
    from twosides.training.settings import Settings

    if to != "any" and not (to.isdigit() and int(to)):
        raise ValueError(f"--to is a number of steps, at least 1, or any; got {to!r}")
    rule = named("objective", objective, known)
    if data is None and not states and rule.states == "data":
        states = "pairs"
    what = Distillation(
        objective,
        None if to == "any" else int(to),
        states,
        guidance,
        runs,
        teacher_sampler,
        teacher_steps,
        rounds,
        seed,
    )
    if data is not None and what.where != "data":
        raise ValueError(
            f"{objective} learns from {what.where} of the teacher and not from data; leave {data} "
            "out, or choose an objective of the map's own, such as --objective lagrangian"
        )
    settings = Settings(
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        sigma_rel=sigma_rel,
        seed=seed,
        minutes=minutes,
        checkpoint_every=checkpoint_every,
        picture_every=picture_every,
        precision=precision,
        devices=int(devices) if devices.isdigit() else devices,
        nodes=nodes,
        strategy=strategy,
        accumulate=accumulate,
        workers=workers,
        optimizer="adam",
        decay="linear",
    )
    task = None if data is None else task_named(data)
    distilled(
        model,
        out,
        what,
        settings,
        data=None if task is None else task.data,
        trust_code=trust_code,
        progress=True,
    )
    if is_first():
        count = "4" if to == "any" else to
        say(f"{out / 'model'} is ready: twosides sample {out} --steps {count}")


def objectives(*, markdown: bool = False) -> None:
    """List the objectives of distillation: who makes the two hops of F = k A + (1 - k) B.

    Args:
        markdown: as a Markdown table.
    """
    from twosides.display import tables
    from twosides.distillation.objectives import lines

    say((tables.markdown if markdown else tables.text)(lines()), end="")
