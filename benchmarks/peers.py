"""Deterministic samplers of other libraries, for quality_per_nfe.py.

Each is handed the exact trajectory's state at its first level and a network, and runs its own code
on its own levels. The levels are read from what it computed, so the network is asked at the noise
that the state really has. k-diffusion's samplers are restated here from their papers' formulas.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from diffusers.utils import is_scipy_available
from torch import Tensor

from twosides.outputs import Estimate
from twosides.schedules import Level

Network = Callable[[Tensor, Level], Estimate]
Start = Callable[[Level], Tensor]  # the exact trajectory's state at a level


class Contestant(NamedTuple):
    """A sampler on a schedule; `draw(network, start, steps)` is its estimate of the data."""

    library: str
    family: str
    solver: str
    schedule: str
    calls: Callable[[int], int]  # of the network, in so many steps
    draw: Callable[[Network, Start, int], Tensor]

    @property
    def name(self) -> str:
        """Library, solver and schedule, short."""
        library = f"{self.library} " if self.library else ""
        return f"{library}{self.solver} / {self.schedule}"


FAMILIES = ("Euler, DDIM", "Heun, DPM-2, 2S", "DPM-Solver(++) multistep", "UniPC", "Adams, DEIS")
FIRST, TWO_CALLS, DPM, UNIPC, ADAMS = FAMILIES


def once(steps: int) -> int:
    """One call per step."""
    return steps


def twice(steps: int) -> int:
    """Two calls per step."""
    return 2 * steps


def last_once(steps: int) -> int:
    """Two calls per step, one in the last."""
    return 2 * steps - 1


def peers() -> list[Contestant]:
    """All that can be imported."""
    return [*of_diffusers(), *of_k_diffusion(), *of_azula()]


# ---------------------------------------------------------------------------- diffusers


def _edm_betas() -> list[float]:
    """A discrete model whose sigma / alpha falls geometrically from 80 to 0.002, EDM's range."""
    kept = 1 / (1 + np.geomspace(0.002, 80, 1000) ** 2)
    return (1 - kept / np.array([1.0, *kept[:-1]])).tolist()


TABLES: dict[str, dict[str, Any]] = {
    "DDPM": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "SD": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "EDM": {"trained_betas": _edm_betas()},
}
SPACINGS: dict[str, dict[str, Any]] = {
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
    "Karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "lu": {"use_lu_lambdas": True},
}
FLOW: dict[str, dict[str, Any]] = {
    "flow": {"use_flow_sigmas": True, "flow_shift": 1.0, "prediction_type": "flow_prediction"},
    "flow shift 3": {
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
        "prediction_type": "flow_prediction",
    },
}
DPM_EPS = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
SCHEDULERS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    (FIRST, "DDIM", "DDIM", {"clip_sample": False}),
    (FIRST, "Euler", "EulerDiscrete", {}),
    (TWO_CALLS, "Heun", "HeunDiscrete", {}),
    (TWO_CALLS, "DPM-2", "KDPM2Discrete", {}),
    (TWO_CALLS, "DPM++ 2S", "DPMSolverSinglestep", {}),
    (DPM, "DPM++ 2M", "DPMSolverMultistep", {}),
    (DPM, "DPM++ 2M heun", "DPMSolverMultistep", {"solver_type": "heun"}),
    (DPM, "DPM++ 3M", "DPMSolverMultistep", {"solver_order": 3}),
    (DPM, "DPM 2M", "DPMSolverMultistep", DPM_EPS),
    (UNIPC, "UniPC 2", "UniPCMultistep", {}),
    (UNIPC, "UniPC 3", "UniPCMultistep", {"solver_order": 3}),
    (ADAMS, "DEIS 2", "DEISMultistep", {}),
    (ADAMS, "DEIS 3", "DEISMultistep", {"solver_order": 3}),
    (ADAMS, "LMS", "LMSDiscrete", {}),
)
SIGMA_SPACE = ("EulerDiscrete", "HeunDiscrete", "KDPM2Discrete", "LMSDiscrete")


def of_diffusers() -> Iterator[Contestant]:
    """Every scheduler on every table and spacing that it takes."""
    diffusers.logging.set_verbosity_error()
    for family, solver, kind, options in SCHEDULERS:
        if kind == "LMSDiscrete" and not is_scipy_available():
            continue
        make = getattr(diffusers, f"{kind}Scheduler")
        calls = last_once if kind in ("HeunDiscrete", "KDPM2Discrete") else once
        space = "ve" if kind in SIGMA_SPACE else "vp"
        for schedule, config in _configs(make):
            if options is DPM_EPS and schedule in FLOW:
                continue  # it takes no velocity
            space_here = "flow" if "use_flow_sigmas" in config else space
            draw = _scheduler(make, {**options, **config}, space_here)
            yield Contestant("diffusers", family, solver, schedule, calls, draw)
    yield from _flow_match()


def _configs(make: type[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    known = set(inspect.signature(make).parameters)
    for spacing, config in SPACINGS.items():
        usable = not config.get("use_beta_sigmas") or is_scipy_available()
        # A scheduler without timestep_spacing has linspace; DDIM's linspace is known to be broken.
        config = {} if spacing == "linspace" and "timestep_spacing" not in known else config
        broken = make is diffusers.DDIMScheduler and spacing == "linspace"
        if usable and not broken and set(config) <= known:
            yield from ((f"{spacing}, {table}", {**config, **TABLES[table]}) for table in TABLES)
    if "use_flow_sigmas" in known:
        yield from FLOW.items()


def _flow_match() -> Iterator[Contestant]:
    euler, heun = (
        diffusers.FlowMatchEulerDiscreteScheduler,
        diffusers.FlowMatchHeunDiscreteScheduler,
    )
    for shift in (1.0, 3.0):
        config, name = {"shift": shift}, "flow" if shift == 1 else "flow shift 3"
        draw = _scheduler(euler, config, "flow", _as_pipelines_do)
        yield Contestant("diffusers", FIRST, "FlowMatchEuler", name, once, draw)
        draw = _scheduler(euler, config, "flow")
        yield Contestant("diffusers", FIRST, "FlowMatchEuler", f"{name}, linspace", once, draw)
        draw = _scheduler(heun, config, "flow")
        yield Contestant("diffusers", TWO_CALLS, "FlowMatchHeun", name, last_once, draw)
    for spacing in ("Karras", "exponential", "beta"):
        if spacing != "beta" or is_scipy_available():
            draw = _scheduler(euler, SPACINGS[spacing], "flow")
            yield Contestant("diffusers", FIRST, "FlowMatchEuler", spacing, once, draw)


def _as_pipelines_do(scheduler: Any, steps: int) -> None:
    """Flow pipelines pass 1 ... 1/n; the scheduler's own default ends beside 0 and repeats it."""
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))


def _own(scheduler: Any, steps: int) -> None:
    scheduler.set_timesteps(steps)


def _scheduler(
    make: type[Any],
    config: dict[str, Any],
    space: str,
    prepare: Callable[[Any, int], None] = _own,
) -> Callable[[Network, Start, int], Tensor]:
    """The scheduler's own loop, in the scaling `space`, see `_level`."""

    def draw(network: Network, start: Start, steps: int) -> Tensor:
        scheduler = make(**config)
        prepare(scheduler, steps)
        for table in ("sigmas", "alphas_cumprod"):
            if hasattr(scheduler, table):
                setattr(scheduler, table, getattr(scheduler, table).double())
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # or it starts late where rounded timesteps repeat
        ratios, last = _ratios(scheduler)
        z = start(_level(ratios[0], space))
        for t, ratio in zip(scheduler.timesteps, ratios, strict=True):
            shown = _level(ratio, "vp" if space == "ve" else space)
            scaled = scheduler.scale_model_input(z, t) if space == "ve" else z
            x, eps = network(scaled, shown)
            z = scheduler.step(eps - x if space == "flow" else eps, t, z).prev_sample
        return z / _level(last, space).alpha

    return draw


def _ratios(scheduler: Any) -> tuple[list[float], float]:
    """The scheduler's sigma of each call, DPM-2's in between included, and of the result."""
    if not hasattr(scheduler, "sigmas"):
        kept = scheduler.alphas_cumprod[scheduler.timesteps]
        return ((1 - kept) / kept).sqrt().tolist(), 0.0
    *ratios, last = scheduler.sigmas[: len(scheduler.timesteps) + 1].tolist()
    inner = getattr(scheduler, "sigmas_interpol", None)
    if inner is not None:
        ratios[1::2] = inner[1 : len(ratios) : 2].tolist()
    return ratios, last


def _level(sigma: float, space: str) -> Level:
    alpha = {"vp": 1 / math.hypot(1, sigma), "ve": 1.0, "flow": 1 - sigma}[space]
    sigma = sigma * alpha if space == "vp" else sigma
    return at(alpha, sigma)


def at(alpha: float, sigma: float) -> Level:
    """A level, infinite log-SNRs included."""
    if alpha == 0 or sigma == 0:
        return Level(-math.inf if alpha == 0 else math.inf, alpha, sigma)
    return Level(2 * math.log(alpha / sigma), alpha, sigma)


# ---------------------------------------------------------------------------- k-diffusion

Denoise = Callable[[Tensor, float], Tensor]  # the data's estimate at z = x + sigma eps
Sigmas = list[float]


def _slope(denoise: Denoise, z: Tensor, sigma: float) -> Tensor:
    return (z - denoise(z, sigma)) / sigma


def euler(denoise: Denoise, z: Tensor, sigmas: Sigmas) -> Tensor:
    """Euler in sigma."""
    for here, there in pairwise(sigmas):
        z = z + (there - here) * _slope(denoise, z, here)
    return z


def heun(denoise: Denoise, z: Tensor, sigmas: Sigmas) -> Tensor:
    """The mean of the slopes at both ends; Euler to zero."""
    for here, there in pairwise(sigmas):
        first = _slope(denoise, z, here)
        ahead = z + (there - here) * first
        second = _slope(denoise, ahead, there) if there else first
        z = z + (there - here) * (first + second) / 2
    return z


def dpm_2(denoise: Denoise, z: Tensor, sigmas: Sigmas) -> Tensor:
    """The slope at the geometric mean; Euler to zero."""
    for here, there in pairwise(sigmas):
        slope, middle = _slope(denoise, z, here), math.sqrt(here * there)
        if there:
            slope = _slope(denoise, z + (middle - here) * slope, middle)
        z = z + (there - here) * slope
    return z


def lms(denoise: Denoise, z: Tensor, sigmas: Sigmas) -> Tensor:
    """Adams-Bashforth in sigma through four slopes."""
    slopes: list[Tensor] = []
    for index, (here, there) in enumerate(pairwise(sigmas)):
        slopes = [_slope(denoise, z, here), *slopes][:4]
        past = np.array(sigmas[: index + 1][::-1][: len(slopes)]) - here
        powers = np.arange(1, len(past) + 1)
        weights = np.linalg.solve(past ** (powers - 1)[:, None], (there - here) ** powers / powers)
        z = z + sum(float(w) * slope for w, slope in zip(weights, slopes, strict=True))
    return z


def dpmpp_2m(denoise: Denoise, z: Tensor, sigmas: Sigmas) -> Tensor:
    """x extrapolated to the middle in log sigma; held on the last step."""
    before: tuple[float, Tensor] | None = None
    for here, there in pairwise(sigmas):
        x = denoise(z, here)
        used = x
        if before is not None and there:
            part = math.log(here / there) / (2 * math.log(before[0] / here))
            used = x + part * (x - before[1])
        z, before = there / here * z + (1 - there / here) * used, (here, x)
    return z


def dpmpp_2s(denoise: Denoise, z: Tensor, sigmas: Sigmas) -> Tensor:
    """x at the geometric mean; Euler to zero."""
    for here, there in pairwise(sigmas):
        x, middle = denoise(z, here), math.sqrt(here * there)
        if there:
            x = denoise(middle / here * z + (1 - middle / here) * x, middle)
        z = there / here * z + (1 - there / here) * x
    return z


def karras(steps: int, low: float, high: float) -> Sigmas:
    """Equal steps in sigma^(1/7), then 0."""
    return [*(np.linspace(high ** (1 / 7), low ** (1 / 7), steps) ** 7), 0.0]


def exponential(steps: int, low: float, high: float) -> Sigmas:
    """Equal steps in log sigma, then 0."""
    return [*np.geomspace(high, low, steps), 0.0]


def flow_time(steps: int, shift: float, high: float) -> Sigmas:
    """Equal steps of flow matching's shifted time from `high` to 0."""
    t = np.linspace(high / (shift + high), 0, steps + 1)
    return [*(shift * t / (1 - t))]


K_DIFFUSION = (
    (FIRST, euler, once),
    (TWO_CALLS, heun, last_once),
    (TWO_CALLS, dpm_2, last_once),
    (ADAMS, lms, once),
    (DPM, dpmpp_2m, once),
    (TWO_CALLS, dpmpp_2s, last_once),
)
K_SIGMAS: dict[str, Callable[[int], Sigmas]] = {
    "Karras, EDM": lambda steps: karras(steps, 0.002, 80),
    "Karras, SD": lambda steps: karras(steps, 0.0292, 14.6146),
    "exponential, EDM": lambda steps: exponential(steps, 0.002, 80),
    "exponential, SD": lambda steps: exponential(steps, 0.0292, 14.6146),
    "flow from 80": lambda steps: flow_time(steps, 1, 80),
    "flow shift 3 from 80": lambda steps: flow_time(steps, 3, 80),
}


def of_k_diffusion() -> Iterator[Contestant]:
    """Every sampler on every schedule."""
    for family, solver, calls in K_DIFFUSION:
        for schedule, sigmas in K_SIGMAS.items():
            draw = _in_sigma(solver, sigmas)
            yield Contestant("k-diffusion", family, solver.__name__, schedule, calls, draw)


def _in_sigma(
    solver: Callable[[Denoise, Tensor, Sigmas], Tensor], sigmas: Callable[[int], Sigmas]
) -> Callable[[Network, Start, int], Tensor]:
    def draw(network: Network, start: Start, steps: int) -> Tensor:
        ramp = [float(sigma) for sigma in sigmas(steps)]
        return solver(lambda z, sigma: network(z, at(1.0, sigma)).x, start(at(1.0, ramp[0])), ramp)

    return draw


# ---------------------------------------------------------------------------- azula


def of_azula() -> Iterator[Contestant]:
    """azula's samplers on its schedules as given; nothing where it is not installed."""
    try:
        from azula import denoise, noise, sample
    except ImportError:
        return
    families = {"zAB": ADAMS, "vAB": ADAMS, "zEAB": DPM, "xEAB": DPM, "REAB": DPM}
    kinds = [(FIRST, "DDIM", once, {}), (TWO_CALLS, "Heun", twice, {})]
    for name, family in families.items():
        kinds += [(family, name, once, {"order": order}) for order in (2, 3)]
    for family, name, calls, options in kinds:
        for schedule in ("Rectified", "Cosine", "VP"):
            make = getattr(sample, f"{name}Sampler")
            noise_schedule = getattr(noise, f"{schedule}Schedule")()
            draw = _of_azula(make, options, noise_schedule, denoise)
            title = f"{name} {options['order']}" if options else name
            yield Contestant("azula", family, title, schedule, calls, draw)


def _of_azula(
    make: type[Any], options: dict[str, Any], schedule: Any, denoise: Any
) -> Callable[[Network, Start, int], Tensor]:
    def level(t: Tensor) -> Level:
        alpha, sigma = schedule(t)
        return at(float(alpha), float(sigma))

    class Denoiser(denoise.Denoiser):  # pyright: ignore[reportUntypedBaseClass]
        """A network as azula wants it."""

        def __init__(self, network: Network) -> None:
            super().__init__()
            self.network, self.schedule = network, schedule

        def forward(self, x_t: Tensor, t: Tensor) -> Any:
            return denoise.DiracPosterior(self.network(x_t, level(t)).x)

    def draw(network: Network, start: Start, steps: int) -> Tensor:
        sampler = make(Denoiser(network), steps=steps, silent=True, dtype=torch.float64, **options)
        first, *_, last = sampler.timesteps
        return sampler(start(level(first))) / level(last).alpha

    return draw
