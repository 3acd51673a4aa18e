"""Presets: the names that papers and programs gave to samplers.

A preset is a row of `samplers`. Adding one is adding it here: the command line, the documentation,
the explorer and the tests read this table. `named` makes samplers of names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from twosides.naming import Table
from twosides.outputs import kappa
from twosides.sampling.grids import Beta, Grid, Karras, Uniform, UniformTime
from twosides.sampling.noise import (
    ER,
    Churn,
    DDIMEta,
    Deterministic,
    EDMChurn,
    Eta,
    FullRenoise,
    Langevin,
    LargeVariance,
    Rectified,
    Restart,
    Stochasticity,
    Tau,
)
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import (
    BDIA,
    DDIM,
    Adams,
    Automatic,
    Euler,
    EulerMaruyama,
    Leapfrog,
    RungeKutta,
)


def kappa_adams(
    kappa_value: float = 1.0, shift: float = 1.0, *, order: int = 2, corrector: int = 0
) -> Sampler:
    """kappa-shift Adams: `eps - kappa x` is the polynomial, the grid is flow matching's shifted.

    kappa = shift = 1 is Adams on the velocity of flow matching with uniform t, kappa = 0 is
    DEIS-rhoAB. The grid is uniform in `sigma / (shift alpha + sigma)`, between the ends of any
    schedule.
    """
    if not 0 < shift < float("inf"):
        raise ValueError(f"shift is a finite number > 0, got {shift}")
    solver = Adams(order, kappa(kappa_value), corrector=corrector)
    return Sampler(Uniform(kappa(1 / shift)), solver, paper="twosides: the post's equation, Adams")


def _middle(t: float) -> float:
    """The tau of SA-Solver: 1 in the middle of the schedule."""
    return 1.0 if 0.2 <= t <= 0.8 else 0.0


_DPM = "Lu+ 2022, arXiv 2206.00927"
_DPMPP = "Lu+ 2022, arXiv 2211.01095"
_EDM = "Karras+ 2022, arXiv 2206.00364"
_DEIS = "Zhang & Chen 2022, arXiv 2204.13902"
_RES = "Zhang+ 2023, arXiv 2308.02157"
_UNIPC = "Zhao+ 2023, arXiv 2302.04867"


def _with_published(
    solver: Adams | RungeKutta,
    paper: str,
    noise: Stochasticity | None = None,
    grid: Grid | None = None,
    **published: Any,
) -> Sampler:
    """A preset and its published form, in which nothing is limited and the start not corrected.

    published: further fields of the solver in the published form.
    """
    plain: dict[str, Any] = {"limit": math.inf}
    if isinstance(solver, Adams):
        plain["corrected_start"] = False
    ours = Sampler(grid or UniformTime(), solver, noise or Deterministic(), paper)
    theirs = replace(ours, solver=replace(solver, **{**plain, **published}))
    return replace(ours, published=theirs)


# The name "auto": a rule and no preset, so that it stands in no table of what papers have named.
AUTO = Sampler(Beta(0.7, 1.0, variable="u"), Automatic(), paper="twosides: by the steps alone")

samplers: Table[Sampler] = Table(
    "sampler",
    {
        # First order: DDIM and its noise.
        "ddim": Sampler(solver=DDIM(), paper="Song+ 2020, arXiv 2010.02502"),
        "flow-euler": Sampler(solver=Euler("u"), paper="Lipman+ 2022, arXiv 2210.02747"),
        "pf-euler": Sampler(solver=EulerMaruyama(), paper="Song+ 2021, arXiv 2011.13456"),
        "edm-euler": Sampler(Karras(), Euler("eps"), paper=_EDM),
        "ddpm": Sampler(stochasticity=Eta(1.0), paper="Ho+ 2020, arXiv 2006.11239"),
        "ddpm-large": Sampler(stochasticity=LargeVariance(), paper="Ho+ 2020, arXiv 2006.11239"),
        "euler-a": Sampler(
            Karras(), Euler("eps"), DDIMEta(1.0), f"k-diffusion's ancestral Euler; {_EDM}"
        ),
        "euler-a-rf": Sampler(
            solver=Euler("u"),
            stochasticity=DDIMEta(1.0),
            paper="ComfyUI's ancestral Euler for rectified flow; published: not DDPM's noise",
            published=Sampler(solver=Euler("u"), stochasticity=Rectified(1.0)),
        ),
        "churn": Sampler(
            stochasticity=Churn(0.3), paper="Gao+ 2024, Diffusion Meets Flow Matching"
        ),
        "euler-maruyama": Sampler(
            solver=EulerMaruyama(), stochasticity=Eta(1.0), paper="Song+ 2021, arXiv 2011.13456"
        ),
        "langevin": Sampler(stochasticity=Langevin(), paper="Song+ 2021, arXiv 2011.13456"),
        "consistency": Sampler(stochasticity=FullRenoise(), paper="Song+ 2023, arXiv 2303.01469"),
        # Multistep: one call per step, earlier calls used again.
        "kab2": kappa_adams(),
        "kab2c": kappa_adams(order=2, corrector=3),
        "kab3c": kappa_adams(order=3, corrector=4),
        "kab2c-sde": replace(kappa_adams(order=2, corrector=3), stochasticity=Eta(1.0)),
        "dpm-2m": _with_published(Adams(2, "eps", "logsnr", rule="midpoint"), _DPM),
        "dpmpp-2m": _with_published(Adams(2, "x", "logsnr", rule="midpoint"), _DPMPP),
        "dpmpp-3m": _with_published(
            Adams(3, "x", "logsnr"),
            f"{_DPMPP}; published: half of the quadratic term, order 2",
            rule="published",
            lower_order_final=True,
        ),
        "res-2m": _with_published(Adams(2, "x", "logsnr"), _RES),
        "unipc": _with_published(
            Adams(2, "x", "logsnr", 3, rule="midpoint"), _UNIPC, lower_order_final=True
        ),
        "unipc-3": _with_published(
            Adams(3, "x", "logsnr", 4, rule="midpoint"), _UNIPC, lower_order_final=True
        ),
        "deis": _with_published(Adams(3, "eps", "logsnr"), _DEIS, lower_order_final=True),
        "deis-tab": _with_published(Adams(3, "eps", "t", limit=2.0), _DEIS),
        "lms": _with_published(
            Adams(4, "eps", limit=2.0), f"k-diffusion's LMS, DEIS-rhoAB, iPNDM_v; {_DEIS}"
        ),
        "ipndm": _with_published(Adams(4, "eps", "index"), f"Liu+ 2022, arXiv 2202.09778; {_DEIS}"),
        "dpmpp-2m-sde": _with_published(Adams(2, "x", "logsnr", rule="midpoint"), _DPMPP, Eta(1.0)),
        "dpmpp-3m-sde": _with_published(
            Adams(3, "x", "logsnr"),
            f"k-diffusion; {_DPMPP}; published: half of the quadratic term",
            Eta(1.0),
            rule="halved",
        ),
        "sa-solver": _with_published(
            Adams(3, "x", "logsnr", 3), "Xue+ 2023, arXiv 2309.05019", Tau(_middle)
        ),
        "er-sde": _with_published(Adams(3, "x", "eps"), "Cui+ 2023, arXiv 2309.06169", ER()),
        # Runge-Kutta: several calls per step.
        "heun": _with_published(RungeKutta("heun", "eps"), _EDM, grid=Karras()),
        "edm": _with_published(RungeKutta("heun", "eps"), _EDM, EDMChurn(40.0, 0.05), Karras()),
        "flow-heun": _with_published(RungeKutta("heun", "u"), "Heun 1900, on u"),
        "midpoint": _with_published(RungeKutta("midpoint", "u"), "Runge 1895, on u"),
        "rk4": _with_published(RungeKutta("rk4", "u"), "Kutta 1901, on u"),
        "dpm-2": _with_published(RungeKutta("midpoint", "eps", "logsnr"), _DPM),
        "dpm-3": _with_published(RungeKutta("collocation-3", "eps", "logsnr"), _DPM),
        "dpmpp-2s": _with_published(RungeKutta("midpoint", "x", "logsnr"), _DPMPP),
        "res-2s": _with_published(RungeKutta("collocation-2", "x", "logsnr"), _RES),
        "dpm-2-a": _with_published(
            RungeKutta("midpoint", "eps", "logsnr"),
            f"k-diffusion's ancestral DPM-Solver-2; {_DPM}",
            DDIMEta(1.0),
            Karras(),
        ),
        "dpmpp-2s-a": _with_published(
            RungeKutta("midpoint", "x", "logsnr"),
            f"k-diffusion's ancestral DPM-Solver++(2S); {_DPMPP}",
            DDIMEta(1.0),
            Karras(),
        ),
        "restart": _with_published(
            RungeKutta("heun", "eps"), "Xu+ 2023, arXiv 2306.14878", Restart(), Karras()
        ),
        # Exactly invertible; equal steps in eta do not amplify rounding.
        "leapfrog": Sampler(
            Uniform("u"), Leapfrog("u"), paper="Wang+ 2024, arXiv 2410.07273, on u"
        ),
        "bdia": Sampler(Uniform("u"), BDIA(), paper="Zhang+ 2023, arXiv 2307.10829"),
    },
)

# Other names for the same.
samplers |= {
    "euler-ancestral": samplers["euler-a"],
    "lcm": samplers["consistency"],
    "ipndm-v": samplers["lms"],
}

# Names that take numbers, "kab2(0.7, 2)": the preset with other parameters.
FAMILIES: dict[str, Callable[..., Sampler]] = {
    "ddim": lambda eta: Sampler(stochasticity=DDIMEta(eta)),
    "ddpm": lambda eta: Sampler(stochasticity=Eta(eta)),
    "churn": lambda churn: Sampler(stochasticity=Churn(churn)),
    "edm": lambda churn: replace(samplers["edm"], stochasticity=EDMChurn(churn, 0.05)),
    "kab2": kappa_adams,
    "kab2c": partial(kappa_adams, order=2, corrector=3),
    "kab3c": partial(kappa_adams, order=3, corrector=4),
}
