"""The names of the library's tables, read from their source without importing torch.

Figures offer "any sampler" and "any recipe" as soon as the page is loaded, and torch takes seconds.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

_ROOT = Path(__file__).parents[1]


@functools.cache
def names(module: str, variable: str) -> tuple[str, ...]:
    """The keys of the dictionary in a variable of a module of this package.

    module: the file of the module.
    variable: the variable.

    >>> names("sampling/presets.py", "samplers")[:2]
    ('ddim', 'flow-euler')
    """
    tree = ast.parse((_ROOT / module).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == variable:
            found = next(each for each in ast.walk(node) if isinstance(each, ast.Dict))
            return tuple(str(ast.literal_eval(key)) for key in found.keys if key is not None)
    raise LookupError(f"{module} has no table {variable}")


def options(
    module: str, variable: str, labels: tuple[tuple[str, str], ...] = ()
) -> tuple[tuple[str, str], ...]:
    """The names as options of a control: first those that have labels, then the rest."""
    rest = (name for name in names(module, variable) if name not in dict(labels))
    return (*labels, *((name, name) for name in rest))


SAMPLERS = options("sampling/presets.py", "samplers")
RECIPES = options("losses/recipes.py", "recipes")
SCHEDULES = options(
    "schedules/__init__.py",
    "SCHEDULES",
    (
        ("flow-matching", "flow matching"),
        ("cosine", "cosine"),
        ("cosine(-15, 15)", "cosine, log-SNR in [-15, 15]"),
        ("vp-linear", r"VP, linear $\beta$"),
        ("edm", "EDM"),
        ("geometric", "VE, geometric"),
        ("scaled-linear", "Stable Diffusion's"),
    ),
)
OUTPUTS = options(
    "outputs.py",
    "OUTPUTS",
    (
        ("eps", r"$\epsilon$"),
        ("x", "$x$"),
        ("v", "$v$"),
        ("u", r"$u = \epsilon - x$"),
        ("score", "score"),
        ("F", "EDM's $F$"),
    ),
)
DATA_1D: tuple[tuple[str, str], ...] = (
    ("gaussian", "one Gaussian, 1-D"),
    ("two-modes", "two modes, 1-D"),
)
DATA_2D: tuple[tuple[str, str], ...] = (
    ("ring", "a ring of 8 modes"),
    ("moons", "two moons"),
    ("gaussian-2d", "one Gaussian, 2-D"),
)
POINTS: tuple[tuple[str, str], ...] = (("points", "12 points, memorised"),)
