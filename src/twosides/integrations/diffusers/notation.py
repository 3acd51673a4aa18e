"""The notation of a network, read from the config of a diffusers scheduler.

A config states the path (betas, flow, EDM), the prediction and the spacing of timesteps, in words
that mean different things from class to class ("epsilon" is EDM's F in the EDM classes; "linspace"
has n points in some and n + 1 in others). Here each is translated once into the library's own
notation:

| path         | schedules of origin               | latents                | timesteps         |
|--------------|-----------------------------------|------------------------|-------------------|
| `vp`         | DDPM, DDIM, Euler, DPM-Solver ... | variance preserving    | index 0 ... N - 1 |
| `continuous` | Euler with continuous timesteps   | variance preserving    | log(sigma) / 4    |
| `edm`        | EDMEuler, EDMDPMSolver, Cosine    | VP, in the data's unit | log(sigma) / 4    |
| `flow`       | FlowMatch*, `use_flow_sigmas`     | flow matching's        | N t or N (1 - t)  |
| `angle`      | IPNDM, SCM                        | the cosine schedule's  | atan(sigma) 2/pi  |

CosineDPMSolverMultistep is told `atan(sigma) 2 / pi`, too, and SCM `atan(sigma)`. SCM's latents are
those of the cosine schedule times sigma_data, of which unit the noise is, too.

Timesteps are real numbers everywhere: the network is told the level that the state really has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from twosides.clocks import Clock, CNoise, Index, Time
from twosides.denoiser import Denoiser
from twosides.naming import unknown
from twosides.schedules import (
    EDM,
    Betas,
    Cosine,
    EDMInput,
    FlowMatching,
    Schedule,
    Tabulated,
    logsnr_of_betas,
)

Config = Mapping[str, Any]

# The classes, grouped by how they space their timesteps.
CONSISTENCY_CLASSES = ("LCM", "TCD")
_INDEXED = ("DDPM", "DDIM", "DDPMParallel", "DDIMParallel", "PNDM", "UnCLIP", *CONSISTENCY_CLASSES)
_COGVIDEO = ("CogVideoXDDIM", "CogVideoXDPM")
SIGMA_CLASSES = (
    "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete",
    "KDPM2AncestralDiscrete", "DPMSolverSDE",
)  # fmt: skip
SOLVER_CLASSES = (
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "UniPCMultistep",
    "DEISMultistep",
    "SASolver",
)
FLOW_CLASSES = (
    "FlowMatchEulerDiscrete",
    "FlowMatchHeunDiscrete",
    "FlowMatchLCM",
    "LTXEulerAncestralRF",
    "MiniMaxH3",
)
_COSINE = "CosineDPMSolverMultistep"
_EDM = ("EDMEuler", "EDMDPMSolverMultistep", _COSINE)
_ANGLE = ("IPNDM", "SCM")
LISTS_END = ("SCM",)  # the classes whose last timestep is that of the result, not of a call
ORIGINS = [
    f"{name}Scheduler"
    for group in (_INDEXED, _COGVIDEO, SIGMA_CLASSES, SOLVER_CLASSES, FLOW_CLASSES, _EDM, _ANGLE)
    for name in group
]

# The classes that are not read, and the reasons.
_CONSISTENT = "its network jumps to the data or between two levels, and predicts no velocity there"
_DISCRETE = "its data are tokens, to which no Gaussian noise is added"
_BACKWARDS = "it goes from data to noise; `twosides.ode.inversion` does that with any model"
_OTHER_STEP = "its pipeline calls more than `step` once for each timestep"
REFUSED = {
    "AmusedScheduler": _DISCRETE,
    "BlockRefinementScheduler": _DISCRETE,
    "DiscreteDDIMScheduler": _DISCRETE,
    "EntropyBoundScheduler": _DISCRETE,
    "VQDiffusionScheduler": _DISCRETE,
    "CMStochasticIterativeScheduler": _CONSISTENT,
    "ConsistencyDecoderScheduler": _CONSISTENT,
    "FlowMapEulerDiscreteScheduler": _CONSISTENT,
    "DDIMInverseScheduler": _BACKWARDS,
    "DPMSolverMultistepInverseScheduler": _BACKWARDS,
    "RePaintScheduler": "its step takes the picture to be repainted, too",
    "ScoreSdeVeScheduler": _OTHER_STEP,
    "ScoreSdeVpScheduler": _OTHER_STEP,
    "KarrasVeScheduler": _OTHER_STEP,
    "HeliosScheduler": "its run has stages, each with a schedule of its own",
    "HeliosDMDScheduler": "its run has stages, each with a schedule of its own",
    "PiflowScheduler": "its network predicts a policy for several steps",
    "RFD4ProteinaScheduler": "its step is that of a model of proteins, with several kinds of data",
    "DDPMWuerstchenScheduler": "its network is told a time of its own kind",
}

PREDICTIONS = {
    "epsilon": "eps",
    "sample": "x",
    "v_prediction": "v",
    "flow_prediction": "u",
    "velocity": "u",
}


@dataclass(frozen=True)
class Notation:
    """The notation of a network, and that of its latents.

    path: the row of the table above.
    output: the name of the network's output.
    schedule: the schedule in the network's scaling.
    clock: how the network is told the level.
    latents: the schedule in the scaling of the latents.
    noise: the deviation of the noise in the latents, which is SCM's sigma_data, else 1.
    bare: the notation of the network alone, where its pipeline converts what the network answers.
    """

    path: str
    output: str
    schedule: Schedule
    clock: Clock
    latents: Schedule
    noise: float = 1.0
    bare: Notation | None = None

    @cached_property
    def data_scale(self) -> float:
        """The factor of the latents against the network's input: EDM's sigma_data, else 1."""
        if self.path != "edm":
            return 1.0
        return float(self.latents.level(0.0).scale) / float(self.schedule.level(0.0).scale)

    def denoiser(self, network: Any) -> Denoiser:
        """The network as a Denoiser."""
        return Denoiser(network, self.output, self.schedule, self.clock)


@dataclass(frozen=True)
class Angle(Clock):
    """The clock `atan(sigma / alpha) 2 / pi * right`, from 0 for data to `right` for noise.

    right: what a right angle is told as; pi / 2 for radians.
    """

    right: float = 1.0

    def read(self, logsnr: Tensor, schedule: Schedule) -> Tensor:
        """The angle of a log-SNR."""
        return (-0.5 * logsnr).exp().atan() * (2 / math.pi) * self.right

    def logsnr(self, time: Tensor, schedule: Schedule) -> Tensor:
        """The log-SNR of an angle, infinite at both ends."""
        part = (time / self.right).clamp(0, 1)
        angle = 0.5 * math.pi * part
        return 2 * (angle.cos().log() - angle.sin().log()).where(part < 1, -math.inf)


def origin(config: Config) -> str:
    """The diffusers class of a config, without "Scheduler"; "" for a config of this library."""
    return str(config.get("origin") or "").removesuffix("Scheduler")


def path_of(config: Config) -> str:
    """The path of a config: "vp", "continuous", "edm", "angle" or "flow"."""
    name = origin(config)
    if name in _ANGLE:
        return "angle"
    if name in _EDM:
        return "edm"
    flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    if name in FLOW_CLASSES or flow:
        return "flow"
    continuous = config.get("timestep_type") == "continuous"  # the class uses it for v only
    return "continuous" if continuous and config.get("prediction_type") == "v_prediction" else "vp"


def read(config: Config) -> Notation:
    """The notation of a config; ValueError for words that have no meaning here."""
    path, predicts = path_of(config), str(config.get("prediction_type") or "epsilon")
    if path == "flow":
        return _flow(config, predicts)
    if path == "edm":
        return _edm(config, predicts)
    if origin(config) == "SCM":
        return _trigflow(config, predicts)
    if path == "angle":  # the class has no arguments of its own
        return Notation(path, "v", Cosine(), Angle(), Cosine())
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
    mirrored = bool(config.get("invert_sigmas")) or origin(config) == "MiniMaxH3"
    count = float(config.get("num_train_timesteps") or 1000)
    if origin(config) == "MiniMaxH3":  # the network is told 1 - t itself
        count = 1.0
    known = {**PREDICTIONS, "epsilon": "u", "v_prediction": "u"}  # FlowMatch* ignore the word
    if origin(config) not in FLOW_CLASSES:
        known = PREDICTIONS
    if predicts not in known:
        raise unknown("prediction_type", predicts, known)
    output = ("-" if mirrored else "") + known[predicts]
    clock = Time(count, reversed=mirrored)
    return Notation("flow", output, FlowMatching(), clock, FlowMatching())


def _trigflow(config: Config, predicts: str) -> Notation:
    """The notation of SANA-Sprint's class: the cosine schedule's v, in units of sigma_data.

    Its pipeline computes that v from the u of a flow-matching network, which is told t itself.
    """
    if predicts not in ("trigflow", "epsilon"):  # as this class and the one here are constructed
        raise unknown("prediction_type", predicts, ("trigflow",))
    unit = float(config.get("sigma_data") or 0.5)
    flow = Notation("flow", "u", FlowMatching(), Time(1.0), FlowMatching())
    return Notation("angle", "v", Cosine(), Angle(0.5 * math.pi), Cosine(), unit, flow)


def _edm(config: Config, predicts: str) -> Notation:
    """The notation of EDM's classes.

    The network sees c_in z and answers F, which they call "epsilon", or -F, "v_prediction".
    """
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
    clock = Angle() if origin(config) == _COSINE else CNoise()
    return Notation("edm", output, shown, clock, kept)


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

    The two are nearly the same; both are kept so that one seed gives one picture with every
    scheduler.
    """
    spaced = config.get("timestep_spacing") in ("linspace", "trailing")
    return origin(config) in SIGMA_CLASSES and spaced
