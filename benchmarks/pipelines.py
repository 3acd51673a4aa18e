"""Every preset in every tiny pipeline of diffusers, against the pipeline's own scheduler.

    python benchmarks/pipelines.py --out docs

The pipelines are those of tests/helpers/pipelines.py: diffusers' classes with small random
networks.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from twosides.integrations.diffusers.notation import ORIGINS, path_of
from twosides.sampling.grids import Uniform
from twosides.sampling.presets import samplers


def _shared() -> Any:
    """tests/helpers/pipelines.py."""
    path = Path(__file__).parent.parent / "tests" / "helpers" / "pipelines.py"
    spec = importlib.util.spec_from_file_location("tiny_pipelines", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tiny = _shared()

NEAR = 0.02
QUICK = ("flux", "sd3-img2img", "dit", "cogvideox")
GROUPS = {
    "Flow matching": ("flow",),
    "Variance-preserving noise schedules": ("vp",),
    "EDM, and continuous timesteps": ("edm", "continuous"),
}


def steps_of(case: str, preset: str) -> int:
    """Of a preset's run: more for order 1; 0.7 of it is whole, for strength 0.7."""
    if samplers[preset].order == 1:
        return 200
    return 50 if case == "svd" else 100


def reference_steps(case: str) -> tuple[int, int]:
    """Of the native scheduler's runs whose extrapolation is the limit."""
    return (100, 200) if case == "svd" else (250, 500)


# ---------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class Cell:
    """What a preset did in a pipeline: text for the table, a reason for a note, and how it went."""

    text: str
    note: str = ""
    kind: str = "right"  # or "refused", "wrong"


@dataclass(frozen=True)
class Row:
    """A pipeline: its native scheduler, the limit's, and what each preset did."""

    case: str
    pipeline: str
    scheduler: str
    path: str
    steps: tuple[int, int]
    native: float  # the native scheduler's own difference to its limit, at 100 steps
    ours: float  # of kab2c's limit
    cells: dict[str, Cell]


def measured(name: str) -> Row:
    """All presets in one pipeline."""
    trial, steps = tiny.Trial(tiny.CASES[name]), reference_steps(name)
    limit = trial.limit(steps)
    most = steps_of(name, "kab2c")
    native = tiny.difference(trial.latents(most), limit)
    ours = tiny.difference(trial.limit((most, 2 * most), "kab2c"), limit)
    cells = {preset: attempted(trial, preset, limit) for preset in tiny.PRESETS}
    kind, config = type(trial.native).__name__, trial.native.config
    path = path_of({**config, "origin": kind})
    return Row(name, type(trial.pipe).__name__, kind, path, steps, native, ours, cells)


def attempted(trial: Any, preset: str, limit: Tensor) -> Cell:
    """One cell; a ValueError is a refusal, anything else is for whoever runs this."""
    try:
        if samplers[preset].stochastic:
            fault = trial.fault(preset, tiny.noisy_steps(preset), limit)
            return Cell("**wrong**", fault, "wrong") if fault else Cell("ok")
        return compared(trial, preset, limit)
    except ValueError as error:
        return Cell("refused", str(error), "refused")


def compared(trial: Any, preset: str, limit: Tensor) -> Cell:
    """The difference to the limit."""
    steps, solver, note = steps_of(trial.case.name, preset), samplers[preset].solver, ""
    if solver.even and "strength" in trial.case.inputs():
        # With steps of its own, a run at this strength begins at another level.
        own = replace(samplers["kab3c"], grid=Uniform("u"))
        limit, note = trial.latents(steps, own), OWN_START
    far = tiny.difference(trial.latents(steps, preset), limit)
    if far < NEAR:
        return Cell(f"{far:.2g}", note)
    # Native grids of "leading" spacing need a count that divides 1000 here, or a grid of its own.
    many = 4 * steps if solver.even else 500
    more = tiny.difference(trial.latents(many, preset), limit)
    how = f"{far:.2g} at {steps} steps, {more:.2g} at {many}"
    preset = "bdia" if preset == "leapfrog" and more < far / 4 else preset  # it comes near too
    return Cell(f"**{far:.2g}**", f"{how}: {WHY.get(preset, 'not explained')}", "wrong")


OWN_START = (
    "against the same start: this preset keeps equal steps in flow matching's time, so that the "
    "same `strength` begins at another level than the native scheduler's. The limit here is "
    "kab3c's on those steps"
)
WHY = {
    "pf-euler": "it steps in the path's own z and t, and towards the data sigma falls like the "
    "square root of t there, so that the error falls like 1 / sqrt(steps)",
    "leapfrog": "nothing damps what leapfrog, which is reversible, does wrong; with networks of "
    "noise at large noise that grows",
    "bdia": "it keeps equal steps in flow matching's time, of which the first are far too long "
    "for a network of noise at large noise; with more steps it comes near",
}

# ---------------------------------------------------------------------------- the other way round

OTHERS = [
    name
    for name in ORIGINS
    if not name.startswith(("CogVideoX", "Cosine", "EDM")) and "Parallel" not in name
]
RANDOM = (
    "DDPMScheduler", "LCMScheduler", "TCDScheduler", "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler", "SASolverScheduler",
    "FlowMatchLCMScheduler", "LTXEulerAncestralRFScheduler",
)  # fmt: skip
VERDICTS = ("right", "wrong", "raises", "noise", "absent")


def others(case: str) -> dict[str, list[str]]:
    """diffusers' schedulers in place of the native one: class names by verdict."""
    trial = tiny.Trial(tiny.CASES[case])
    limit, native = trial.limit((250, 500)), trial.native
    found: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
    for name in OTHERS:
        verdicts = []
        for flags in ({}, tiny.FLOW):
            trial.native = native
            verdicts.append(_verdict(trial, name, flags, limit))
        found[min(verdicts, key=("right", "noise", "wrong", "raises", "absent").index)].append(name)
    return found


def _verdict(trial: Any, name: str, flags: dict[str, Any], limit: Tensor) -> str:
    try:
        kind = getattr(diffusers, name)
        trial.native = kind.from_config(trial.native.config, **flags)
        got = trial.latents(200)
    except ImportError:
        return "absent"
    except Exception:  # whatever a pipeline and a scheduler not made for it raise
        return "raises"
    if name in RANDOM:  # whether its distribution is right is not to be seen from one result
        flow = name.startswith(("FlowMatch", "LTX")) or (
            flags and "use_flow_sigmas" in inspect.signature(kind).parameters
        )
        return "noise" if flow else "wrong"
    return "right" if tiny.difference(got, limit) < NEAR else "wrong"


def swapped_table(cases: Iterable[str]) -> str:
    """Markdown: how many of diffusers' own schedulers do what the native one does."""
    lines = [
        "| pipeline | right | runs, and is wrong | raises | with noise, not judged |",
        "| --- | --- | --- | --- | --- |",
    ]
    for case in cases:
        found = others(case)
        right = ", ".join(name.removesuffix("Scheduler") for name in found["right"])
        counts = [len(found[verdict]) for verdict in ("wrong", "raises", "noise")]
        lines.append(
            f"| {case} | {len(found['right'])}: {right} | {' | '.join(map(str, counts))} |"
        )
    return "\n".join(lines)


# ---------------------------------------------------------------------------- tables


class Notes:
    """Footnotes, each reason once."""

    def __init__(self) -> None:
        """None yet."""
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        """A reference to this note; "" for none."""
        if not text:
            return ""
        if text not in self.texts:
            self.texts.append(text)
        return f" [{self.texts.index(text) + 1}]"

    def __str__(self) -> str:
        return "\n".join(f"{number}. {text}." for number, text in enumerate(self.texts, 1))


def table(rows: list[Row], notes: Notes) -> str:
    """Markdown: presets down, pipelines across."""
    lines = [
        f"| preset | {' | '.join(row.case for row in rows)} |",
        "| --- |" + " --- |" * len(rows),
    ]
    for preset in tiny.QUIET + tiny.NOISY:
        cells = [row.cells[preset] for row in rows]
        shown = " | ".join(cell.text + notes.mark(cell.note) for cell in cells)
        lines.append(f"| {preset} | {shown} |")
    return "\n".join(lines)


def references(rows: list[Row]) -> str:
    """Markdown: what each pipeline is compared with."""
    lines = [
        "| pipeline | class | native scheduler | limit from | native at 100 | kab2c's limit |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        steps, least = row.steps, steps_of(row.case, "kab2c")
        at = "" if least == 100 else f" (at {least})"
        kind = row.scheduler + (" (no clipping)" if row.case == "ddpm" else "")
        lines.append(
            f"| {row.case} | {row.pipeline} | {kind} | {steps[0]} and {steps[1]} steps | "
            f"{row.native:.2g}{at} | {row.ours:.2g} |"
        )
    return "\n".join(lines)


def summary(rows: list[Row]) -> str:
    """How many cells went how."""
    cells = [(preset, cell) for row in rows for preset, cell in row.cells.items()]

    def count(test: Callable[[str, Cell], bool]) -> int:
        return sum(test(preset, cell) for preset, cell in cells)

    quiet = count(lambda preset, cell: preset in tiny.QUIET and cell.kind == "right")
    noisy = count(lambda preset, cell: preset in tiny.NOISY and cell.kind == "right")
    refused = count(lambda preset, cell: cell.kind == "refused")
    wrong = [
        f"{preset} in {row.case}"
        for row in rows
        for preset, cell in row.cells.items()
        if cell.kind == "wrong"
    ]
    named = f": {', '.join(wrong)}" if wrong else ""
    return (
        f"Of {len(cells)} combinations, {quiet} deterministic ones end within {NEAR} of the limit, "
        f"{noisy} stochastic ones are ok, {refused} are refused before they begin, and "
        f"{len(wrong)} fail{named}."
    )


PAGE = """# Every preset in every pipeline

`Scheduler.from_pipeline(pipe, sampler=...)` in {count} pipelines of diffusers {version}, with every
preset. The pipelines are diffusers' own classes; their networks are small and random, made so that
a wrong prediction, path, time or start shows (`tests/helpers/pipelines.py`).

    python benchmarks/pipelines.py --out docs

makes this page, its numbers included; `--quick` is a part of it in about a minute.

{summary}

How to read the tables:

- *A number*, for deterministic presets: `|z - limit| / |limit|` of the last latents, at 100 steps,
  or 200 for presets of order 1 (SVD: 50 and 200). The limit is the native scheduler's, of
  infinitely many steps. Much of the number may be the steps' and not the preset's: see the column
  "native at 100" below. With "leading" spacing, a run of few steps begins at less noise.
- *ok*, for stochastic presets: at 10 steps (Restart: 40) the result is finite, the same again with
  the same `seed`, another with another seed from the same initial noise, and of the limit's size
  within a factor of 4. Whether their distributions are right is for
  `tests/integrations/test_scheduler.py`.
- *refused*: a ValueError when the run is laid out, with the reason in the note.
- **Bold**: more than {near} from the limit, or not ok, with the reason in the note.

leapfrog and bdia need equal steps and keep a grid of their own, equal steps in flow matching's
time, in every pipeline; what that does is in their notes.

{tables}

## Notes

{notes}

## The limits

The native scheduler at two numbers of steps, extrapolated: `c / steps` is left out. It is each
pipeline's own, except DDPM's, which adds noise and clips: there it is DDIM's on the same path.
*native at 100*: its own difference to its limit at as many steps as ours had. *kab2c's limit*, from
as many and twice as many, has the difference to the native one that neither number of steps
explains. LTX's is the largest: its last step, from t = 0.1, is as long for any number of steps, and
samplers differ in it.

{references}

## diffusers' own schedulers in the same pipelines

{others} schedulers of diffusers, made from the native one's config as it is, and once more with
`use_flow_sigmas`, `prediction_type="flow_prediction"` and `flow_shift`; the better of the two
counts. *right*: within {near} of the limit at 200 steps. *wrong* includes those with noise that
take the velocity for noise.{absent}

{swapped}
"""


def page(rows: list[Row], swapped: str) -> str:
    """All of it, in Markdown."""
    notes, tables = Notes(), []
    for title, paths in GROUPS.items():
        if here := [row for row in rows if row.path in paths]:
            tables.append(f"## {title}\n\n{table(here, notes)}")
    missing = [name for name in OTHERS if _missing(name)]
    absent = f" Not installed, and not counted: {', '.join(missing)}." if missing else ""
    return PAGE.format(
        count=len(rows),
        version=diffusers.__version__,
        summary=summary(rows),
        near=NEAR,
        tables="\n\n".join(tables),
        notes=notes,
        references=references(rows),
        others=len(OTHERS) - len(missing),
        absent=absent,
        swapped=swapped,
    )


def _missing(name: str) -> bool:
    """Whether a package that this scheduler needs is not installed."""
    try:
        getattr(diffusers, name)()
    except ImportError:
        return True
    return False


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--case", choices=tiny.CASES, action="append", help="only these")
    parser.add_argument("--out", type=Path, help="folder for pipelines.md")
    asked: Any = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    names, rows = asked.case or (QUICK if asked.quick else tiny.CASES), []
    for name in names:
        began = time.perf_counter()
        rows.append(measured(name))
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    text = page(rows, swapped_table(["flux"] if asked.quick else ["sd3", "flux"]))
    print(text)
    if asked.out:
        (asked.out / "pipelines.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
