"""Every word of every scheduler class of diffusers' that moves timesteps, read by ours.

For each class of the installed diffusers and each value of each such word, at 1, 2, 4, 10, 50 and N
steps: the timesteps, and what the network is first shown, against the class's own. Where they
differ the reason is told. Writes docs/schedulers.md.

    python benchmarks/scheduler_words.py
"""

from __future__ import annotations

import argparse
import inspect
import sys
import types
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch

from twosides.integrations.diffusers import Scheduler
from twosides.integrations.diffusers.configs import MODULES
from twosides.integrations.diffusers.notation import ORIGINS, REFUSED

# Two classes import it for their noise, which is not looked at here.
sys.modules.setdefault("torchsde", types.ModuleType("torchsde"))

STEPS = (1, 2, 4, 10, 50, 1000)
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
BETAS = ("scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp")
SVD = {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True}
SVD |= {"sigma_min": 0.002, "sigma_max": 700.0}
ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
WORDS: dict[str, list[dict[str, Any]]] = {
    "timestep_spacing": [{"timestep_spacing": s} for s in ("leading", "trailing", "linspace")],
    "steps_offset": [{"steps_offset": 1}, {"steps_offset": 1, "timestep_spacing": "leading"}],
    "set_alpha_to_one": [{"set_alpha_to_one": False}],
    "final_sigmas_type": [{"final_sigmas_type": "sigma_min"}],
    "use_karras_sigmas": [{"use_karras_sigmas": True}],
    "use_exponential_sigmas": [{"use_exponential_sigmas": True}],
    "use_beta_sigmas": [{"use_beta_sigmas": True}],
    "use_lu_lambdas": [{"use_lu_lambdas": True}],
    "use_flow_sigmas": [FLOW, FLOW | {"flow_shift": 3.0}],
    "shift": [{"shift": 3.0}],
    "shift_terminal": [{"shift_terminal": 0.1}],
    "invert_sigmas": [{"invert_sigmas": True}],
    "rescale_betas_zero_snr": [ZERO, ZERO | {"timestep_spacing": "trailing"}],
    "beta_schedule": [{"beta_schedule": s} for s in BETAS],
    "timestep_type": [SVD],
    "interpolation_type": [{"interpolation_type": "log_linear"}],
    "sigma_schedule": [{"sigma_schedule": s} for s in ("karras", "exponential")],
    "rho": [{"rho": 5.0}],
    "snr_shift_scale": [{"snr_shift_scale": 1.0}],
    "original_inference_steps": [{"original_inference_steps": n} for n in (20, 100)],
    "lambda_min_clipped": [{"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"}],
    "skip_prk_steps": [{"skip_prk_steps": True}],
    "variance_type": [{"variance_type": "learned_range"}],
}  # fmt: skip


def reason(row: Row) -> str:
    """Why ours differ from the class's own; "" where nobody knows."""
    name, words, steps = row.name, row.words, row.steps
    solver = any(part in name for part in ("DPMSolver", "UniPC", "DEIS", "SASolver"))
    ramp = any(word.startswith("use_") and word.endswith(("sigmas", "lambdas")) for word in words)
    if row.note.startswith("theirs"):
        return "the class itself refuses"
    if "steps_offset" in words and steps == 1000 and "visits index 1000" in row.note:
        return "refused: with the offset, the first index is N; the class fails in `step`"
    if name.startswith("PNDM"):
        return "the class lists the calls of its Runge-Kutta or multistep start"
    if steps == 1:
        return "one step begins at the noise; the class begins at the last level and returns noise"
    if "rescale_betas_zero_snr" in words and name.startswith("Euler") and steps == 1000:
        return "the class takes 4096 for an infinite sigma, which the one after it exceeds"
    if words.get("timestep_spacing") == "leading" and solver and steps == 1000:
        return "the class has all its timesteps at 0"
    if "use_flow_sigmas" in words and row.apart < 2e-3:
        return "the class cuts timesteps off to integers"
    if (solver and ramp) or words.get("final_sigmas_type") == "sigma_min":
        return "the class visits its last sigma twice; ours is there after as many steps"
    if name.startswith("FlowMatch") and "shift" in words and row.apart < 6e-3:
        return "the class shifts its last time twice"
    return ""


class Row(NamedTuple):
    """One class with one config, at all numbers of steps.

    apart: the greatest distance of a timestep, in units of the class's range.
    shown: the greatest relative distance of what the network is first shown.
    note: what was refused.
    """

    name: str
    words: dict[str, Any]
    steps: int
    apart: float
    shown: float
    note: str


def configs(name: str) -> Iterator[dict[str, Any]]:
    """The configs of a class that are tried: one word after the other."""
    takes = inspect.signature(load(name).__init__).parameters
    yield {}
    for word, values in WORDS.items():
        if word in takes:
            yield from (config for config in values if config.keys() <= takes.keys())


def load(name: str) -> Any:
    """A scheduler class of diffusers."""
    return getattr(import_module(MODULES.get(name, "diffusers")), name)


def compare(name: str, words: dict[str, Any], steps: int) -> Row:
    """One class with one config at one number of steps."""
    # SCM has a second angle for two steps, and refuses it for others, although it is the default.
    told = {"intermediate_timesteps": None} if name == "SCMScheduler" and steps != 2 else {}
    try:
        native = load(name)(**words)
        native.set_timesteps(steps, **told)
        theirs = native.timesteps.double()
    except Exception as error:
        return Row(name, words, steps, 0.0, 0.0, f"theirs: {type(error).__name__}: {error}"[:110])
    try:
        ours = Scheduler.from_pipeline(types.SimpleNamespace(scheduler=native), "ddim")
        ours.set_timesteps(steps, **told)
    except ValueError as error:
        return Row(name, words, steps, 0.0, 0.0, f"ours: {error}"[:110])
    mine = ours.timesteps.double()
    if len(theirs) != len(mine) and getattr(native, "order", 1) > 1:
        theirs = theirs[:: native.order] if name.startswith("FlowMatchHeun") else theirs
        theirs = torch.cat([theirs[:1], theirs[1:][1::2]]) if len(theirs) != len(mine) else theirs
    if len(theirs) != len(mine):
        note = f"{len(theirs)} timesteps, ours {len(mine)}"
        return Row(name, words, steps, 1.0, 0.0, note)
    scale = max(float(theirs.abs().max()), float(mine.abs().max()), 1e-9)
    apart = float((theirs - mine).abs().max()) / scale
    return Row(name, words, steps, apart, first_input(native, ours), "")


def first_input(native: Any, ours: Any) -> float:
    """How far apart the sizes of what the network is first shown are."""
    sizes = []
    for scheduler in (native, ours):
        z = torch.ones(1, 1, dtype=torch.float64) * getattr(scheduler, "init_noise_sigma", 1.0)
        if hasattr(scheduler, "scale_model_input"):
            z = scheduler.scale_model_input(z, scheduler.timesteps[0])
        sizes.append(float(z))
    return abs(sizes[1] / sizes[0] - 1)


def everything(names: list[str] | None = None, steps: tuple[int, ...] = STEPS) -> list[Row]:
    """All rows."""
    diffusers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            compare(name, words, count)
            for name in names or ORIGINS
            for words in configs(name)
            for count in steps
        ]


def differs(row: Row) -> bool:
    """Whether ours are not the class's own."""
    return bool(row.note) or row.apart > 1e-3 or row.shown > 1e-3


def table(rows: list[Row]) -> str:
    """docs/schedulers.md."""
    lines = [HEAD]
    lines += ["| class | configs | same | differ |", "| --- | ---: | ---: | --- |"]
    for name in ORIGINS:
        own = [row for row in rows if row.name == name]
        tried = [row for row in own if not row.note.startswith("theirs")]
        why: dict[str, list[str]] = {}
        for row in filter(differs, tried):
            said = ", ".join(f"{key}={value}" for key, value in row.words.items()) or "its defaults"
            why.setdefault(reason(row), []).append(f"{said} at {row.steps}")
        notes = "; ".join(f"{len(rows)}: {text}" for text, rows in why.items())
        same = len(tried) - sum(map(len, why.values()))
        lines.append(f"| {name.removesuffix('Scheduler')} | {len(tried)} | {same} | {notes} |")
    lines += ["", "## Classes that are not read", "", "| class | why |", "| --- | --- |"]
    lines += [f"| {name.removesuffix('Scheduler')} | {why} |" for name, why in REFUSED.items()]
    return "\n".join(lines) + "\n"


HEAD = """# Scheduler classes

`Scheduler.from_pipeline` and `from_config` read the config of any of these classes of diffusers.
Each was compared with ours, by `python benchmarks/scheduler_words.py`: every value of every word
that moves timesteps, one at a time, at 1, 2, 4, 10, 50 and 1000 steps (a *config* is one of these).
*Same* are those with the same timesteps and the same first input of the network, to 1/1000.
"""


def main() -> None:
    """Write the table, and fail where a difference has no reason."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/schedulers.md"))
    args = parser.parse_args()
    rows = everything()
    args.out.write_text(table(rows))
    unknown = [row for row in rows if differs(row) and not reason(row)]
    for row in unknown:
        print(row)
    print(f"{len(rows)} configs, {sum(map(differs, rows))} differ, {len(unknown)} without a reason")
    sys.exit(bool(unknown))


if __name__ == "__main__":
    main()
