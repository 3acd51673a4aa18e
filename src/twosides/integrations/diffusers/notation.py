"""What a diffusers scheduler's config says about a network, and where it steps.

A config names the path (betas, flow, EDM), the prediction and the spacing of timesteps, in words
that mean different things from class to class ("epsilon" is EDM's F in the EDM classes; "linspace"
has n points in some and n + 1 in others). Here each is read once, as the library's own notation:

| path         | schedules of origin               | latents                | timesteps         |
|--------------|-----------------------------------|------------------------|-------------------|
| `vp`         | DDPM, DDIM, Euler, DPM-Solver ... | variance preserving    | index 0 ... N - 1 |
| `continuous` | Euler with continuous timesteps   | variance preserving    | log(sigma) / 4    |
| `edm`        | EDMEuler, EDMDPMSolver, Cosine    | VP, in the data's unit | log(sigma) / 4    |
| `flow`       | FlowMatch*, `use_flow_sigmas`     | flow matching's        | N t or N (1 - t)  |

Timesteps are real numbers everywhere: what the network is told is the level the state really has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twosides.clocks import Clock, CNoise, Index, Time
from twosides.denoiser import Denoiser
from twosides.naming import unknown
from twosides.sampling.frames import Array
from twosides.sampling.grids import Grid, Indices
from twosides.sampling.grids.beta import beta_quantiles
from twosides.schedules import (
    EDM,
    Betas,
    EDMInput,
    FlowMatching,
    Schedule,
    Tabulated,
    logsnr_of_betas,
)

Config = Mapping[str, Any]

# How the classes space their timesteps.
_INDEXED = ("DDPM", "DDIM", "DDPMParallel", "DDIMParallel", "PNDM", "LCM", "TCD")
_COGVIDEO = ("CogVideoXDDIM", "CogVideoXDPM")
_SIGMAS = (
    "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete",
    "KDPM2AncestralDiscrete", "DPMSolverSDE",
)  # fmt: skip
_SOLVERS = (
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "UniPCMultistep",
    "DEISMultistep",
    "SASolver",
)
_FLOW = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM", "LTXEulerAncestralRF")
_EDM = ("EDMEuler", "EDMDPMSolverMultistep", "CosineDPMSolverMultistep")
_TO_FIRST = ("DEISMultistep", "SASolver")  # they end at index 0, whatever the config
ORIGINS = [
    f"{name}Scheduler"
    for group in (_INDEXED, _COGVIDEO, _SIGMAS, _SOLVERS, _FLOW, _EDM)
    for name in group
]

PREDICTIONS = {
    "epsilon": "eps",
    "sample": "x",
    "v_prediction": "v",
    "flow_prediction": "u",
    "velocity": "u",
}


@dataclass(frozen=True)
class Notation:
    """A network's output and clock on its schedule, and the schedule with the latents' scaling."""

    path: str
    output: str
    schedule: Schedule
    clock: Clock
    latents: Schedule

    @cached_property
    def data_scale(self) -> float:
        """What latents are multiplied by against what the network is shown: EDM's sigma_data."""
        if self.path != "edm":
            return 1.0
        return float(self.latents.level(0.0).scale) / float(self.schedule.level(0.0).scale)

    def denoiser(self, network: Any) -> Denoiser:
        """The network as a Denoiser."""
        return Denoiser(network, self.output, self.schedule, self.clock)


def origin(config: Config) -> str:
    """The diffusers class, without "Scheduler"; "" for a config of our own making."""
    return str(config.get("origin") or "").removesuffix("Scheduler")


def path_of(config: Config) -> str:
    """ "vp", "continuous", "edm" or "flow"."""
    name = origin(config)
    if name in _EDM:
        return "edm"
    flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    if name in _FLOW or flow:
        return "flow"
    return "continuous" if config.get("timestep_type") == "continuous" else "vp"


def read(config: Config) -> Notation:
    """The notation of a config; ValueError for words that have no meaning here."""
    path, predicts = path_of(config), str(config.get("prediction_type") or "epsilon")
    if path == "flow":
        return _flow(config, predicts)
    if path == "edm":
        return _edm(config, predicts)
    if predicts not in PREDICTIONS:
        raise unknown("prediction_type", predicts, PREDICTIONS)
    if path == "continuous":
        ends = float(config.get("sigma_min") or 0.002), float(config.get("sigma_max") or 80.0)
        schedule = EDM(*ends).with_scaling("vp")
        return Notation(path, PREDICTIONS[predicts], schedule, CNoise(), schedule)
    schedule = table(config)
    clock = Index(schedule.count)
    return Notation(path, PREDICTIONS[predicts], schedule, clock, schedule)


def _flow(config: Config, predicts: str) -> Notation:
    mirrored = bool(config.get("invert_sigmas"))
    count = float(config.get("num_train_timesteps") or 1000)
    known = {**PREDICTIONS, "epsilon": "u", "v_prediction": "u"}  # FlowMatch* have no such word
    if origin(config) not in _FLOW:
        known = PREDICTIONS
    if predicts not in known:
        raise unknown("prediction_type", predicts, known)
    output = ("-" if mirrored else "") + known[predicts]
    clock = Time(count, reversed=mirrored)
    return Notation("flow", output, FlowMatching(), clock, FlowMatching())


def _edm(config: Config, predicts: str) -> Notation:
    """EDM's classes: the network sees c_in z and answers F, "epsilon", or -F, "v_prediction"."""
    signs = {"epsilon": "", "v_prediction": "-"}
    if predicts not in signs:
        raise ValueError(
            f"prediction_type={predicts!r} means nothing for EDM: 'epsilon' is its network F, "
            "'v_prediction' is -F"
        )
    data = float(config.get("sigma_data") or 0.5)
    ends = float(config.get("sigma_min") or 0.002), float(config.get("sigma_max") or 80.0)
    base, output = EDM(*ends, rho=float(config.get("rho") or 7.0)), f"{signs[predicts]}F({data})"

    shown, kept = base.with_scaling(EDMInput(data)), base.with_scaling(EDMInput(data, data))
    return Notation("edm", output, shown, CNoise(), kept)


# ---------------------------------------------------------------------------- betas


def table(config: Config) -> Tabulated:
    """The discrete schedule of a config, in float64."""
    zero = bool(config.get("rescale_betas_zero_snr"))
    betas = _betas(config)
    shift = float(config.get("snr_shift_scale") or 1.0)
    if shift != 1.0:  # CogVideoX divides the SNR, before the rescaling to zero
        betas = _betas_of(logsnr_of_betas(betas) - math.log(shift))
    return Betas(tuple(betas.tolist()), zero)


def _betas(config: Config) -> Tensor:
    trained = config.get("trained_betas")
    if trained is not None:
        return torch.as_tensor(trained, dtype=torch.float64)
    name, count = config.get("beta_schedule"), int(config.get("num_train_timesteps") or 1000)
    low, high = float(config["beta_start"]), float(config["beta_end"])
    line = torch.linspace(0, 1, count, dtype=torch.float64)
    if name == "linear":
        return low + line * (high - low)
    if name == "scaled_linear":
        return (low**0.5 + line * (high**0.5 - low**0.5)) ** 2
    if name == "sigmoid":
        return low + torch.sigmoid(12 * line - 6) * (high - low)
    if name == "squaredcos_cap_v2":
        return torch.tensor(Betas.squared_cosine(count).betas, dtype=torch.float64)
    if name == "exp":
        return torch.full((count,), -math.expm1(-12 / count), dtype=torch.float64)
    known = ("linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2", "exp")
    raise unknown("beta_schedule", name, known)


def _betas_of(logsnr: Tensor) -> Tensor:
    kept = torch.sigmoid(logsnr)
    return 1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])


def starts_pure(config: Config) -> bool:
    """Whether pipelines start from sigma n alone, as k-diffusion does, and not with unit variance.

    Near enough to the same; kept so that one seed gives one picture whatever the scheduler.
    """
    spaced = config.get("timestep_spacing") in ("linspace", "trailing")
    return origin(config) in _SIGMAS and spaced


# ---------------------------------------------------------------------------- where to step


def shift_of(config: Config, mu: float | None) -> float:
    """The factor by which a flow pipeline's times are shifted.

    mu is used where the config says so and ignored elsewhere: FLUX passes it always.
    """
    if not config.get("use_dynamic_shifting"):
        shift = config.get("shift") if origin(config) in _FLOW else config.get("flow_shift")
        return float(shift or config.get("shift") or 1.0)
    if mu is None:
        raise ValueError(
            "this model's shift depends on the resolution (use_dynamic_shifting=True): pass "
            "mu=..., as its pipeline does, or set use_dynamic_shifting=False and shift=..."
        )
    return math.exp(mu) if config.get("time_shift_type") != "linear" else float(mu)


def native(config: Config, notation: Notation, steps: int, mu: float | None = None) -> Tensor:
    """The nodes of a config in `steps` steps, as log-SNRs."""
    if notation.path == "flow":
        return _flow_nodes(config, _flow_times(config, steps), shift_of(config, mu))
    if _ramp_name(config) or notation.path != "vp":
        return _ramp_nodes(config, notation.schedule, steps)
    first = _ends_at_first(config)
    assert isinstance(notation.schedule, Tabulated)
    indices = _indices(config, notation.schedule.count, steps, first)
    return at_indices(notation.schedule, indices, "first" if first else "data")


def ended(config: Config, grid: Grid, schedule: Schedule, steps: int) -> Tensor:
    """Another grid's nodes; its last step leads to where the config ends, if that is further."""
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
    told = torch.from_numpy(_floats("timesteps", timesteps, signed=notation.path == "edm"))
    nodes = notation.clock.logsnr(told, notation.schedule)
    if notation.path == "vp" and _ends_at_first(config) and told[-1] > 0:
        return torch.cat([nodes, nodes.new_full((1,), notation.schedule.logsnr_max)])
    return nodes if nodes[-1] == math.inf else _then_data(nodes)


def at_indices(schedule: Tabulated, indices: Array, final: str = "data") -> Tensor:
    """The log-SNRs of a discrete model's indices, and where it ends."""
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
    if origin(config) in _TO_FIRST or config.get("final_sigmas_type") == "sigma_min":
        return True
    return config.get("set_alpha_to_one") is False


def _indices(config: Config, count: int, steps: int, first: bool) -> Array:
    spacing, name = config.get("timestep_spacing") or "leading", origin(config)
    offset = int(config.get("steps_offset") or 0)
    if name in _SOLVERS and spacing != "trailing":  # n + 1 points, of which the last is not used
        if spacing == "linspace":
            return np.linspace(0, count - 1, steps + 1).round()[:0:-1]
        return np.arange(steps, 0, -1.0) * (count // (steps + 1)) + offset
    if name in _SIGMAS and spacing == "linspace":  # not rounded
        return np.linspace(0, count - 1, steps)[::-1]
    # Pipelines of Stable Diffusion's time write steps_offset=1 whatever the spacing.
    used = offset if spacing == "leading" else 0
    indices = Indices(spacing, used).indices(count, steps)
    return indices[:-1] if first and indices[-1] == 0 and steps > 1 else indices


def _flow_times(config: Config, steps: int) -> Array:
    """Times before the shift, without the final 0."""
    least = 1 / float(config.get("num_train_timesteps") or 1000)
    name = origin(config)
    if name == "UniPCMultistep":
        return np.linspace(1, least, steps + 1)[:-1]
    if name in _SOLVERS:
        return np.linspace(0, 1 - least, steps + 1)[:0:-1]
    return np.linspace(1, least, steps) if name in _FLOW else np.linspace(1, 0, steps + 1)[:-1]


def _flow_nodes(config: Config, times: Array, factor: float) -> Tensor:
    if (times > 1).any():
        raise ValueError(f"a flow model's sigmas are times in [0, 1], got {times.max():.6g}")
    ended = times[-1] == 0
    times = times[:-1] if ended else times
    times = factor * times / (1 + (factor - 1) * times)
    terminal = config.get("shift_terminal")
    if terminal:  # stretched so that the last is this
        times = 1 - (1 - times) * (1 - float(terminal)) / (1 - times[-1])
    if _ramp_name(config):
        times = _ramp(config, times[0], times[-1], len(times))
    return FlowMatching().logsnr(torch.from_numpy(np.append(times, 0.0)))


def _ramp_name(config: Config) -> str:
    """karras, exponential, beta or lu, where the config asks for one of them."""
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
    # The ends are the model's own, to the last digit: just outside the network would be asked.
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
