"""What is trained: objectives, densities and weightings of the log-SNR, recipes.

`objective` has the loss, `densities` the distributions that levels are drawn from, `weightings` how
much their errors count, `learned` distributions and weights that follow the errors while training,
and `recipes` published setups as rows.
"""

from twosides.losses import densities, weightings
from twosides.losses.learned import Adaptive, LevelBins, Uncertainty, measure_entropic
from twosides.losses.objective import Objective
from twosides.losses.recipes import Recipe, recipes

__all__ = [
    "Adaptive", "LevelBins", "Objective", "Recipe", "Uncertainty", "densities", "measure_entropic",
    "recipes", "weightings",
]  # fmt: skip
