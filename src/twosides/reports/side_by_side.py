"""Training runs side by side on one page: `twosides report` makes it.

The page has the recipes in words and which of them are equal, samples from the same noise, metrics,
weightings, losses, and the one quantity that can be compared between all recipes: the error of eps
at each noise level.
"""

from __future__ import annotations

import html
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from twosides.data.tasks import Task
from twosides.denoiser import Denoiser
from twosides.display import html as pages
from twosides.display import pictures
from twosides.display.terminal import say
from twosides.generation.notes import load_model, one_sentence, read_notes
from twosides.generation.request import Request
from twosides.generation.samples import decoder, sample_batches
from twosides.losses.masks import MASK, mean_square
from twosides.losses.recipes import Recipe, recipe_named
from twosides.metrics.measures import METRICS, Measured
from twosides.metrics.sources import COUNT, Yardstick, data_named
from twosides.placement import device_of
from twosides.randomness import PerSample
from twosides.reports import catalogue
from twosides.storage import models, parts
from twosides.storage.devices import device_named
from twosides.storage.files import write_file
from twosides.training.fit import loss_curve

SHOWN = 28  # the pictures of each run
POINTS = 400  # the points of each run, for data in the plane
LEVELS = torch.linspace(-8, 8, 17, dtype=torch.float64)
WORDS = {"w": "weighting w", "p": "levels p"}  # the titles of columns of the catalogue here
Curve = tuple[Sequence[float], Sequence[float]]


@dataclass
class Run:
    """A finished run and what is shown of it.

    folder: its folder.
    title: its title on the page.
    config: the model's config.json.
    losses: the steps and the losses.
    x: some samples.
    measured: the metrics of its samples, by name.
    errors: the error of eps at each of LEVELS.
    """

    folder: Path
    title: str
    config: dict[str, Any]
    losses: Curve
    x: Tensor
    measured: dict[str, Measured] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)

    @property
    def recipe(self) -> str:
        """The name of its recipe; empty if that is not a published one."""
        name = str(self.config.get("recipe", ""))
        try:
            recipe_named(name)
        except ValueError:
            return ""
        return name


def report(
    folders: Sequence[Path],
    out: Path,
    request: Request,
    *,
    data: str | Task | None = None,
    extractor: str | None = None,
    trust_code: bool = False,
) -> list[Run]:
    """Sample every run from the same noise, measure, write the page and return what it shows.

    folders: the folders of finished runs.
    out: the page, an .html file.
    request: how to sample all of them; `count` is also the number of rows of data.
    data: the data to measure against, as in `data_named`; by default nothing is measured.
    extractor: the features in which distances are measured, as in `Yardstick.of`.
    trust_code: whether networks' classes and an extractor may be imported.
    """
    if not folders or out.suffix != ".html":
        raise ValueError(
            f"a report is made of one run or more, as .html; got {len(folders)}, {out}"
        )
    request = replace(request, count=request.count or COUNT)
    task = None if data is None else data_named(data)
    yardstick = None
    if task is not None:
        size, seed = request.count or COUNT, request.seed
        yardstick = Yardstick.of(task, size, extractor, seed=seed, trust_code=trust_code)
    runs, left_out = list[Run](), list[str]()
    for folder, title in zip(folders, _titles(folders), strict=True):
        say(f"{title}: sampling")
        try:
            run = _sample_run(folder, title, request, yardstick, trust_code)
            if task is not None and yardstick is not None:
                denoiser = load_model(folder, trust_code=trust_code)
                denoiser = denoiser.to(device_named(request.device))
                with one_sentence(f"the errors of {folder} cannot be measured on these data"):
                    run.errors = eps_errors(denoiser, task, request.seed)
        except ValueError as error:
            left_out.append(f"{title} is left out: {error}")
            continue
        runs.append(run)
    for line in left_out:
        warnings.warn(line, stacklevel=2)
    if not runs:
        raise ValueError("; ".join(left_out))
    write_file(out, _page(runs, yardstick, _how(request), left_out).encode())
    return runs


def _sample_run(
    folder: Path, title: str, request: Request, yardstick: Yardstick | None, trust_code: bool
) -> Run:
    """A run with the samples that the page shows, and with metrics if there is a yardstick."""
    if yardstick is None:
        request = replace(request, count=min(request.count or POINTS, POINTS))
    else:
        request = yardstick.ask_alike(request, read_notes(folder))
    shown = list[Tensor]()
    batches = _keep_first(sample_batches(folder, request, trust_code=trust_code), shown)
    measured = dict[str, Measured]()
    if yardstick is None:
        for _ in batches:
            pass
    else:
        features = yardstick.features(batches, len(yardstick.reference))
        measured = yardstick.measure(features, seed=request.seed)
    config = models.read_config(folder)
    return Run(folder, title, config, loss_curve(folder), torch.cat(shown), measured)


def _keep_first(batches: Iterable[Tensor], kept: list[Tensor]) -> Iterator[Tensor]:
    """The batches as they are; the first POINTS of their samples go into `kept`."""
    left = POINTS
    for x in batches:
        if left > 0:
            kept.append(x[:left])
            left -= len(kept[-1])
        yield x


def _titles(folders: Sequence[Path]) -> list[str]:
    """The names of the recipes if they differ, else the folders."""
    recipes = [str(models.read_config(folder).get("recipe", "")) for folder in folders]
    distinct = all(recipes) and len(set(recipes)) == len(recipes)
    return recipes if distinct else [str(folder) for folder in folders]


@torch.no_grad()
def eps_errors(denoiser: Denoiser, task: Task, seed: int, count: int = 256) -> list[float]:
    """The mean squared error of eps on data at each of LEVELS; NaN where the model has no answer.

    denoiser: the model.
    task: the data.
    seed: the seed of the noise.
    count: the number of rows of data.
    """
    size = min(count, task.size or count)
    device = device_of(denoiser)
    rows = default_collate(task.rows(range(size)))
    batch = {name: value.to(device) for name, value in rows.items()}
    x, mask = denoiser.standardise(batch.pop("x")), batch.pop(MASK, None)
    eps = PerSample(seed, range(size)).normal(x.shape[1:], x.dtype, device)
    errors: list[float] = []
    for logsnr in LEVELS.tolist():
        try:
            level = denoiser.schedule.level(logsnr)
            estimate = denoiser(level.mix(x, eps), level, **batch)
            errors.append(float(mean_square(estimate.eps - eps, mask).mean()))
        except ValueError:  # the level is outside of the model's range
            errors.append(float("nan"))
    return errors


def _how(request: Request) -> str:
    where = "each on its own schedule" if request.schedule is None else f"on {request.schedule}"
    return f"{request}, {where}, the same noise for all"


# ---------------------------------------------------------------------------- the page


def _page(runs: list[Run], yardstick: Yardstick | None, how: str, left_out: list[str]) -> str:
    named = [(run.recipe, recipe_named(run.recipe)) for run in runs if run.recipe]
    named = list(dict(named).items())
    title = f"{len(runs)} training runs, side by side" if len(runs) > 1 else runs[0].title
    shared, own = _settings(runs)
    rows = [
        ("", *(html.escape(run.title) for run in runs)),
        ("samples", *(_samples(run) for run in runs)),
        *_words(runs),
        *_metrics(runs, yardstick),
        ("last losses", *(_last(run) for run in runs)),
        *own,
    ]
    parts = {
        "title": html.escape(title),
        "lead": html.escape(" ".join([f"Samples: {how}. {shared}", *left_out])),
        "table": pages.table(rows, escape=False),
        "notes": html.escape(_notes(yardstick)),
        "weightings": _weightings(named),
        "losses": _lines([(run.title, _smooth(run.losses)) for run in runs], "step", "loss"),
        "errors": _errors(runs) if yardstick else "",
    }
    return pages.page(f"twosides: {title}", "reports/side_by_side.html", parts)


def _weightings(named: list[tuple[str, Recipe]]) -> str:
    if not named:
        return ""
    return pages.chart(catalogue.draw_weightings(named, (1.0,) * len(named)), "weightings")


def _samples(run: Run) -> str:
    alt, x = f"samples of {run.title}", run.x[:SHOWN]
    if encoded_by := read_notes(run.folder).pipeline:
        try:
            x = decoder(encoded_by)(x)
        except ValueError as error:  # if the pipeline is gone, the rest of the page is still made
            return html.escape(str(error))
    shape = x.shape[1:]
    if len(shape) == 3 and shape[0] in (1, 3):
        zoom = 2 if shape[-1] < 128 else 1
        return pages.image(pictures.png(pictures.grid(x, columns=4, zoom=zoom)), alt)
    if tuple(shape) != (2,):
        return "-"
    reach = float(run.x[:POINTS].abs().quantile(0.99)) * 1.15
    dots = "".join(
        f'<circle cx="{a:.3g}" cy="{-b:.3g}" r="{reach / 60:.2g}"/>'
        for a, b in run.x[:POINTS].tolist()
    )
    box = f"{-reach:.4g} {-reach:.4g} {2 * reach:.4g} {2 * reach:.4g}"
    label = html.escape(alt)
    return f'<svg role="img" aria-label="{label}" class="dots" viewBox="{box}">{dots}</svg>'


def _words(runs: list[Run]) -> Iterator[tuple[str, ...]]:
    """The rows that describe the recipes; for other runs they have the output and the schedule."""
    names = dict.fromkeys(run.recipe for run in runs if run.recipe)
    about = {
        name: catalogue.cells(row)[1:-1]
        for name, row in zip(names, catalogue.rows(names), strict=True)
    }
    heads = catalogue.HEADS[1:-1]
    blank = [""] * (len(heads) - 2)
    columns = [about.get(run.recipe) or (*_notation(run), *blank) for run in runs]
    for head, *cells in zip(heads, *columns, strict=True):
        yield (WORDS[head] if head in WORDS else head), *(html.escape(cell) for cell in cells)


def _notation(run: Run) -> tuple[str, str]:
    output = run.config["output"]
    schedule = catalogue.brief(parts.restore(run.config["schedule"]))
    return output if isinstance(output, str) else output["name"], schedule


def _metrics(runs: list[Run], yardstick: Yardstick | None) -> Iterator[tuple[str, ...]]:
    if yardstick is None:
        return
    perfect = yardstick.perfect()
    for name in METRICS:
        data = f'<br><span class="soft">data: {perfect[name]}</span>' if perfect else ""
        yield f"{name}{data}", *(str(run.measured[name]) for run in runs)


def _notes(yardstick: Yardstick | None) -> str:
    bound = (
        "Bound: w never rises with logsnr, so the loss is a variational bound. Same weighting: as "
        "computed among these runs, up to the factor given; the nearest recipe is in brackets."
    )
    if yardstick is None:
        return bound
    return (
        f"{bound} Metrics: of features by {yardstick.name}, with standard errors; below their "
        "names the values of other rows of the data, which are those of a perfect model."
    )


def _settings(runs: list[Run]) -> tuple[str, list[tuple[str, ...]]]:
    """The settings that all runs share, in words, and rows for those in which they differ."""
    each = [_training(run.config) for run in runs]
    names = dict.fromkeys(name for settings in each for name in settings)
    values = {name: [settings.get(name, "-") for settings in each] for name in names}
    shared = {name: each[0] for name, each in values.items() if len(set(each)) == 1}
    rows = [
        (html.escape(name), *map(html.escape, each))
        for name, each in values.items()
        if name not in shared
    ]
    common = ", ".join(f"{name} {value}" for name, value in shared.items())
    return (f"Common to all: {common}." if common else ""), rows


def _training(config: dict[str, Any]) -> dict[str, str]:
    training, network = config.get("training"), config["network"]
    settings = dict(training) if isinstance(training, dict) else {}
    for name in ("asked", "null"):  # the steps are shown, and null values say nothing to a reader
        settings.pop(name, None)
    settings = {name: str(value) for name, value in settings.items() if value not in (None, {})}
    return {"network": str(network.get("class")), **settings}


def _last(run: Run) -> str:
    losses = run.losses[1][-5:]
    return f"{sum(losses) / len(losses):.4g}" if losses else "-"


def _smooth(curve: Curve) -> Curve:
    steps, losses = curve
    means = [sum(losses[max(0, i - 4) : i + 1]) / min(i + 1, 5) for i in range(len(losses))]
    return steps, means


def _errors(runs: list[Run]) -> str:
    curves = [(run.title, (LEVELS.tolist(), run.errors)) for run in runs]
    return (
        "<h2>Error of eps at each noise level</h2><figure>"
        + _lines(curves, "logsnr: noise to the left, data to the right", "mean squared error")
        + "<figcaption>Measured on the same rows of data with the same noise, in the same units: "
        "at which levels each recipe is good. Predicting zero has error 1.</figcaption></figure>"
    )


def _lines(curves: Sequence[tuple[str, Curve]], across: str, up: str) -> str:
    """Curves on common axes, in the colours and strokes of the weightings' picture."""
    figure, axes = pages.axes(xlabel=across, ylabel=up, yscale="log")
    for (name, (x, y)), style in zip(curves, cycle(("-", "--")), strict=False):
        axes.plot(x, y, style, linewidth=1.5, label=name)
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    return pages.chart(figure, f"{up} against {across}")
