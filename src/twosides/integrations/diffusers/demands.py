"""The features of a scheduler that a pipeline needs, found in the source of its class.

A pipeline may read, call or set more than schedulers have in common, or compute in the coordinates
of the class that it was written for. If the scheduler here lacks such a feature, the pipeline is
refused before anything runs, with the name of the feature.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import textwrap
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any


@dataclass(frozen=True)
class Demands:
    """The features of a scheduler that a class uses.

    reads: attributes that it reads or calls, without those whose existence it checks.
    sets: attributes that it assigns to, or into.
    says: names of the arguments of `step` and `set_timesteps`, as "step(eta)".
    takes_data: whether it takes the predicted data out of the tuple of a step.
    """

    reads: frozenset[str]
    sets: frozenset[str]
    says: frozenset[str]
    takes_data: bool


# Pipelines that compute with the latents of another scheduler, which their calls do not show.
COORDINATES = {
    "StableDiffusionLatentUpscalePipeline": "it preconditions latents x + sigma n by hand",
    "CosmosTextToWorldPipeline": "it preconditions latents x + sigma n by hand",
    "CosmosVideoToWorldPipeline": "it preconditions latents x + sigma n by hand",
    "Cosmos2TextToImagePipeline": "it takes a flow scheduler for one of latents x + sigma n",
    "Cosmos2VideoToWorldPipeline": "it takes a flow scheduler for one of latents x + sigma n",
}


@lru_cache(maxsize=512)
def demands(kind: type) -> Demands:
    """The features of `self.scheduler` that a pipeline class uses, with its base classes."""
    found = _Reader()
    for each in kind.__mro__:
        if ".pipelines." in each.__module__ and not each.__module__.endswith("pipeline_utils"):
            with contextlib.suppress(OSError):  # the source of a class may be missing
                found.visit(ast.parse(textwrap.dedent(inspect.getsource(each))))
    reads = frozenset(found.reads - found.guarded)
    return Demands(reads, frozenset(found.sets), frozenset(found.says), found.takes_data)


def check_demands(kind: type, scheduler: type) -> None:
    """ValueError for a pipeline class that needs a feature that a scheduler class does not have."""
    if reasons := find_missing(kind, scheduler):
        raise ValueError(
            f"{kind.__name__} needs the scheduler that it was written for: {'; '.join(reasons)}"
        )


def find_missing(kind: type, scheduler: type) -> list[str]:
    """The features that a pipeline class needs and a scheduler class lacks, in words."""
    needed, reasons = demands(kind), list[str]()
    for name in (each.__name__ for each in kind.__mro__):
        reasons += [COORDINATES[name]] if name in COORDINATES else []
    for name in sorted(needed.sets):
        settable = getattr(getattr(scheduler, name, None), "fset", None)
        reasons += [] if settable else [f"it sets {name}"]
    reasons += [f"it uses {name}" for name in sorted(needed.reads) if not hasattr(scheduler, name)]
    for call in sorted(needed.says):
        method, argument = call.rstrip(")").split("(")
        taken = inspect.signature(getattr(scheduler, method)).parameters
        if argument not in taken:
            reasons.append(f"it passes {argument} to {method}")
    return reasons


@dataclass
class _Reader(ast.NodeVisitor):
    """A visitor of the source of a class."""

    reads: set[str] = field(default_factory=set)
    sets: set[str] = field(default_factory=set)
    says: set[str] = field(default_factory=set)
    guarded: set[str] = field(default_factory=set)
    takes_data: bool = False

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Note the attributes of the scheduler that are read, and those that are assigned to."""
        if _is_scheduler(node.value):
            stored = isinstance(node.ctx, ast.Store | ast.Del)
            (self.sets if stored else self.reads).add(node.attr)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """Note the attributes that are assigned into, and whether a step's second part is taken."""
        target = node.value
        if isinstance(node.ctx, ast.Store) and isinstance(target, ast.Attribute):
            if _is_scheduler(target.value):
                self.sets.add(target.attr)
        if _calls(target) == "step" and isinstance(node.slice, ast.Constant):
            self.takes_data |= node.slice.value == 1
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Note whether a step's tuple is unpacked."""
        pair = isinstance(node.targets[0], ast.Tuple) and len(node.targets[0].elts) > 1
        self.takes_data |= pair and _calls(node.value) == "step"
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Note which arguments are named, and which attributes are looked for."""
        method = _calls(node)
        if method in ("step", "set_timesteps"):
            self.says |= {f"{method}({word.arg})" for word in node.keywords if word.arg}
        if isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr"):
            if _is_scheduler(node.args[0]) and isinstance(node.args[1], ast.Constant):
                self.guarded.add(str(node.args[1].value))
        self.generic_visit(node)


def _is_scheduler(node: Any) -> bool:
    """Whether this is `self.scheduler`, or that of the components of modular pipelines."""
    return (
        isinstance(node, ast.Attribute)
        and node.attr == "scheduler"
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "components", "pipe")
    )


def _calls(node: Any) -> str:
    """The method of the scheduler that this calls; "" if it calls none."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr if _is_scheduler(node.func.value) else ""
    return ""
