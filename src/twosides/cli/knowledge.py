"""Commands that list, compare, check and show what the library knows."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import tyro

from twosides.display.terminal import say

Positional = tyro.conf.Positional


def samplers(*, measure: bool = False, markdown: bool = False) -> None:
    """List the samplers: frame, variable, order, network calls per step, source.

    Args:
        measure: measure the orders, on exact mixtures with three schedules; a minute and a half.
        markdown: as a Markdown table.
    """
    from twosides.display.progress import bar
    from twosides.reports import orders

    with bar("measuring", 1) if measure else contextlib.nullcontext() as tell:
        table = list(orders.rows(measure, tell))
    say((orders.markdown if markdown else orders.text)(table), end="")


def recipes(*, markdown: bool = False) -> None:
    """List the training recipes: output, schedule, weighting, levels, what is equal, source.

    Args:
        markdown: as a Markdown table.
    """
    from twosides.reports import catalogue

    table = catalogue.rows()
    say((catalogue.markdown if markdown else catalogue.text)(table), end="")


def compare(
    a: Positional[str],
    b: Positional[str],
    /,
    *,
    steps: int | None = None,
    schedule: str | None = None,
    data_std: tuple[float, float] | None = None,
    plot: Path | None = None,
) -> None:
    """Say whether two samplers, or two training recipes, are the same thing, or how far apart.

    Args:
        a: a sampler or a recipe, such as dpmpp-2m, sd3, sd3+adaptive.
        b: another of the same kind.
        steps: for samplers, by default 10.
        schedule: for samplers: flow-matching (the default), cosine, "cosine(-15, 15)", ...
        data_std: for recipes: the standard deviations of the data that a and b are made for, to
            compare them where these are equally noisy: "sd3 edm --data-std 1 0.5".
        plot: for recipes: a picture to write, .png, of their weightings and levels.
    """
    from twosides.comparison import compare as compared
    from twosides.losses.recipes import recipe_named
    from twosides.losses.recipes import recipes as published
    from twosides.naming import unknown
    from twosides.sampling.named import plan
    from twosides.sampling.presets import samplers as presets
    from twosides.schedules import schedule_named

    trained = [name in published or name.rpartition("+")[0] in published for name in (a, b)]
    drawn = [name.split("(")[0] in presets for name in (a, b)]
    for name, *known in zip((a, b), trained, drawn, strict=True):
        if not any(known):
            raise unknown("sampler or recipe", name, [*presets, *published])
    if all(trained):
        if steps is not None or schedule is not None:
            raise ValueError("--steps and --schedule are for samplers; leave them out for recipes")
        first, second, stds = recipe_named(a), recipe_named(b), data_std or (1.0, 1.0)
        say(f"{a} and {b}: {compared(first, second, data_std=stds)}")
        if plot is not None:
            from twosides.reports.catalogue import picture

            picture([(a, first), (b, second)], plot, stds)
            say(plot)
    elif all(drawn):
        if plot is not None or data_std is not None:
            raise ValueError("--plot and --data-std are for recipes; leave them out for samplers")
        where, steps = schedule_named(schedule or "flow-matching"), 10 if steps is None else steps
        result = compared(plan(a, where, steps), plan(b, where, steps))
        say(f"{a} and {b}, {steps} steps on {where}: {result}")
    else:
        raise ValueError(
            f"{a!r} and {b!r} are not of one kind: compare two samplers or two recipes"
        )


def verify() -> None:
    """Check every claim of "Diffusion Meets Flow Matching", errata included; exit 1 on failure."""
    from twosides.reports.claims import verify as check

    results = check(lambda number, result: say(f"{number:2d} {result}"))
    failed = sum(not result.passed for result in results)
    say(f"{len(results) - failed} of {len(results)} claims hold")
    if failed:
        sys.exit(1)


def demo(
    *,
    out: Path = Path("runs/demo"),
    steps: int = 850,
    minutes: Annotated[float, tyro.conf.arg(help="stop training after so long")] = 3.5,
    seed: int = 0,
) -> None:
    """Train a network on letters in front of you, sample it both ways, write a report.

    Args:
        out: the folder: report.html and the run.
        steps: of training; about three minutes on two cores.
        minutes: stop training after so long.
        seed: of the training; the letters are drawn from seed 0.
    """
    from twosides.reports.demo import demo as run

    say(run(out, steps=steps, minutes=minutes, seed=seed))


def explore(
    *,
    port: int = 0,
    no_browser: bool = False,
    model: Path | None = None,
    trust_code: bool = False,
    export: Path | None = None,
) -> None:
    """Show the figures of the post, live, in a page of the browser; Ctrl-C ends it.

    Args:
        port: of 127.0.0.1, 0 for a free one.
        no_browser: only print the page's address.
        model: a model's or a run's folder, to sample it in a figure of its own.
        trust_code: import the network's class from outside diffusers and twosides.
        export: write the page with precomputed figures to this .html file instead; a minute.
    """
    from twosides.explorer.figures import FIGURES
    from twosides.explorer.figures import model as own

    figures = FIGURES if model is None else (*FIGURES, own.of(model, trust_code=trust_code))
    if export is not None:
        from twosides.display.progress import bar
        from twosides.explorer.export import write

        with bar("computing", 1) as tell:
            size = write(export, figures, tell)
        say(f"{export}: {size / 1e6:.1f} MB, {len(figures)} figures, no server needed")
        return
    from twosides.explorer.server import explore as serve

    serve(figures, port=port, browser=not no_browser)
