"""The levels of a run: the log-SNRs that a config means, or that a caller gives.

Each class of diffusers spaces its timesteps in its own way, under names that several share
("linspace" has n points in some and n + 1 in others). *Nodes* are the log-SNRs of the levels that a
run goes through, from noise to data.
"""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twosides.clocks import CNoise
from twosides.integrations.diffusers.notation import (
    CONSISTENCY_CLASSES,
    FLOW_CLASSES,
    SIGMA_CLASSES,
    SOLVER_CLASSES,
    Config,
    Notation,
    origin,
    table,
)
from twosides.naming import unknown
from twosides.sampling.frames import Array
from twosides.sampling.grids import GRIDS, Given, Grid, Indices
from twosides.sampling.grids.beta import beta_quantiles
from twosides.sampling.sampler import Sampler
from twosides.schedules import FlowMatching, Schedule, Tabulated

_TO_FIRST = ("DEISMultistep", "SASolver")  # the classes that end at index 0 with every config


def choose_nodes(
    config: Config,
    notation: Notation,
    sampler: Sampler,
    steps: int,
    timesteps: Any = None,
    sigmas: Any = None,
    mu: float | None = None,
) -> tuple[float, ...]:
    """The nodes of a run.

    config: the scheduler's config.
    notation: the network's notation.
    sampler: the sampler; its grid is used where the config says so, see `Scheduler`.
    steps: the number of steps, where neither timesteps nor sigmas are given.
    timesteps, sigmas, mu: see `Scheduler.set_timesteps`.
    """
    name = config["grid"]
    listed = isinstance(sampler.grid, Given)  # of a file: its solver may have no other levels
    whole = not isinstance(config["sampler"], str) or sampler.solver.even or listed
    own = GRIDS[name] if name not in (None, "sampler") else None
    if own is None and (name or whole):
        own = sampler.grid
    if timesteps is not None and sigmas is None:
        return _check_nodes(from_timesteps(config, notation, timesteps))
    if sigmas is not None and not (own and _are_even(sigmas)):
        return _check_nodes(from_sigmas(config, notation, sigmas, mu))
    count = steps if sigmas is None else len(sigmas)
    if isinstance(own, Given):
        return _listed(config, own, count, mu)
    if own is None:
        return _check_nodes(native_nodes(config, notation, count, mu))
    clock = notation.latents
    clock = clock.shifted(shift_of(config, mu)) if notation.path == "flow" else clock
    return _check_nodes(grid_nodes(config, own, clock, count))


def steps_of(config: Config, count: int) -> int:
    """The steps of a run of `num_inference_steps=count`, which one class counts by levels."""
    return count - 1 if origin(config) == "MiniMaxH3" else count


def _listed(config: Config, grid: Given, steps: int, mu: float | None) -> tuple[float, ...]:
    """The nodes of a sampler that lists them, which no shift moves."""
    if steps != len(grid.values) - 1:
        raise ValueError(
            f"this sampler lists the levels of {len(grid.values) - 1} steps, but {steps} were "
            f"asked; pass num_inference_steps={len(grid.values) - 1}"
        )
    if mu is not None and config.get("use_dynamic_shifting"):
        warnings.warn(
            f"this sampler lists its levels as log-SNRs: the shift of this resolution, mu={mu:.4g},"
            " does not move them. Where they were tuned at another resolution, check them there",
            stacklevel=2,
        )
    return grid.values


def _are_even(sigmas: Any) -> bool:
    """Whether these are 1 ... 1/n, which pipelines pass when the user chose nothing."""
    values = np.asarray(sigmas, dtype=np.float64)
    return np.allclose(values, np.linspace(1, 1 / len(values), len(values)), atol=1e-6)


def _check_nodes(nodes: Tensor) -> tuple[float, ...]:
    values = tuple(nodes.tolist())
    for here, there in pairwise(values):
        if not there > here:
            raise ValueError(
                f"timesteps and sigmas must fall strictly, from noise to data, but logsnr "
                f"{here:.6g} is followed by {there:.6g}"
            )
    return values


def interpolate(nodes: tuple[float, ...], asked: list[float], timesteps: Any) -> Tensor:
    """The timesteps of each call, where both timesteps and sigmas are given.

    nodes: the log-SNRs at which the network is told `timesteps`.
    asked: the log-SNRs of the calls.
    timesteps: the timesteps at the nodes.
    """

    def time(logsnr: Any) -> Any:
        return 1 / (1 + np.exp(0.5 * np.asarray(logsnr)))

    given = np.asarray(timesteps, dtype=np.float64)
    calls, known = time(asked), time(nodes[: len(given)])
    return torch.from_numpy(np.interp(-calls, -known, given)).float()


def shift_of(config: Config, mu: float | None) -> float:
    """The factor by which a flow pipeline's times are shifted.

    config: the scheduler's config.
    mu: the logarithm of the factor, which is used where the config has use_dynamic_shifting; it is
        ignored elsewhere, because FLUX passes it always.
    """
    if not config.get("use_dynamic_shifting"):
        shift = config.get("shift") if origin(config) in FLOW_CLASSES else config.get("flow_shift")
        return float(shift or config.get("shift") or 1.0)
    if mu is None:
        raise ValueError(
            "this model's shift depends on the resolution (use_dynamic_shifting=True): pass "
            "mu=..., as its pipeline does, or set use_dynamic_shifting=False and shift=..."
        )
    return math.exp(mu) if config.get("time_shift_type") != "linear" else float(mu)


def native_nodes(config: Config, notation: Notation, steps: int, mu: float | None = None) -> Tensor:
    """The nodes of the model's own scheduler in `steps` steps, as log-SNRs."""
    if notation.path == "flow":
        return _flow_nodes(config, _flow_times(config, steps), shift_of(config, mu))
    if origin(config) == "SCM":
        return notation.clock.logsnr(_angles(config, steps), notation.schedule)
    if notation.path == "angle":
        sigma = torch.linspace(1, 0, steps + 1, dtype=torch.float64).mul(math.pi / 2).sin() ** 2
        return torch.log1p(-(sigma**2)) - 2 * sigma.log()
    if _ramp_name(config) or notation.path != "vp":
        return _ramp_nodes(config, notation.schedule, steps)
    first = _ends_at_first(config)
    assert isinstance(notation.schedule, Tabulated)
    indices = _indices(config, notation.schedule.count, steps, first)
    return at_indices(notation.schedule, indices, "first" if first else "data")


def grid_nodes(config: Config, grid: Grid, schedule: Schedule, steps: int) -> Tensor:
    """The nodes of another grid; its last step leads to the config's end, if that is further."""
    nodes = grid.logsnrs(schedule, steps)
    goal = schedule.logsnr_max if _ends_at_first(config) else math.inf
    if goal <= nodes[-1]:
        return nodes
    shorter = grid.logsnrs(schedule, steps - 1) if steps > 1 else nodes[:1]
    return torch.cat([shorter, nodes.new_full((1,), goal)])


def from_sigmas(config: Config, notation: Notation, sigmas: Any, mu: float | None = None) -> Tensor:
    """The nodes of a caller's sigmas: unshifted times for flow, sigma / alpha elsewhere."""
    values = _floats("sigmas", sigmas)
    if notation.path == "flow":
        return _flow_nodes(config, values, shift_of(config, mu))
    with np.errstate(divide="ignore"):
        nodes = torch.from_numpy(-2 * np.log(values))
    return nodes if values[-1] == 0 else _then_data(nodes)


def from_timesteps(config: Config, notation: Notation, timesteps: Any) -> Tensor:
    """The nodes at which the network is told these timesteps."""
    signed = isinstance(notation.clock, CNoise)
    told = torch.from_numpy(_floats("timesteps", timesteps, signed=signed))
    nodes = notation.clock.logsnr(told, notation.schedule)
    if notation.path == "vp" and _ends_at_first(config) and told[-1] > 0:
        return torch.cat([nodes, nodes.new_full((1,), notation.schedule.logsnr_max)])
    return nodes if nodes[-1] == math.inf else _then_data(nodes)


def at_indices(schedule: Tabulated, indices: Array, final: str = "data") -> Tensor:
    """The log-SNRs of a discrete model's indices, and of the end of the run.

    schedule: the table of the levels.
    indices: the indices, from noise to data.
    final: "data" for an end at zero noise, or "first" for one at index 0.
    """
    nodes = schedule.logsnr(torch.from_numpy(indices.copy()) / (schedule.count - 1))
    if final == "data":
        return _then_data(nodes)
    return torch.cat([nodes, nodes.new_full((1,), schedule.logsnr_max)])


def _floats(name: str, values: Any, *, signed: bool = False) -> Array:
    array = np.asarray(torch.as_tensor(values).tolist(), dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"{name} must be a list of finite numbers, got {values}")
    if not signed and (array < 0).any():
        raise ValueError(f"{name} must not be negative, got {values}")
    return array


def _then_data(nodes: Tensor) -> Tensor:
    return torch.cat([nodes, nodes.new_full((1,), math.inf)])


def _ends_at_first(config: Config) -> bool:
    name = origin(config)
    if name in CONSISTENCY_CLASSES:
        return False
    if name in _TO_FIRST or config.get("final_sigmas_type") == "sigma_min":
        return True
    return config.get("set_alpha_to_one") is False


def _indices(config: Config, count: int, steps: int, first: bool) -> Array:
    """The indices of a discrete model with `count` of them, rounded where the class rounds them.

    Where rounded indices would be equal, they are left as they are.
    """
    spacing, name = config.get("timestep_spacing") or "leading", origin(config)
    offset = int(config.get("steps_offset") or 0)
    if name in CONSISTENCY_CLASSES:
        return _taught_indices(config, count, steps)
    if name in SOLVER_CLASSES and spacing != "trailing":  # n + 1 points, the last of them unused
        top = _highest(config, count)
        if spacing == "linspace":
            even = np.linspace(0, top, steps + 1)[:0:-1]
            return np.round(even) if steps <= top else even
        every = (top + 1) // (steps + 1)
        # More steps than indices are laid out evenly, without the offset if it has no room.
        if every == 0:
            return np.linspace(0, top, steps + 1)[:0:-1]
        return np.arange(steps, 0, -1.0) * every + offset
    # Pipelines of Stable Diffusion's time write steps_offset=1 for every spacing.
    used = offset if spacing == "leading" else 0
    if steps == 1:  # the classes begin at index 0, and return the noise
        indices = np.array([count - 1.0])
    elif name in SIGMA_CLASSES and spacing == "linspace":  # not rounded
        indices = np.linspace(0, count - 1, steps)[::-1]
    else:
        indices = Indices(spacing, used).indices(count, steps)
    # A last step from index 0 to index 0 is left out here; its timestep is idle (`passes.spread`).
    return indices[:-1] if first and indices[-1] == 0 else indices


def _highest(config: Config, count: int) -> int:
    """The first index that a solver uses: the noisiest one above `lambda_min_clipped`."""
    least = float(config.get("lambda_min_clipped") or -math.inf)
    if least == -math.inf:
        return count - 1
    logsnrs = table(config).logsnr(torch.arange(count, dtype=torch.float64) / (count - 1))
    return int((logsnrs / 2 >= least).sum()) - 1


def _taught_indices(config: Config, count: int, steps: int) -> Array:
    """A number of the indices that a consistency model was distilled at, from the noisiest on."""
    taught = int(config.get("original_inference_steps") or 50)
    if not 1 <= taught <= count:
        raise ValueError(f"original_inference_steps lies in 1 ... {count}, got {taught}")
    known = np.arange(int(taught * float(config.get("strength") or 1.0)), 0, -1) * (count // taught)
    if steps > len(known):
        raise ValueError(
            f"{steps} steps are more than the {len(known)} levels that this model was taught at "
            f"(original_inference_steps={taught}, times the strength); take fewer steps"
        )
    picked = np.floor(np.linspace(0, len(known), steps, endpoint=False)).astype(int)
    return (known[picked] - 1).astype(np.float64)


def _angles(config: Config, steps: int) -> Tensor:
    """The angles of SCM, even but in two steps, whose second has an angle of its own."""
    first = float(config.get("max_timesteps") or 1.5708)
    second = config.get("intermediate_timesteps", 1.3)
    if not 0 < first < 1.571:  # pi / 2 is 1.570796, and rounded up in the pipeline
        raise ValueError(f"max_timesteps is an angle in (0, pi / 2], got {first}")
    angles = torch.linspace(first, 0, steps + 1, dtype=torch.float64)
    if steps == 2 and second is not None:
        angles[1] = float(second)
    return angles


def _flow_times(config: Config, steps: int) -> Array:
    """The times before the shift, without the final 0."""
    least = 1 / float(config.get("num_train_timesteps") or 1000)
    name = origin(config)
    if name == "MiniMaxH3":
        if steps < 2:
            raise ValueError("this class counts levels: num_inference_steps=2 is one step")
        return np.linspace(1, 0, steps)[:-1]
    if name == "UniPCMultistep":
        return np.linspace(1, least, steps + 1)[:-1]
    if name in SOLVER_CLASSES:
        return np.linspace(0, 1 - least, steps + 1)[:0:-1]
    return (
        np.linspace(1, least, steps) if name in FLOW_CLASSES else np.linspace(1, 0, steps + 1)[:-1]
    )


def _flow_nodes(config: Config, times: Array, factor: float) -> Tensor:
    if (times > 1).any():
        raise ValueError(f"a flow model's sigmas are times in [0, 1], got {times.max():.6g}")
    times = times[:-1] if times[-1] == 0 else times
    times = factor * times / (1 + (factor - 1) * times)
    terminal = config.get("shift_terminal")
    if terminal and times[-1] < 1:  # stretched so that the last is this
        times = 1 - (1 - times) * (1 - float(terminal)) / (1 - times[-1])
    if _ramp_name(config):
        times = _ramp(config, times[0], times[-1], len(times))
    return FlowMatching().logsnr(torch.from_numpy(np.append(times, 0.0)))


def _ramp_name(config: Config) -> str:
    """The name karras, exponential, beta or lu, if the config has one of them, else ""."""
    for name in ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas"):
        if config.get(f"use_{name}"):
            return name.split("_")[0]
    return ""


def _ramp_nodes(config: Config, schedule: Schedule, steps: int) -> Tensor:
    low = config.get("sigma_min") or math.exp(-0.5 * schedule.logsnr_max)
    high = config.get("sigma_max") or math.exp(-0.5 * schedule.logsnr_min)
    if not math.isfinite(high):
        raise ValueError(
            f"{_ramp_name(config)} sigmas need a finite noise level to start from, but this model "
            "has zero terminal SNR; set sigma_max, or use another spacing"
        )
    first = _ends_at_first(config)
    sigmas = _ramp(config, high, low, steps + 1 if first else steps)
    logsnrs = torch.from_numpy(-2 * np.log(sigmas))
    # Rounding must not move the ends out of the range that the network knows.
    logsnrs = logsnrs.clamp(schedule.logsnr_min, schedule.logsnr_max)
    return logsnrs if first else _then_data(logsnrs)


def _ramp(config: Config, high: float, low: float, count: int) -> Array:
    """`count` sigmas from high to low."""
    part = np.linspace(0, 1, count)
    name = _ramp_name(config) or str(config.get("sigma_schedule") or "karras")
    if name in ("exponential", "lu"):
        return high * (low / high) ** part
    if name == "beta":
        return low + (high - low) * beta_quantiles(0.6, 0.6, 1 - part)
    if name != "karras":
        raise unknown("sigma_schedule", name, ("karras", "exponential"))
    root = 1 / float(config.get("rho") or 7.0)
    return (high**root + part * (low**root - high**root)) ** (1 / root)
