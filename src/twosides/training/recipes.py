"""Published training setups as data: output, schedule, density, weighting.

A recipe is a row of `recipes`; where `weighting` is left out it is the plain mean squared error of
the output at levels from the density, as most papers train. Adding one is adding it here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twosides.denoiser import Clock, Denoiser
from twosides.naming import Table, named
from twosides.schedules import EDM, Cosine, FlowMatching, Schedule, VPLinear
from twosides.training.densities import Density, FromSchedule, Normal
from twosides.training.objective import Objective
from twosides.training.weightings import OutputMSE, Weighting


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: what it predicts, on which schedule, at which levels, weighted how.

    >>> recipes["edm"].output, recipes["edm"].density
    ('F(0.5)', Normal(mean=2.4, std=2.4))
    """

    output: str
    schedule: Schedule
    density: Density
    weighting: Weighting
    time: str | Clock = "t"
    paper: str = ""

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
        """Mean squared error of the output, at levels from the density (default: uniform time)."""
        density = density or FromSchedule(schedule)
        weighting = OutputMSE(output, schedule, density)
        return cls(output, schedule, density, weighting, time, paper)

    def objective(self, *, stratified: bool = True) -> Objective:
        """The loss."""
        return Objective(self.weighting, self.density, stratified)

    def denoiser(self, network: Callable[..., Any], **options: Any) -> Denoiser:
        """A network as this recipe's denoiser; options are Denoiser's (time, data_mean, ...)."""
        return Denoiser(network, self.output, self.schedule, **{"time": self.time, **options})


recipes: Table[Recipe] = Table(
    "recipe",
    {
        "flow-matching": Recipe.plain("u", FlowMatching(), paper="Lipman+ 2022, arXiv 2210.02747"),
        "v-cosine": Recipe.plain("v", Cosine(), paper="Salimans & Ho 2022, arXiv 2202.00512"),
        "eps-cosine": Recipe.plain(
            "eps",
            Cosine(-15, 15),
            paper="Nichol & Dhariwal 2021, arXiv 2102.09672; range as in VDM",
        ),
        "eps-linear": Recipe.plain(
            "eps", VPLinear(), paper="Ho+ 2020, Song+ 2021, arXiv 2011.13456"
        ),
        "edm": Recipe.plain(
            "F(0.5)",
            EDM(),
            Normal.log_normal_sigma(-1.2, 1.2),
            time="c_noise",
            paper="Karras+ 2022, arXiv 2206.00364",
        ),
        "sd3": Recipe.plain(
            "u", FlowMatching(), Normal.logit_normal(0, 1), paper="Esser+ 2024, arXiv 2403.03206"
        ),
    },
)


def recipe_named(recipe: str | Recipe) -> Recipe:
    """A recipe by name, or the Recipe itself."""
    if isinstance(recipe, Recipe):
        return recipe
    return named("recipe", recipe, recipes)
