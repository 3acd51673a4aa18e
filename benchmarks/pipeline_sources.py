"""Every pipeline class of the installed diffusers: what it asks of its scheduler, from its source.

Writes docs/pipeline_classes.md: whether `Scheduler.from_pipeline` takes it, or why it refuses.

    python benchmarks/pipeline_sources.py
"""

from __future__ import annotations

import argparse
import inspect
import warnings
from pathlib import Path

import diffusers

from twosides.integrations.diffusers import Scheduler
from twosides.integrations.diffusers.demands import demands, find_missing

HEAD = """# Pipeline classes

What each pipeline class of diffusers {version} asks of its scheduler, read from its source by
`python benchmarks/pipeline_sources.py`, and whether the scheduler here has it. Where it has not,
`Scheduler.from_pipeline` says so before anything runs. That a class is taken says that its calls
are understood, not that it was run: [pipelines.md](pipelines.md) says that of two dozen.

{count} classes take a scheduler: {taken} are taken, {refused} are refused.
"""


def classes() -> list[type]:
    """The pipelines that take a scheduler, by name."""
    found = list[type]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in sorted(name for name in dir(diffusers) if "Pipeline" in name):
            kind = getattr(diffusers, name)
            takes = inspect.signature(kind.__init__).parameters if inspect.isclass(kind) else {}
            if "scheduler" in takes and ".pipelines." in kind.__module__:
                found.append(kind)
    return found


def table() -> str:
    """docs/pipeline_classes.md."""
    rows, refused = list[str](), 0
    for kind in classes():
        asked, reasons = demands(kind), find_missing(kind, Scheduler)
        refused += bool(reasons)
        uses = ", ".join(sorted(asked.reads - {"config", "order", "step", "timesteps"}))
        verdict = "; ".join(reasons) or "taken"
        rows.append(f"| {kind.__name__.removesuffix('Pipeline')} | {uses} | {verdict} |")
    count = len(rows)
    head = HEAD.format(
        version=diffusers.__version__,
        count=count,
        taken=count - refused,
        refused=refused,
    )
    lines = [head, "| class | uses, besides config, order, step and timesteps | verdict |"]
    return "\n".join([*lines, "| --- | --- | --- |", *rows]) + "\n"


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/pipeline_classes.md"))
    parser.parse_args().out.write_text(table())


if __name__ == "__main__":
    main()
