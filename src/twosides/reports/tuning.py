"""The page of `twosides tune`: the same noise before, after and by the teacher, and the numbers."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from twosides.display import html as pages
from twosides.display import pictures
from twosides.storage.files import write_file
from twosides.tuning.report import Measure, Tuned

HEADS = (
    "calls", "sampler", "median error", "rms", "end elsewhere", "SW2", "network evaluations",
)  # fmt: skip
SHOWN = 8


def write_page(
    out: Path, model: str, found: Sequence[Tuned], decode: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Write the page of one or more searches.

    out: the .html file, which needs no network.
    model: the name of what was tuned.
    decode: makes images of latents.
    """
    reports = [tuned.report for tuned in found]
    better = [report for report in reports if report.accepted]
    summary = (
        f"{len(better)} of {len(reports)} numbers of calls have a tuned sampler that is proven to "
        "be better than the best of all presets; where none is, that preset is what was written."
    )
    parts = {
        "model": html.escape(model),
        "summary": summary,
        "curve": _curve(found),
        "table": pages.table([HEADS, *(row for tuned in found for row in _rows(tuned))]),
        "calls": ", ".join(sorted({str(report.teacher_calls) for report in reports})),
        "runs": "\n".join(_run(tuned, decode) for tuned in found),
    }
    write_file(out, pages.page(f"twosides: {model}, tuned", "reports/tuning.html", parts).encode())


def _rows(tuned: Tuned) -> list[tuple[str, ...]]:
    report = tuned.report
    rows = list[tuple[str, ...]]()
    for name, measure in ((report.preset, report.before), ("tuned", report.after)):
        if measure is not None:
            asked = f"{report.evaluations:,}" if measure is report.after else ""
            rows.append((str(report.steps), name, *_numbers(measure), asked))
    return rows


def _numbers(measure: Measure) -> tuple[str, ...]:
    shown = (measure.median, measure.rms)
    return (
        *(f"{value:.2g}" for value in shown),
        f"{measure.elsewhere:.0%}",
        f"{measure.sliced_w2:.2g}",
    )


def _curve(found: Sequence[Tuned]) -> str:
    figure, axes = pages.axes(
        xlabel="network calls", ylabel="median error", xscale="log", yscale="log"
    )
    for name, colour, kind in (("best preset", "#888888", "before"), ("tuned", "#3366cc", "after")):
        points = [(t.report.steps, getattr(t.report, kind)) for t in found]
        points = [(steps, measure.median) for steps, measure in points if measure is not None]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
    steps = [tuned.report.steps for tuned in found]
    axes.set_xticks(steps, [str(number) for number in steps])
    axes.minorticks_off()
    axes.legend()
    return pages.chart(figure, "median error against network calls, best preset and tuned")


def _run(tuned: Tuned, decode: Callable[[Tensor], Tensor] | None) -> str:
    report = tuned.report
    parts = [f"<h2>{report.steps} calls</h2>", f"<p>{html.escape(report.why)}.</p>"]
    parts += [f"<p>{html.escape(note)}.</p>" for note in report.notes]
    figures = [
        f"<figure>{picture}<figcaption>{html.escape(name)}</figcaption></figure>"
        for name, x in tuned.shown.items()
        if (picture := _picture(x, decode))
    ]
    parts.append(f'<div class="grid">{"".join(figures)}</div>' if figures else "")
    stages = [("stage", "network evaluations", "numbers fitted", "iterations", "loss (choosing)")]
    for stage in report.stages:
        loss = "" if stage.valid is None else f"{stage.valid:.2g}"
        fitted = (str(stage.parameters or ""), str(stage.iterations or ""), loss)
        stages.append((stage.name, f"{stage.evaluations:,}", *fitted))
    return "\n".join([*parts, pages.table(stages)])


def _picture(x: Tensor, decode: Callable[[Tensor], Tensor] | None) -> str:
    """Samples as a picture; empty for what is none."""
    images = decode(x) if decode else x
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        return ""
    zoom = max(1, 64 // images.shape[-1])
    sheet = pictures.grid(images[:SHOWN], columns=min(4, len(images)), zoom=zoom)
    return pages.image(pictures.png(sheet), "samples")
