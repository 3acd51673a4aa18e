"""Commands for models of few steps: `twosides distill | objectives`."""

from __future__ import annotations

from pathlib import Path

import tyro

from twosides.cli.training import Flat, Training
from twosides.display.terminal import say

Positional = tyro.conf.Positional
TRAINING = Training(optimizer="adam", decay="linear")


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
    training: Flat = TRAINING,
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
        training: what is shared with train; --seed is that of the runs, too.
    """
    from twosides.data.named import task_named
    from twosides.distillation.distill import Distillation
    from twosides.distillation.distill import distill as distilled
    from twosides.distillation.objectives import objectives as known
    from twosides.naming import named
    from twosides.training.optimizers import optimizer_named
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
        training.seed,
    )
    options = training.settings(1e-3)
    if options.pop("validate"):
        raise ValueError(
            "distillation measures no data that are held out; leave validate_every out"
        )
    trust_code = options.pop("trust_code")
    options["optimizer"] = optimizer_named(options["optimizer"], trust_code=trust_code)
    task = None if data is None else task_named(data)
    distilled(
        model,
        out,
        what,
        Settings(**options),
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
