"""What a name of a sampler may be: the one place where names become samplers, and plans.

A name is a preset, "dpmpp-2m", with numbers if it takes some, "kab2(0.5, 3)", or a published form,
"unipc-published"; or "auto"; or the path of a JSON file of a sampler, or of a plan if one is due.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, SupportsIndex

from twosides.naming import named, split_call, unknown
from twosides.sampling.grids import GRIDS, Grid
from twosides.sampling.noise import STOCHASTICITIES, Stochasticity
from twosides.sampling.plan import Plan
from twosides.sampling.presets import AUTO, FAMILIES, samplers
from twosides.sampling.sampler import Sampler
from twosides.schedules import Schedule, schedule_named

PUBLISHED = "-published"


def names() -> list[str]:
    """All names of presets, those of published forms included, and "auto"."""
    return [*samplers, *(n + PUBLISHED for n, made in samplers.items() if made.published), "auto"]


def sampler_named(
    sampler: str | Sampler,
    noise: str | Stochasticity | None = None,
    grid: str | Grid | None = None,
) -> Sampler:
    """The sampler of a name, or the Sampler itself; with other noise or another grid if wanted.

    sampler: a preset, "dpmpp-2m"; with numbers if it takes some, "kab2(0.5, 3)"; "unipc-published",
        its authors' code, known errors included; "auto", see `solvers.Automatic`; a sampler's file.
    noise: in place of its own: a row of STOCHASTICITIES, with numbers if wanted, "churn(0.3)".
    grid: in place of its own: a row of GRIDS, with numbers if wanted, "karras(5)".

        >>> sampler_named("kab2(0.5, 3)").order
        2
        >>> sampler_named("unipc-published").solver.lower_order_final
        True
    """
    made = _preset(sampler) if isinstance(sampler, str) else sampler
    if isinstance(made, type):
        raise TypeError(f"{made.__name__} is a class; pass {made.__name__}()")
    if not isinstance(made, Sampler):
        raise TypeError(
            f"a sampler is a preset's name or a Sampler(grid, solver, stochasticity), got {made!r}"
        )
    if noise is not None:
        made = replace(made, stochasticity=_part("noise", noise, STOCHASTICITIES))
    return made if grid is None else replace(made, grid=_part("grid", grid, GRIDS))


def _part(kind: str, name: Any, table: Any) -> Any:
    return named(kind, name, table) if isinstance(name, str) else name


def _preset(text: str) -> Sampler:
    if text.endswith(".json"):
        from twosides.storage.plans import read_named

        found = read_named(Path(text))
        if isinstance(found, Plan):
            raise ValueError(
                f"{text} is the file of a plan, which has its own schedule and steps; where a "
                "sampler for any is wanted, name a preset or a file of a sampler"
            )
        return found
    name, numbers = split_call(text)
    name, published = name.removesuffix(PUBLISHED), name.endswith(PUBLISHED)
    if text == "auto":
        return AUTO
    if name not in samplers:
        raise unknown("sampler", name, samplers)
    if numbers and name not in FAMILIES:
        raise ValueError(f"{name} takes no numbers; these do: {', '.join(FAMILIES)}")
    try:
        made = FAMILIES[name](*numbers) if numbers else samplers[name]
    except TypeError:
        raise ValueError(f"sampler {text!r}: {name} takes fewer numbers") from None
    if published and made.published is None:
        raise ValueError(f"{name} is as it was published; leave {PUBLISHED} out")
    return made.published if published and made.published else made


def plan(
    sampler: str | Sampler,
    schedule: str | Schedule,
    steps: SupportsIndex,
    *,
    encode: bool = False,
) -> Plan:
    """The plan of a sampler on a schedule.

    sampler: a Sampler or a name, see `sampler_named`; or the path of a JSON file of a plan, whose
        own schedule and steps then count.
    schedule: where to sample, a name or a Schedule.
    steps: the number of steps, >= 1.
    encode: whether to go from data to noise.

    >>> from twosides.schedules import FlowMatching
    >>> plan("ddim", FlowMatching(), 4).nfe
    4
    """
    name = sampler if isinstance(sampler, str) else ""
    if name.endswith(".json"):
        from twosides.storage.plans import read_named

        found = read_named(Path(name))
        if isinstance(found, Plan):
            return found
    return sampler_named(sampler).plan(schedule_named(schedule), steps, name, encode=encode)
