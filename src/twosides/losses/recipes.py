"""Published training setups as data: output, schedule, density, weighting.

A recipe is a row of `recipes`, and adding one is adding it here. Most papers train the plain mean
squared error of the output at levels from the density, which is `Recipe.plain`. Recipes of discrete
models draw their index from an interval, where the papers draw whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from twosides.clocks import Clock
from twosides.denoiser import Denoiser
from twosides.losses.densities import (
    Density,
    FromSchedule,
    Laplace,
    Mode,
    Normal,
    NormalMin,
    Uniform,
    UShape,
    cosmap,
)
from twosides.losses.learned import LEARNERS
from twosides.losses.objective import Objective
from twosides.losses.weightings import (
    ELBO,
    P2,
    MinSNR,
    Monotonic,
    OutputMSE,
    Power,
    Product,
    Sigmoid,
    TruncatedSNR,
    Weighting,
    soft_min_snr,
)
from twosides.naming import Table, named, split_call, unknown
from twosides.schedules import (
    EDM,
    Betas,
    Cosine,
    FlowMatching,
    Geometric,
    ScaledLinear,
    Schedule,
    VPLinear,
)


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: the output, the schedule, and which levels count how much.

    output: what the network predicts, a name of `outputs`.
    schedule: the noise schedule.
    density: the distribution of the levels.
    weighting: how much the error of a level counts.
    time: how the network is told the level, a name of `clocks` or a Clock.
    paper: where the recipe comes from.
    learns: what follows the error while training: "adaptive", "entropy-rate" or "uncertainty"
        (`losses.learned`), or "" for nothing.

    >>> recipes["edm"].output, recipes["edm"].density
    ('F(0.5)', Normal(mean=2.4, std=2.4))
    """

    output: str
    schedule: Schedule
    density: Density
    weighting: Weighting
    time: str | Clock = "t"
    paper: str = ""
    learns: str = ""

    def __post_init__(self) -> None:
        """ValueError for an unknown `learns`."""
        if self.learns and self.learns not in LEARNERS:
            raise unknown("thing to learn beside the network", self.learns, LEARNERS)

    @classmethod
    def plain(
        cls,
        output: str,
        schedule: Schedule,
        density: Density | None = None,
        *,
        time: str | Clock = "t",
        paper: str = "",
    ) -> Recipe:
        """The recipe of the mean squared error of the output, at levels from the density.

        density: uniform time on the schedule by default.
        output, schedule, time, paper: see `Recipe`.
        """
        density = density or FromSchedule(schedule)
        weighting = OutputMSE(output, schedule, density)
        return cls(output, schedule, density, weighting, time, paper)

    @classmethod
    def weighted(
        cls,
        output: str,
        schedule: Schedule,
        *factors: Weighting,
        density: Density | None = None,
        time: str | Clock = "t",
        paper: str = "",
    ) -> Recipe:
        """The recipe of the squared error of eps, whatever the output, times factors.

        factors: weightings, such as `MinSNR(5)`.
        density: uniform time on the schedule by default.
        output, schedule, time, paper: see `Recipe`.
        """
        density = density or FromSchedule(schedule)
        error = OutputMSE("eps", schedule, density)
        weighting = Product((error, *factors)) if factors else error
        return cls(output, schedule, density, weighting, time, paper)

    def learning(self, what: str = "adaptive") -> Recipe:
        """This recipe with a density or a weighting that follows the error; see `losses.learned`.

        what: "adaptive" trains the same objective with less variance; "entropy-rate" and
            "uncertainty" train another one; "" learns nothing.
        """
        return replace(self, learns=what)

    @property
    def reweights(self) -> bool:
        """Whether the weighting is learned, so that `weighting` is only the one at the start."""
        return bool(self.learns) and LEARNERS[self.learns].reweights

    @property
    def data_std(self) -> float:
        """The standard deviation of the data that the recipe is for: EDM's sigma_data, else 1."""
        base, numbers = split_call(self.output)
        return (numbers or (0.5,))[0] if base == "F" else 1.0

    def objective(self, *, stratified: bool = True) -> Objective:
        """The loss of the recipe. If the recipe learns, call `Objective.observe` after each step.

        stratified: whether the levels of a batch are spread evenly, see `Objective`.
        """
        weighting, density = self.weighting, self.density
        if self.learns:
            weighting, density = LEARNERS[self.learns].make(weighting, density)
        return Objective(weighting, density, stratified)

    def denoiser(self, network: Callable[..., Any], **options: Any) -> Denoiser:
        """A network as the denoiser of this recipe.

        network: the network.
        options: further arguments of `Denoiser`, such as `data_mean`, or `time` in place of the
            recipe's.
        """
        return Denoiser(network, self.output, self.schedule, **{"time": self.time, **options})


_FLOW, _COSINE, _RANGED, _VP = FlowMatching(), Cosine(), Cosine(-15, 15), VPLinear()
_DDPM, _IDDPM, _SD = ScaledLinear(1e-4, 0.02, power=1), Betas.squared_cosine(), ScaledLinear()
_GEOMETRIC = Geometric()
_VDM = Geometric(math.exp(-13.3 / 2), math.exp(5 / 2)).with_scaling("vp")
_KD = Cosine(-2 * math.log(2000), 2 * math.log(500)).shifted(0.5)
_EDM = Recipe.plain(
    "F(0.5)",
    EDM(),
    Normal.log_normal_sigma(-1.2, 1.2),
    time="c_noise",
    paper="Karras+ 2022, arXiv 2206.00364",
)
_LIPMAN = Recipe.plain("u", _FLOW, paper="Lipman+ 2022, arXiv 2210.02747")
_SD3 = Recipe.plain("u", _FLOW, Normal.logit_normal(0, 1), paper="Esser+ 2024, arXiv 2403.03206")
_LDM = Recipe.plain("eps", _SD, paper="Rombach+ 2022, arXiv 2112.10752")
_SIT = "Ma+ 2024, arXiv 2401.08740"
_EDM2 = "Karras+ 2024, arXiv 2312.02696"

recipes: Table[Recipe] = Table(
    "recipe",
    {
        "flow-matching": _LIPMAN,
        "rectified-flow": _LIPMAN,
        "sit-linear": _LIPMAN,
        "repa": _LIPMAN,
        "ddpm": Recipe.plain("eps", _DDPM, paper="Ho+ 2020, arXiv 2006.11239"),
        "iddpm": Recipe.plain("eps", _IDDPM, paper="Nichol & Dhariwal 2021, arXiv 2102.09672"),
        "sd": _LDM,
        "sdxl": _LDM,
        "sd2-v": Recipe.plain("v", _SD, paper="Stable Diffusion 2, 768 pixels"),
        "eps-linear": Recipe.plain("eps", _VP, paper="Song+ 2021, arXiv 2011.13456"),
        "eps-cosine": Recipe.plain(
            "eps", _RANGED, paper="Nichol & Dhariwal 2021, arXiv 2102.09672; range as in VDM"
        ),
        "v-cosine": Recipe.plain("v", _COSINE, paper="Salimans & Ho 2022, arXiv 2202.00512"),
        "ve-sde": Recipe.weighted("score", _GEOMETRIC, paper="Song+ 2021, arXiv 2011.13456"),
        "vdm": Recipe(
            "eps", _VDM, Uniform(-5, 13.3), ELBO(), paper="Kingma+ 2021, arXiv 2107.00630"
        ),
        "vdm++": Recipe(
            "v",
            _RANGED,
            FromSchedule(_RANGED),
            Sigmoid(2),
            paper="Kingma & Gao 2023, arXiv 2303.00848",
            learns="adaptive",
        ),
        "sid2": Recipe(
            "v",
            _RANGED,
            FromSchedule(_RANGED),
            Sigmoid(0),
            paper="Hoogeboom+ 2024, arXiv 2410.19324; its bias falls with resolution",
        ),
        "edm": _EDM,
        "edm-monotonic": replace(
            _EDM,
            weighting=Monotonic(_EDM.weighting),
            paper="Kingma & Gao 2023, arXiv 2303.00848",
            learns="adaptive",
        ),
        "infonoise": replace(
            _EDM,
            paper="Raya+ 2026, arXiv 2602.18647; started from EDM's levels",
            learns="entropy-rate",
        ),
        "edm2": Recipe.plain(
            "F(0.5)",
            EDM(),
            Normal.log_normal_sigma(-0.4, 1.0),
            time="c_noise",
            paper=_EDM2,
        ).learning("uncertainty"),
        "edm2-img64": Recipe.plain(
            "F(0.5)",
            EDM(),
            Normal.log_normal_sigma(-0.8, 1.6),
            time="c_noise",
            paper=_EDM2,
        ).learning("uncertainty"),
        "sit-gvp": Recipe.plain("velocity", _COSINE, paper=_SIT),
        "sit-vp": Recipe.plain("velocity", _VP, paper=_SIT),
        "sit-linear-score": Recipe.weighted("score", _FLOW, paper=_SIT),
        "sit-gvp-score": Recipe.weighted("score", _COSINE, paper=_SIT),
        "sit-vp-score": Recipe.weighted("score", _VP, paper=_SIT),
        "sit-score-velocity": Recipe(
            "score",
            _FLOW,
            FromSchedule(_FLOW),
            OutputMSE("velocity", _FLOW, FromSchedule(_FLOW)),
            paper=_SIT,
        ),
        "sit-score-likelihood": Recipe("score", _FLOW, FromSchedule(_FLOW), ELBO(), paper=_SIT),
        "sd3": _SD3,
        "repa-lognormal": _SD3,
        "sd3-mode": Recipe.plain("u", _FLOW, Mode(1.29), paper="Esser+ 2024, arXiv 2403.03206"),
        "sd3-cosmap": Recipe.plain("u", _FLOW, cosmap(), paper="Esser+ 2024, arXiv 2403.03206"),
        "sd3-1024": Recipe.plain(
            "u", _FLOW, _SD3.density.shifted(3.0), paper="Esser+ 2024, arXiv 2403.03206"
        ),
        "flux": Recipe.plain(
            "u",
            _FLOW,
            _SD3.density.shifted(math.exp(1.15)),
            paper="FLUX.1's shift at 4096 tokens; its training is not published",
        ),
        "rae": Recipe.plain(
            "u", _FLOW, FromSchedule(_FLOW).shifted(48**0.5), paper="Zheng+ 2025, arXiv 2510.11690"
        ),
        "meanflow": Recipe.plain(
            "u",
            _FLOW,
            NormalMin(Normal.logit_normal(-0.4, 1.0)),
            paper="Geng+ 2025, arXiv 2505.13447; its flow-matching part, unscaled",
        ),
        "rf++": Recipe.plain("u", _FLOW, UShape(4), paper="Lee+ 2024, arXiv 2405.20320"),
        "indi": Recipe.plain("x", _FLOW, paper="Delbracio & Milanfar 2023, arXiv 2303.11435"),
        "truncated-snr": Recipe.weighted(
            "x", _COSINE, TruncatedSNR(), paper="Salimans & Ho 2022, arXiv 2202.00512"
        ),
        "min-snr": Recipe.weighted("x", _IDDPM, MinSNR(5), paper="Hang+ 2023, arXiv 2303.09556"),
        "soft-min-snr": Recipe.weighted(
            "F(0.5)",
            _KD,
            soft_min_snr(4),
            time="c_noise",
            paper="Crowson+ 2024, arXiv 2401.11605",
        ),
        "p2": Recipe.weighted("eps", _DDPM, P2(1, 1), paper="Choi+ 2022, arXiv 2204.00227"),
        "debiased": Recipe.weighted("eps", _DDPM, Power(-0.5), paper="Yu+ 2023, arXiv 2310.08442"),
        "laplace": Recipe.plain(
            "v", _COSINE, Laplace(0, 0.5), paper="Hang & Gu 2024, arXiv 2407.03297; any output"
        ),
    },
)


def recipe_named(recipe: str | Recipe) -> Recipe:
    """The recipe of a name, with "+" and what it learns if wanted; a Recipe is returned as it is.

    >>> recipe_named("sd3+adaptive") == recipes["sd3"].learning("adaptive")
    True
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe in recipes:
        return recipes[recipe]
    name, _, learns = recipe.rpartition("+")
    if learns and name in recipes:
        return recipes[name].learning(learns)
    return named("recipe", name if learns and name else recipe, recipes)
