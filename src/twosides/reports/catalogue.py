"""The recipes as a table and as a picture: output, schedule, weighting w, density p.

Which recipes are equal, and which one is nearest, is computed by `compare`, not typed in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twosides.comparison import AXIS, RANGE, compare, curves, falls_off
from twosides.display import pictures, tables
from twosides.losses.densities import FromSchedule
from twosides.losses.recipes import Recipe, recipe_named, recipes
from twosides.schedules import Rescaled, Schedule, ShiftedSchedule
from twosides.storage.files import write_file

HEADS = (
    "name",
    "output",
    "schedule",
    "w",
    "p",
    "learned",
    "bound",
    "same weighting as (or nearest)",
    "source",
)


@dataclass(frozen=True)
class Row:
    """A row of the table.

    name: the names of the recipe.
    recipe: the recipe.
    falling: whether w never rises with logsnr, so that the loss is a variational bound.
    equal: the recipes with the same weighting, and its factor over theirs.
    nearest, distance: the nearest other recipe if none is equal, and how far away it is.
    """

    name: str
    recipe: Recipe
    falling: bool
    equal: dict[str, float]
    nearest: str
    distance: float


def rows(names: Iterable[str] | None = None) -> list[Row]:
    """The rows of all recipes, or of some, which are then compared among themselves.

    names: the names of some recipes; None for all, each once with its other names.
    """
    if names is not None:
        chosen = {name: recipe_named(name) for name in names}
        return [_row(name, chosen) for name in chosen]
    others = {id(recipe): name for name, recipe in reversed(recipes.items())}
    distinct = {name: recipes[name] for name in recipes if others[id(recipes[name])] == name}
    return [_row(name, distinct) for name in distinct]


def _row(name: str, distinct: dict[str, Recipe]) -> Row:
    recipe = distinct[name]
    names = [name, *(n for n in recipes if recipes[n] is recipe and n != name)]
    found = {other: compare(recipe, distinct[other]) for other in distinct if other != name}
    equal = {other: result.factor for other, result in found.items() if result.same}
    ends = {name: not r.reweights and falls_off(_weights(r)) for name, r in distinct.items()}
    far = {other: found[other].difference for other in found if ends[other]}
    nearest = min(far, key=far.__getitem__) if far and ends[name] and not equal else ""
    falling = _is_falling(recipe)
    return Row(", ".join(names), recipe, falling, equal, nearest, far.get(nearest, 0.0))


def _weights(recipe: Recipe) -> Tensor:
    return curves(recipe, torch.linspace(-RANGE, RANGE, 3001, dtype=torch.float64))[0]


def _is_falling(recipe: Recipe) -> bool:
    """Whether w never rises with logsnr, so that the loss is a variational bound."""
    w = _weights(recipe)
    return not recipe.reweights and bool((w[torch.isfinite(w)].diff() <= 1e-9).all())


def brief(schedule: Schedule) -> str:
    """A schedule as text, without the fields that have their default values."""
    if isinstance(schedule, ShiftedSchedule):
        return f"{brief(schedule.base)}, shifted by {schedule.factor:.4g}"
    if isinstance(schedule, Rescaled):
        return f"{brief(schedule.base)} as {schedule.to}"
    given: list[str] = []
    for field in fields(schedule):  # pyright: ignore[reportArgumentType]
        value = getattr(schedule, field.name)
        if isinstance(value, tuple):
            given.append(f"{len(value)} steps")
        elif value != field.default:
            given.append(f"{field.name}={value:.4g}")
    return f"{type(schedule).__name__}({', '.join(given)})"


def cells(row: Row) -> tuple[str, ...]:
    """A row as text; a factor is that of this weighting over the other."""
    recipe = row.recipe
    own = recipe.density == FromSchedule(recipe.schedule)
    density = recipe.density
    if own:
        p = "uniform t"
    elif isinstance(density, FromSchedule):
        p = f"uniform t of {brief(density.schedule)}"
    else:
        p = str(density)
    same = ", ".join(
        other if abs(factor - 1) < 1e-9 else f"{other} x {factor:.4g}"
        for other, factor in row.equal.items()
    )
    near = f"({row.nearest}, {row.distance:.3f} apart)" if row.nearest else ""
    bound = "yes" if row.falling else ""
    w = str(recipe.weighting)
    return (
        row.name,
        recipe.output,
        brief(recipe.schedule),
        w,
        p,
        recipe.learns,
        bound,
        same or near,
        recipe.paper,
    )


def markdown(table: list[Row]) -> str:
    """The rows as a Markdown table."""
    return tables.markdown([HEADS, *map(cells, table)])


def text(table: list[Row]) -> str:
    """The rows in columns, for a terminal."""
    return tables.text([HEADS, *map(cells, table)])


def picture(named: list[tuple[str, Recipe]], path: Path, data_std: tuple[float, ...]) -> None:
    """Draw w and p of recipes against logsnr, each divided by its largest value, as a PNG file.

    named: the names and recipes.
    path: the .png file.
    data_std: for each recipe the standard deviation of the data that it is made for.
    """
    if path.suffix != ".png":
        raise ValueError(f"{path}: a picture is written as .png, not {path.suffix!r}")
    write_file(path, pictures.chart(draw_weightings(named, data_std), dpi=130))


def draw_weightings(named: list[tuple[str, Recipe]], data_std: tuple[float, ...]) -> Any:
    """The picture as a figure of matplotlib, see `picture`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    grid = torch.linspace(-RANGE, RANGE, 1201, dtype=torch.float64)
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, 2)
    styles = cycle(("-", "--"))
    for (name, recipe), std, style in zip(named, data_std, styles, strict=False):
        for axes, curve in zip(panels, curves(recipe, grid, std), strict=True):
            shown = (curve - curve.max()).exp()
            axes.plot(grid.numpy(), shown.numpy(), style, lw=1.8, label=name)
    label = AXIS if all(std == 1 for std in data_std) else f"{AXIS} of unit-variance data"
    for axes, title in zip(panels, ("weighting w / max", "density of levels p / max"), strict=True):
        axes.set(title=title, xlabel=label)
        axes.grid(alpha=0.25, lw=0.5)
    if not all(falls_off(_weights(recipe)) for _, recipe in named):
        panels[0].set(yscale="log", ylim=(1e-5, 2))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return figure
