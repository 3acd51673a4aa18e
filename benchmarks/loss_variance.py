"""What the choice of noise levels does to the noise of the training loss, and to training.

    loss = mean over a batch of w(logsnr) / p(logsnr) |eps_hat - eps|^2,    logsnr ~ p

has the same mean for every p. Here is its standard deviation over minibatches, for eight weightings
w, with levels drawn independently, stratified and adapted (`training.adaptive`); what it is for
every recipe, from the errors by level; the noise of the gradient; and the validation loss of
networks trained with each. The network is that of `twosides train glyphs`, trained here.

    python benchmarks/loss_variance.py                 prints the tables, in about half an hour
    python benchmarks/loss_variance.py --out docs      and writes loss_variance.md and .png
    python benchmarks/loss_variance.py --quick         a tenth of everything, for a look
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from twosides.data.glyphs import Glyphs
from twosides.data.named import task_named
from twosides.denoiser import Denoiser
from twosides.display import tables
from twosides.display.progress import bar
from twosides.losses.densities import Density, FromSchedule, Normal, Uniform
from twosides.losses.learned import Adaptive, LevelBins
from twosides.losses.objective import Losses, Objective
from twosides.losses.recipes import recipes
from twosides.losses.truncation import Truncated
from twosides.losses.weightings import ELBO, Sigmoid, Weighting
from twosides.randomness import PerSample
from twosides.schedules import Cosine, FlowMatching
from twosides.storage import models
from twosides.training.ema import PowerEMA

BATCH, HELD_OUT, LOW, HIGH = 128, 1024, -8.0, 8.0
REFERENCE = "uniform t"


WEIGHTINGS: dict[str, Weighting] = {
    "ELBO": ELBO(),
    "flow matching": recipes["flow-matching"].weighting,
    "sigmoid(2)": Sigmoid(2.0),
    "SD3": recipes["sd3"].weighting,
    "EDM": recipes["edm"].weighting,
    "DDPM": recipes["ddpm"].weighting,
    "Min-SNR": recipes["min-snr"].weighting,
    "FLUX": recipes["flux"].weighting,
}
# Between LOW and HIGH, so that all have the same integral to estimate.
DENSITIES: dict[str, Density] = {
    "uniform logsnr": Uniform(LOW, HIGH),
    "cosine t": Truncated(FromSchedule(Cosine()), LOW, HIGH),
    REFERENCE: Truncated(FromSchedule(FlowMatching()), LOW, HIGH),
    "logit-normal": Truncated(Normal.logit_normal(0, 1), LOW, HIGH),
    "EDM's": Truncated(Normal.log_normal_sigma(-1.2, 1.2), LOW, HIGH),
}
DRAWN = {"independent": False, "stratified": True}


class Letters(NamedTuple):
    """Images and their classes."""

    x: Tensor
    labels: Tensor

    def rows(self, seed: int, step: int, count: int) -> Letters:
        """A batch: a function of (seed, step)."""
        u = PerSample(seed, range(count), stream=1_000_000 + step).uniform()
        pick = (u * len(self.x)).long()
        return Letters(self.x[pick], self.labels[pick])


@functools.cache
def letters() -> tuple[Letters, Letters]:
    """To train on, and held out."""
    data = Glyphs(16)
    parts = (slice(None, -HELD_OUT), slice(-HELD_OUT, None))
    first, last = (Letters(data.x[part], data.labels[part]) for part in parts)
    return first, last


def losses(objective: Objective, denoiser: Denoiser, data: Letters, seed: int, step: int) -> Losses:
    """Of one batch, with its own noise."""
    draw = PerSample(seed, range(len(data.x)), stream=1 + step)
    return objective.evaluate(denoiser, data.x, generator=draw, class_labels=data.labels)


# ---------------------------------------------------------------------------- training


class Run(NamedTuple):
    """Steps and the validation losses of the averaged weights there."""

    steps: list[int]
    validation: list[float]
    denoiser: Denoiser


def train(objective: Objective, steps: int, batch: int, seed: int, every: int = 0) -> Run:
    """A fresh network, AdamW, and the power-function average, measured every so often."""
    data, held_out = letters()
    network = models.build_network(task_named("glyphs").network, seed=seed)
    denoiser = recipes["flow-matching"].denoiser(network, time="1000t")
    spec = models.describe_denoiser(denoiser)
    average = PowerEMA(denoiser)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-3)
    run = Run([], [], models.build_denoiser(spec))
    with bar(f"training, seed {seed}", steps) as tell:
        for step in range(1, steps + 1):
            found = losses(objective, denoiser, data.rows(seed, step, batch), seed, step)
            optimizer.param_groups[0]["lr"] = 1e-3 * min(1, step / 50)
            optimizer.zero_grad()
            found.loss.mean().backward()
            torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
            optimizer.step()
            objective.observe(found)
            average.update(denoiser)
            if (every and step % every == 0) or step == steps:
                average.copy_to(run.denoiser)
                run.steps.append(step)
                run.validation.append(validate(run.denoiser, held_out))
            tell(step, steps)
    return run


@torch.no_grad()
def validate(denoiser: Denoiser, data: Letters) -> float:
    """The flow-matching loss of the held-out letters, with one noise and one level for each."""
    return float(losses(recipes["flow-matching"].objective(), denoiser, data, 99, 0).loss.mean())


# ---------------------------------------------------------------------------- the loss

Samples = dict[tuple[str, str, bool], Tensor]  # (weighting, density, stratified): minibatch losses


def adapted(denoiser: Denoiser, weighting: Weighting, batches: int) -> Density:
    """Levels that have settled on `batches` of this network's losses."""
    objective = Objective(weighting, Adaptive(DENSITIES[REFERENCE], LevelBins(LOW, HIGH)))
    data = letters()[0]
    with torch.no_grad():
        for step in range(batches):
            objective.observe(losses(objective, denoiser, data.rows(1, step, BATCH), 1, step))
    return objective.density


@torch.no_grad()
def measure(
    denoiser: Denoiser,
    density: Density,
    stratified: bool,
    weightings: dict[str, Weighting],
    count: int,
) -> dict[str, Tensor]:
    """`count` minibatch losses of each weighting, from the same draws."""
    data, found = letters()[0], {name: torch.zeros(count).double() for name in weightings}
    objective = Objective(ELBO(), density, stratified)
    for step in range(count):
        seen = losses(objective, denoiser, data.rows(2, step, BATCH), 2, step)
        log_p = density.log_prob(seen.logsnr)
        for name, weighting in weightings.items():
            factor = (weighting.log(seen.logsnr) - log_p).exp()
            found[name][step] = (factor * seen.eps_error).mean()
    return found


def minibatch_losses(denoiser: Denoiser, count: int) -> Samples:
    """For all weightings and densities, independent and stratified."""
    cases = [(name, density, WEIGHTINGS) for name, density in DENSITIES.items()]
    for name, weighting in WEIGHTINGS.items():
        own = adapted(denoiser, weighting, max(count, 16))
        cases.append(("adaptive", own, {name: weighting}))
    found: Samples = {}
    with bar("measuring losses", len(cases)) as tell:
        for done, (density_name, density, weightings) in enumerate(cases, 1):
            for stratified in DRAWN.values():
                values = measure(denoiser, density, stratified, weightings, count)
                found |= {(name, density_name, stratified): v for name, v in values.items()}
            tell(done, len(cases))
    return found


class Errors(NamedTuple):
    """The mean and the spread of the eps error, over letters and noise, at each level."""

    logsnr: Tensor
    mean: Tensor
    spread: Tensor
    width: float


@torch.no_grad()
def errors_by_level(denoiser: Denoiser, count: int, bins: int = 64) -> Errors:
    """In narrow bins, from `count` minibatches of evenly spread levels."""
    data, objective = letters()[0], Objective(ELBO(), DENSITIES["uniform logsnr"])
    seen = [losses(objective, denoiser, data.rows(3, k, BATCH), 3, k) for k in range(count)]
    logsnr = torch.cat([found.logsnr for found in seen]).double()
    order = logsnr.argsort()
    levels = logsnr[order].tensor_split(bins)
    errors = torch.cat([found.eps_error for found in seen]).double()[order].tensor_split(bins)
    return Errors(
        torch.stack([part.mean() for part in levels]),
        torch.stack([part.mean() for part in errors]),
        torch.stack([part.std() for part in errors]),
        (HIGH - LOW) / bins,
    )


def expected(errors: Errors, weighting: Weighting) -> tuple[float, float, float, float]:
    """Standard deviations of one example's loss, over its mean, from the errors by level:
    independent uniform t, the same in the finest strata, adaptive, and the least of all.

    With the mean m(l) and the spread s(l) of the error, one loss w e / p at l ~ p has the variance
    int w^2 (m^2 + s^2) / p - (int w m)^2, and int w^2 s^2 / p in the finest strata. Adaptive p is
    w m over its integral. No p and strata have less than (int w s)^2, which p proportional to
    w s has [Cauchy-Schwarz].
    """
    _, m, s, width = errors
    w = weighting.log(errors.logsnr).exp()
    p = DENSITIES[REFERENCE].log_prob(errors.logsnr).exp()
    mean = (w * m).sum() * width
    variances = (
        (w**2 * (m**2 + s**2) / p).sum() * width - mean**2,
        (w**2 * s**2 / p).sum() * width,
        mean * (w * s**2 / m).sum() * width,
        ((w * s).sum() * width) ** 2,
    )
    independent, strata, adaptive, least = (float(v.sqrt() / mean) for v in variances)
    return independent, strata, adaptive, least


def gradient_noise(denoiser: Denoiser, density: Density, stratified: bool, count: int) -> float:
    """Root of the trace of the covariance of flow matching's minibatch gradient."""
    objective = Objective(WEIGHTINGS["flow matching"], density, stratified)
    data, total, squares = letters()[0], torch.zeros(()), 0.0
    for step in range(count):
        loss = losses(objective, denoiser, data.rows(4, step, BATCH), 4, step).loss.mean()
        parts = torch.autograd.grad(loss, list(denoiser.parameters()))
        gradient = torch.cat([part.flatten() for part in parts])
        total, squares = total + gradient, squares + float(gradient.square().sum())
    spread = squares / count - float((total / count).square().sum())
    return (spread * count / (count - 1)) ** 0.5


def gradients(denoiser: Denoiser, count: int) -> dict[tuple[str, bool], float]:
    """Of uniform times and of adapted levels."""
    own = adapted(denoiser, WEIGHTINGS["flow matching"], max(4 * count, 16))
    pair = {REFERENCE: DENSITIES[REFERENCE], "adaptive": own}
    return {
        (name, stratified): gradient_noise(denoiser, density, stratified, count)
        for name, density in pair.items()
        for stratified in DRAWN.values()
    }


# ---------------------------------------------------------------------------- training with each

KINDS = {
    "independent": lambda: recipes["flow-matching"].objective(stratified=False),
    "stratified": lambda: recipes["flow-matching"].objective(),
    "adaptive": lambda: recipes["flow-matching"].learning("adaptive").objective(),
}
Curves = dict[str, list[Run]]


def training_curves(seeds: int, steps: int) -> Curves:
    """Networks trained alike but for their levels: the same start, data and noise per seed."""
    return {
        kind: [train(make(), steps, 32, seed, max(1, steps // 6)) for seed in range(seeds)]
        for kind, make in KINDS.items()
    }


# ---------------------------------------------------------------------------- tables


def spread_table(samples: Samples) -> str:
    """Standard deviations over the mean, in percent: independent / stratified."""
    names = [*DENSITIES, "adaptive"]
    lines = [("weighting", *names)]
    for weighting in WEIGHTINGS:
        cells = []
        for name in names:
            parts = [samples[weighting, name, drawn] for drawn in DRAWN.values()]
            cells.append(" / ".join(f"{100 * float(v.std() / v.mean()):.1f}" for v in parts))
        lines.append((weighting, *cells))
    return tables.markdown(lines)


def mean_table(samples: Samples) -> str:
    """Means, and how far apart they are in standard errors."""
    names = [*DENSITIES, "adaptive"]
    lines = [("weighting", *names, "largest gap")]
    for weighting in WEIGHTINGS:
        both = {n: torch.cat([samples[weighting, n, d] for d in DRAWN.values()]) for n in names}
        means = {n: float(v.mean()) for n, v in both.items()}
        errors = {n: float(v.std()) / len(v) ** 0.5 for n, v in both.items()}
        best = min(errors, key=errors.__getitem__)
        gaps = [
            abs(means[n] - means[best]) / (errors[n] ** 2 + errors[best] ** 2) ** 0.5
            for n in names
            if n != best
        ]
        cells = (f"{means[n]:.4g} +- {errors[n]:.2g}" for n in names)
        lines.append((weighting, *cells, f"{max(gaps):.1f} s.e."))
    return tables.markdown(lines)


def ratios(samples: Samples, weighting: str) -> tuple[float, float, float]:
    """How many times smaller than with independent uniform times: stratified, adaptive, both."""

    def std(name: str, stratified: bool) -> float:
        return float(samples[weighting, name, stratified].std())

    least = std(REFERENCE, False)
    others = ((REFERENCE, True), ("adaptive", False), ("adaptive", True))
    first, second, third = (least / std(*other) for other in others)
    return first, second, third


def ratio_table(samples: Samples, errors: Errors) -> str:
    """The weightings that were measured."""
    heads = ("stratified uniform t", "adaptive", "adaptive and stratified", "at best")
    lines: list[tuple[str, ...]] = [("weighting", *heads)]
    for name, weighting in WEIGHTINGS.items():
        independent, _, _, least = expected(errors, weighting)
        found = (*ratios(samples, name), independent / least)
        lines.append((name, *(f"{ratio:.1f}" for ratio in found)))
    return tables.markdown(lines)


def recipe_table(errors: Errors) -> str:
    """Every recipe's weighting, those with the same in one row; the least gain first."""
    alike: dict[tuple[float, ...], list[str]] = {}
    for name, recipe in recipes.items():
        independent, *others = expected(errors, recipe.weighting)
        found = tuple(round(independent / other, 2) for other in others)
        alike.setdefault(found, []).append(name)
    lines: list[tuple[str, ...]] = [("weighting of", "stratified uniform t", "adaptive", "at best")]
    for found in sorted(alike, key=lambda ratios: ratios[1]):
        lines.append((", ".join(alike[found]), *(f"{ratio:.2f}" for ratio in found)))
    return tables.markdown(lines)


def gradient_table(noise: dict[tuple[str, bool], float]) -> str:
    """Relative to independent uniform times."""
    base = noise[REFERENCE, False]
    lines = [("levels", *DRAWN)]
    for name in (REFERENCE, "adaptive"):
        lines.append((name, *(f"{noise[name, drawn] / base:.3f}" for drawn in DRAWN.values())))
    return tables.markdown(lines)


def curve_table(curves: Curves) -> str:
    """Validation losses: mean over seeds and its standard error."""
    steps = next(iter(curves.values()))[0].steps
    lines = [("levels", *(f"step {step}" for step in steps))]
    for kind, runs in curves.items():
        values = torch.tensor([run.validation for run in runs], dtype=torch.float64)
        error = values.std(0) / len(runs) ** 0.5
        cells = (f"{m:.4f} +- {e:.4f}" for m, e in zip(values.mean(0), error, strict=True))
        lines.append((kind, *cells))
    return tables.markdown(lines)


def paired(curves: Curves) -> str:
    """Last validation losses less those of independent levels, per seed."""
    last = {kind: [run.validation[-1] for run in runs] for kind, runs in curves.items()}
    told = []
    for kind in list(last)[1:]:
        gaps = [a - b for a, b in zip(last[kind], last["independent"], strict=True)]
        told.append(f"{kind}: {', '.join(f'{gap:+.4f}' for gap in gaps)}")
    return "; ".join(told)


# ---------------------------------------------------------------------------- the page

PAGE = """# The noise of the training loss

A recipe's weighting w says what is trained; the density p of the levels it is measured at only says
how noisy the measurement is. Below is the standard deviation of the loss of a minibatch of {batch},
for the UNet of `twosides train glyphs` after {steps} steps of flow matching on letters of 16 x 16
pixels, with everything else (data, noise) as in training. All levels lie in logsnr [-8, 8].

    python benchmarks/loss_variance.py --out docs

makes this page, its numbers included.

![noise of the loss, and validation losses](loss_variance.png)

Standard deviation over the mean, in percent, of {batches} minibatches, levels drawn independently /
stratified. *Adaptive* is `recipe.learning("adaptive")`: levels where w times the measured error is,
and each loss over its p. These numbers are themselves known to {precision} %.

{spread}

How many times smaller that is than with independent uniform times, flow matching's usual choice:

{ratios}

*At best* is the bound for every p and all strata together, `expected` in the script: what is left
then is that letters and their noise differ at one and the same level, which no choice of levels
changes. Where uniform times are near the weighting already, as for flow matching's own, there is
little to gain, and strata reach it alone.

The same for the weighting of every recipe, not from minibatches but from the mean and the spread of
the error at each level (64 bins, {expected_from} minibatches), with infinitely fine strata:

{every}

The mean does not depend on p (plus or minus its standard error; *largest gap* is between any and
the most precise of the row). Where p hardly covers w, as a logit-normal does the ELBO, the mean is
carried by rare samples, and its standard error itself is not to be believed:

{means}

## Gradients and training

What training sees is the gradient. Its noise (the root of the trace of the covariance of a
minibatch's gradient) for flow matching, relative to independent uniform times, from {gradients}
minibatches each:

{gradient}

Flow-matching loss of {held_out} letters that were held out, of networks trained for {train_steps}
steps of 32, {seeds} seeds, averaged weights; plus or minus the standard error over seeds. Seeds
share their start, data and noise between the rows:

{curves}

At the last step, less the loss with independent levels, seed by seed: {paired}.

{verdict}
"""


def verdict(noise: dict[tuple[str, bool], float], curves: Curves, samples: Samples) -> str:
    """What was found, in words that follow the numbers."""
    strata, _, both = ratios(samples, "flow matching")
    base = noise[REFERENCE, False]
    change = [100 * (1 - noise[n, True] / base) for n in (REFERENCE, "adaptive")]
    last = {k: torch.tensor([run.validation[-1] for run in runs]) for k, runs in curves.items()}
    told = []
    for kind in ("stratified", "adaptive"):
        gaps = last[kind] - last["independent"]
        sure = float(gaps.mean().abs()) > 2 * float(gaps.std()) / len(gaps) ** 0.5
        word = ("lower" if gaps.mean() < 0 else "higher") if sure else "the same within the noise"
        told.append(f"with {kind} levels {word} ({float(gaps.mean()):+.4f})")
    return (
        f"So the noise of flow matching's loss falls {strata:.1f} times by strata and {both:.1f} "
        f"times by both; that of its gradient by {change[0]:.0f} % and {change[1]:.0f} %. After "
        f"these few steps the validation loss is {', '.join(told)}."
    )


def picture(samples: Samples, curves: Curves, path: Path) -> None:
    """The noise of the loss as bars, and the validation losses."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    inks = {"independent": "#999999", "stratified": "#0072B2", "adaptive": "#D55E00"}
    cases = [(REFERENCE, False), (REFERENCE, True), ("adaptive", True)]
    for index, ((density, drawn), (kind, ink)) in enumerate(zip(cases, inks.items(), strict=True)):
        values = [samples[w, density, drawn] for w in WEIGHTINGS]
        heights = [100 * float(v.std() / v.mean()) for v in values]
        places = [place + 0.27 * (index - 1) for place in range(len(values))]
        left.bar(places, heights, 0.25, color=ink, label=kind)
    left.set(
        xticks=range(len(WEIGHTINGS)),
        title="noise of the minibatch loss, uniform t and adaptive",
        ylabel="standard deviation / mean, %",
        yscale="log",
    )
    left.set_xticklabels(list(WEIGHTINGS), fontsize=8, rotation=20)
    for (kind, runs), ink in zip(curves.items(), inks.values(), strict=True):
        for run in runs:
            right.plot(run.steps, run.validation, color=ink, lw=0.7, alpha=0.5)
        mean = torch.tensor([run.validation for run in runs]).mean(0)
        right.plot(runs[0].steps, mean.tolist(), "o-", color=ink, lw=2, ms=4, label=kind)
    right.set(title="flow matching: held-out loss", xlabel="training steps", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.25, which="both", lw=0.5)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--steps", type=int, default=850, help="of the network that is measured")
    parser.add_argument("--batches", type=int, default=150, help="minibatches per number")
    parser.add_argument("--train-steps", type=int, default=200, help="of the networks compared")
    parser.add_argument("--out", type=Path, help="folder for loss_variance.md and .png")
    asked: Any = parser.parse_args(arguments)
    steps, batches, train_steps = asked.steps, asked.batches, asked.train_steps
    if asked.quick:
        steps, batches, train_steps = steps // 10, batches // 10, train_steps // 10
    denoiser = train(recipes["flow-matching"].objective(), steps, 64, seed=0).denoiser
    samples, errors = minibatch_losses(denoiser, batches), errors_by_level(denoiser, 2 * batches)
    found = [spread_table(samples), ratio_table(samples, errors), mean_table(samples)]
    found.append(recipe_table(errors))
    print("\n\n".join(found), flush=True)
    noise = gradients(denoiser, max(2, batches // 4))
    print(gradient_table(noise))
    curves = training_curves(3, train_steps)
    text = PAGE.format(
        batch=BATCH,
        steps=steps,
        spread=found[0],
        ratios=found[1],
        means=found[2],
        every=found[3],
        expected_from=2 * batches,
        batches=batches,
        precision=f"{100 / (2 * batches) ** 0.5:.0f}",
        gradients=max(2, batches // 4),
        gradient=gradient_table(noise),
        held_out=HELD_OUT,
        train_steps=train_steps,
        seeds=3,
        curves=curve_table(curves),
        paired=paired(curves),
        verdict=verdict(noise, curves, samples),
    ).replace("\n\n\n", "\n\n")
    print(text[text.index("## Gradients") :])
    if asked.out:
        (asked.out / "loss_variance.md").write_text(text, encoding="utf-8")
        picture(samples, curves, asked.out / "loss_variance.png")


if __name__ == "__main__":
    main()
