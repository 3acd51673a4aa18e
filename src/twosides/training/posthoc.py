"""Averages of any width, made after training [Karras+ 2024, EDM2, section 3.2 and appendix C].

The power-function average at step t weighs the weights of step tau by the profile

    p(tau; gamma, t) = (gamma + 1) tau^gamma / t^(gamma + 1)    on (0, t),

and is linear in it: if p = sum x_i p_i, the average of profile p is sum x_i average_i. Training
stores two averages every so many steps (`twosides.training.snapshots`); x is the least-squares fit
of the wanted profile by the stored ones under sum x_i = 1, from the inner products

    <p_a, p_b> = (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) * r^gamma / max(t_a, t_b),

where r = min(t_a, t_b) / max(t_a, t_b) and gamma is that of the later profile. Where weights change
once per step, as they do, the weight of step s in an average is exactly the integral of its profile
over (s - 1, s), so that a relation between profiles holds between the averages, too.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from twosides.denoiser import Denoiser
from twosides.storage import models
from twosides.storage.files import MANIFEST, verify_folder
from twosides.storage.reading import CorruptFolder, read_json
from twosides.storage.tensors import open_tensors
from twosides.training.ema import first_names, gamma_of
from twosides.training.finite import require_finite

FOLDER, ABOUT = "snapshots", "snapshot.json"
TOLERANCE = 0.01
"""The largest relative residual of a profile that is accepted without a warning."""


# ---------------------------------------------------------------------------- profiles


@dataclass(frozen=True)
class Profile:
    """The power function of relative width sigma_rel, in (0, 0.288), that ends at step t > 0."""

    sigma_rel: float
    t: float

    @cached_property
    def gamma(self) -> float:
        """The exponent of the profile."""
        return _gamma(self.sigma_rel)


@lru_cache
def _gamma(sigma_rel: float) -> float:
    return gamma_of(sigma_rel)


def inner_products(
    a: Sequence[Profile], b: Sequence[Profile]
) -> Float64[np.ndarray, "{len(a)} {len(b)}"]:
    """The integrals of p_a p_b, for each pair of profiles.

    >>> inner_products([Profile(0.1, 1.0)], [Profile(0.1, 1.0), Profile(0.1, 2.0)]).round(4)
    array([[4.2354, 0.0173]])
    """
    gamma_a, t_a = np.array([(p.gamma, p.t) for p in a], dtype=np.float64).T[:, :, None]
    gamma_b, t_b = np.array([(p.gamma, p.t) for p in b], dtype=np.float64).T[:, None, :]
    early, late = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    fall = (early / late) ** np.where(t_a < t_b, gamma_b, gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * fall / late


@dataclass(frozen=True)
class Combination:
    """The wanted profile as a sum of stored ones, and how well the sum fits.

    x: the factors of the stored profiles.
    residual: |p - sum x_i p_i| / |p|, in the norm of L2; below 1e-8 it is rounding.
    amplification: sum |x_i|, by which errors of the stored averages, such as rounding, grow.
    """

    x: Float64[np.ndarray, " snapshots"]
    residual: float
    amplification: float


def combine(stored: Sequence[Profile], wanted: Profile) -> Combination:
    """The best x with sum x_i = 1, in float64.

    Profiles are scaled to norm one and singular directions below 1e-14 are left out, so that many
    snapshots, which are nearly dependent, do not make x large.

    stored: the profiles of the stored averages.
    wanted: the profile to fit.

    >>> combine([Profile(0.05, 8.0), Profile(0.1, 8.0)], Profile(0.1, 8.0)).x.round(9) + 0.0
    array([0., 1.])
    """
    gram, right = inner_products(stored, stored), inner_products(stored, [wanted])[:, 0]
    norms, own = np.sqrt(np.diag(gram)), inner_products([wanted], [wanted])[0, 0]
    count = len(stored)
    matrix = np.zeros((count + 1, count + 1))  # the Lagrangian's; its last row is the constraint
    matrix[:count, :count] = gram / np.outer(norms, norms)
    matrix[:count, count] = matrix[count, :count] = norms.min() / norms
    sides = np.append(right / (norms * np.sqrt(own)), norms.min() / np.sqrt(own))
    scaled = np.linalg.lstsq(matrix, sides, rcond=1e-14)[0][:count]
    x = scaled * np.sqrt(own) / norms
    x /= x.sum()
    missed = max(float(own - 2 * x @ right + x @ gram @ x), 0.0)
    return Combination(x, float(np.sqrt(missed / own)), float(np.abs(x).sum()))


# ---------------------------------------------------------------------------- snapshots on disk


@dataclass(frozen=True)
class Snapshot:
    """A folder with one file of averaged weights for each sigma_rel.

    folder: the folder.
    step: the number of optimizer steps that were averaged.
    sigma_rels: the relative widths of the averages.
    run: the fingerprint of the weights that training started from.
    shared: for parameters with several names, the name under which each is stored, by the others.
    frozen: the names of parameters that were not trained and are not stored.
    """

    folder: Path
    step: int
    sigma_rels: tuple[float, ...]
    run: str
    shared: Mapping[str, str] = field(default_factory=dict, compare=False)
    frozen: frozenset[str] = field(default=frozenset(), compare=False)

    def profiles(self) -> list[Profile]:
        """The profiles of its files, in order."""
        return [Profile(sigma_rel, float(self.step)) for sigma_rel in self.sigma_rels]

    def files(self) -> list[Path]:
        """The files, one for each profile."""
        return [self.folder / average_file(number) for number in range(len(self.sigma_rels))]


def average_file(number: int) -> str:
    """The name of the file of the number-th profile in a snapshot."""
    return f"average-{number}.safetensors"


def read_snapshot(folder: Path) -> Snapshot:
    """Verify and describe a snapshot; `CorruptFolder` says what is wrong with it."""
    verify_folder(folder)
    try:
        about = read_json(folder / ABOUT)
        if (about["format"], about["version"]) != ("twosides snapshot", 1):
            raise ValueError("it is not version 1 of a twosides snapshot")
        step, sigma_rels = about["step"], about["sigma_rels"]
        if type(step) is not int or not 0 < step < 2**53:
            raise ValueError(f"{step!r:.40} is no number of updates")
        for sigma_rel in sigma_rels:
            gamma_of(sigma_rel)
        files = {average_file(number) for number in range(len(sigma_rels))}
        if not files or files | {ABOUT, MANIFEST} != set(os.listdir(folder)):
            raise ValueError(f"there is not one file for each of {len(sigma_rels)} averages")
        shared = {str(name): str(first) for name, first in about.get("shared", {}).items()}
        frozen = frozenset(map(str, about.get("frozen", ())))
        widths = tuple(map(float, sigma_rels))
        return Snapshot(folder, step, widths, str(about["run"]), shared, frozen)
    except CorruptFolder:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise CorruptFolder(folder, ABOUT, f"describes no snapshot: {error!r}") from None


def snapshots_of(run: str | Path) -> list[Snapshot]:
    """All snapshots of a run's folder, verified, in the order of their steps.

    ValueError if there is none, if one is damaged, or if they are not of one run.
    """
    root = Path(run) / FOLDER
    folders = sorted(root.glob("step-*"))
    if not folders:
        raise ValueError(
            f"{root} has no snapshots; train with --snapshot-every, 32 to 64 of them are enough"
        )
    found: list[Snapshot] = []
    for folder in folders:
        try:
            found.append(read_snapshot(folder))
        except CorruptFolder as error:
            advice = f"; remove {folder} to do without that snapshot"
            raise CorruptFolder(error.folder, error.file, error.reason + advice) from None
    for other in found[1:]:
        if other.run != found[0].run:
            raise ValueError(
                f"{found[0].folder} and {other.folder} are of two runs, which began with "
                f"different weights ({found[0].run} and {other.run}); keep those of one"
            )
    return sorted(found, key=lambda snapshot: snapshot.step)


# ---------------------------------------------------------------------------- reconstruction


def reconstruct(
    run: str | Path, sigma_rel: float, *, step: int | None = None, trust_code: bool = False
) -> tuple[Denoiser, dict[str, Any]]:
    """The model with another average of the weights, and notes on how it was made.

    run: the folder of the run; network, buffers and notation are those of its model.
    sigma_rel: the relative width of the average, in (0, 0.288).
    step: the step at which the profile ends, by default that of the newest snapshot.
    trust_code: whether code may be imported by the paths that the model names.

    One tensor of one snapshot is in memory at a time. A residual above 0.01 is warned of: the
    snapshots do not span the profile. ValueError names a damaged snapshot, or snapshots of another
    network or of several runs.
    """
    snapshots = snapshots_of(run)
    newest = snapshots[-1].step
    end = newest if step is None else step
    if not 0 < end <= newest:
        raise ValueError(f"step is in 1 ... {newest}, where the snapshots end, got {end}")
    stored = [profile for snapshot in snapshots for profile in snapshot.profiles()]
    found = combine(stored, Profile(sigma_rel, float(end)))
    if found.residual > 0.5:
        raise ValueError(
            f"{found.residual:.1%} of an average of sigma_rel {sigma_rel} at step {end} is missing "
            f"from the snapshots, which begin at step {snapshots[0].step}; choose a later step"
        )
    if found.residual > TOLERANCE:
        warnings.warn(
            f"the {len(snapshots)} snapshots do not span sigma_rel {sigma_rel} at step {end}: "
            f"{found.residual:.1%} of the profile is missing; use more snapshots, or a width "
            f"between the stored {', '.join(map(str, snapshots[0].sigma_rels))} and twice that",
            stacklevel=2,
        )
    denoiser = models.load(run, trust_code=trust_code)
    _average_into(denoiser, snapshots, found.x)
    require_finite(dict(denoiser.named_parameters()), f"the average of {run}")
    notes = {
        "sigma_rel": sigma_rel,
        "step": end,
        "run": snapshots[0].run,
        "residual": found.residual,
        "amplification": found.amplification,
        "snapshots": [snapshot.folder.name for snapshot in snapshots],
        "of": list(snapshots[0].sigma_rels),
    }
    return denoiser, notes


@torch.no_grad()
def _average_into(
    denoiser: Denoiser, snapshots: Sequence[Snapshot], x: Float64[np.ndarray, " snapshots"]
) -> None:
    """Overwrite the trained parameters by the sum of x_i times the snapshots' files, in float64."""
    files = [file for snapshot in snapshots for file in snapshot.files()]
    frozen, stored = snapshots[0].frozen, {**first_names(denoiser), **snapshots[0].shared}
    named = denoiser.named_parameters(remove_duplicate=False)
    targets: dict[str, Tensor] = {name: value for name, value in named if name not in frozen}
    with ExitStack() as stack:
        opened = [stack.enter_context(open_tensors(file)) for file in files]
        for path, file in zip(files, opened, strict=True):
            if set(file.keys()) != {stored[name] for name in targets}:
                raise ValueError(f"{path} has the weights of another network than the model's")
        for name, target in targets.items():
            total = torch.zeros(target.shape, dtype=torch.float64)
            for factor, path, file in zip(x.tolist(), files, opened, strict=True):
                value = file.get_tensor(stored[name])
                if value.shape != total.shape:
                    raise ValueError(
                        f"{path}: {name} has shape {tuple(value.shape)}, not the model's"
                    )
                total.add_(value.double(), alpha=factor)
            target.copy_(total)


def _refuse_another(folder: Path, run: str) -> None:
    """ValueError if the folder exists and is no average of this run, which may be replaced."""
    if folder.exists():
        try:
            same = models.read_notes(folder)["ema"]["run"] == run
        except (OSError, KeyError, TypeError, ValueError):
            same = False
        if not same:
            raise ValueError(f"{folder} exists and is no average of this run; choose a new folder")


def save_averages(
    run: str | Path,
    out: str | Path,
    sigma_rels: Sequence[float],
    *,
    step: int | None = None,
    trust_code: bool = False,
) -> list[str]:
    """Write a model folder for each sigma_rel, and return a line on the quality of each.

    run: the folder of the run.
    out: the folder of a single average; several are written to `out/ema-0.05`, `out/ema-0.1`, ...
    sigma_rels: the relative widths, different ones in (0, 0.288).
    step: the step at which the profiles end, by default that of the newest snapshot.
    trust_code: whether code may be imported by the paths that the model names.
    """
    if not sigma_rels or len(set(sigma_rels)) < len(sigma_rels):
        raise ValueError(f"one or more different values of sigma_rel are needed, got {sigma_rels}")
    for sigma_rel in sigma_rels:
        gamma_of(sigma_rel)
    about, origin, lines = models.read_notes(run), snapshots_of(run)[0].run, []
    several = len(sigma_rels) > 1
    folders = [Path(out) / f"ema-{sigma:g}" if several else Path(out) for sigma in sigma_rels]
    for folder in folders:
        _refuse_another(folder, origin)
    for folder, sigma_rel in zip(folders, sigma_rels, strict=True):
        denoiser, notes = reconstruct(run, sigma_rel, step=step, trust_code=trust_code)
        models.save(denoiser, folder, **{**about, "ema": notes})
        lines.append(
            f"{folder}: sigma_rel {sigma_rel:g} at step {notes['step']} from "
            f"{len(notes['snapshots'])} snapshots, residual {notes['residual']:.1e}, "
            f"sum |x| {notes['amplification']:.3g}"
        )
    return lines
