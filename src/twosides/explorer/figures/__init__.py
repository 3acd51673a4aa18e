"""The figures, in the order of the page. A new one is a module with a FIGURE, listed here."""

from __future__ import annotations

from twosides.explorer.figure import Figure
from twosides.explorer.figures import (
    churn,
    dictionary,
    error,
    reversed_ddim,
    scaling,
    straightness,
    two_sides,
    weightings,
)

FIGURES: tuple[Figure, ...] = (
    two_sides.FIGURE,
    scaling.FIGURE,
    straightness.FIGURE,
    weightings.FIGURE,
    churn.FIGURE,
    reversed_ddim.FIGURE,
    error.FIGURE,
    dictionary.FIGURE,
)
