"""The normal form of samplers: a table of coefficients, one row per network call.

Every sampler on a fixed grid is linear in what the network says. Tracing its solver with symbols
gives a Plan: n network calls at given levels, and n + 1 states (the inputs of the calls, then the
result), each a combination of the estimates so far and of noises,

    state_i = sum_k x[i, k] x_k + eps[i, k] eps_k  +  sum_j noise[i, j] n_j

where (x_k, eps_k) is the estimate of call k, n_0 the initial noise and n_1 ... those injected. The
pair carries the state too, z_k = alpha_k x_k + sigma_k eps_k, so the rows are recurrences: a caller
may edit z between calls (inpainting), and only the history that is still needed is kept. Since the
numbers are plain, a plan runs anywhere: here, in another framework, or in a few lines of NumPy.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twosides.denoiser import Call, Denoiser, Denoises
from twosides.outputs import Estimate, Output, Solution, output_named
from twosides.schedules import FlowMatching, Level

Array = NDArray[np.float64]
Key = tuple[str, int]


class Symbol:
    """A linear combination of estimates and noises: what a solver computes with when traced."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[Key, float]) -> None:
        """From coefficients of ("x" | "eps" | "noise", number)."""
        self.terms = terms

    def __add__(self, other: Symbol) -> Symbol:
        """Sum."""
        total = dict(self.terms)
        for key, value in other.terms.items():
            total[key] = total.get(key, 0.0) + value
        return Symbol(total)

    def __mul__(self, factor: float) -> Symbol:
        """Multiple."""
        return Symbol({key: factor * value for key, value in self.terms.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Symbol:
        """Opposite."""
        return self * -1.0

    def __sub__(self, other: Symbol) -> Symbol:
        """Difference."""
        return self + other * -1.0

    def __truediv__(self, divisor: float) -> Symbol:
        """Quotient."""
        return self * (1.0 / divisor)


class Weights(NamedTuple):
    """The final sample as `initial n_0 + sum_k predictions_k o_k + sum_j noises_j n_j`."""

    initial: float
    predictions: Array
    noises: Array


@dataclass(frozen=True)
class Plan:
    """A sampler on a grid, as numbers. See the module's text for the formula.

    logsnr, alpha, sigma (n + 1,) are the levels of the states; x, eps (n + 1, n) and noise
    (n + 1, 1 + m) the coefficients, float64. `name` says where it came from.
    """

    logsnr: Array
    alpha: Array
    sigma: Array
    x: Array
    eps: Array
    noise: Array
    name: str = ""

    def __post_init__(self) -> None:
        """ValueError unless the arrays fit together and each row uses only earlier calls."""
        calls = self.logsnr.size - 1
        shapes = [self.alpha.shape, self.sigma.shape, self.x.shape, self.eps.shape]
        wanted = [(calls + 1,), (calls + 1,), (calls + 1, calls), (calls + 1, calls)]
        noises = self.noise.ndim == 2 and len(self.noise) == calls + 1 and self.noise.shape[1] >= 1
        if calls < 1 or self.logsnr.ndim != 1 or shapes != wanted or not noises:
            raise ValueError(
                f"a plan of {calls} calls needs arrays of shapes {wanted}, got {shapes}"
            )
        if np.triu(self.x).any() or np.triu(self.eps).any():
            raise ValueError("a plan's row uses a network call that comes after it")
        with np.errstate(divide="ignore"):
            logsnr = 2 * (np.log(np.abs(self.alpha)) - np.log(np.abs(self.sigma)))
        # Where floats of t near 1 are too coarse to tell levels apart, only roughly.
        matches = np.isclose(logsnr, self.logsnr, rtol=1e-6, atol=1e-6)
        matches |= np.minimum(np.abs(logsnr), np.abs(self.logsnr)) > 50
        if (
            np.isnan(self.logsnr).any()
            or not (matches | ~np.isfinite(self.alpha + self.sigma)).all()
        ):
            raise ValueError("a plan's logsnr is not that of its alpha and sigma")
        finite = all(np.isfinite(part).all() for part in (self.x, self.eps, self.noise))
        if not finite or not np.isfinite(self.alpha + self.sigma).all():
            raise ValueError(
                f"the plan {self.name} has infinite or undefined coefficients; its grid reaches a "
                "level where alpha or sigma is infinite: use with_scaling('vp') or a shorter grid"
            )

    @property
    def nfe(self) -> int:
        """Number of network calls."""
        return len(self.logsnr) - 1

    @property
    def stochastic(self) -> bool:
        """Whether noise is injected after the initial one."""
        return bool(self.noise[:, 1:].any())

    @property
    def levels(self) -> list[Level]:
        """The levels of the states, the last being the result's."""
        parts = (self.logsnr.tolist(), self.alpha.tolist(), self.sigma.tolist())
        return [Level(*values) for values in zip(*parts, strict=True)]

    def __repr__(self) -> str:
        """Short form."""
        noises = self.noise.shape[1] - 1
        ends = f"logsnr {self.logsnr[0]:.4g} to {self.logsnr[-1]:.4g}"
        return f"Plan({self.name}: {self.nfe} calls, {noises} injected noises, {ends})"

    def matrix(self, output: str | Output = "u") -> Array:
        """All states over (initial noise, n outputs, m injected noises): (n + 1, 1 + n + m).

        Lower triangular in the outputs. ValueError where the output does not determine the
        estimate (eps at zero SNR). A "velocity" output means flow matching's.
        """
        output = output_named(output, FlowMatching())
        calls, noises = self.nfe, self.noise.shape[1] - 1
        rows = np.zeros((calls + 1, 1 + calls + noises))
        rows[:, 0], rows[:, 1 + calls :] = self.noise[:, 0], self.noise[:, 1:]
        solved = [output.solve(level) for level in self.levels[:-1]]
        x_z, x_o, eps_z, eps_o = np.array(solved, dtype=np.float64).T
        for i in range(1, calls + 1):
            x, eps = self.x[i, :i], self.eps[i, :i]
            rows[i] += (x * x_z[:i] + eps * eps_z[:i]) @ rows[:i]
            rows[i, 1 : 1 + i] += x * x_o[:i] + eps * eps_o[:i]
        return rows

    def weights(self, output: str | Output = "u") -> Weights:
        """What each prediction and noise weighs in the final sample (the post's churn figure).

        Signs are the formula's: the weights of v and u, which point towards the noise, are
        negative.

            >>> import twosides as ts
            >>> weights = ts.plan("ddim", ts.Cosine(-15, 15), 100).weights("v")
            >>> print((-weights.predictions).min().round(6), (-weights.predictions).max().round(6))
            0.015506 0.015696
        """
        last, calls = self.matrix(output)[-1], self.nfe
        return Weights(float(last[0]), last[1 : 1 + calls], last[1 + calls :])

    # ------------------------------------------------------------------ files

    def to_json(self) -> str:
        """The plan as JSON text: levels and sparse rows; infinite logsnr as "inf", "-inf"."""
        rows = [
            {part: _sparse(table[i]) for part, table in self._tables().items()}
            for i in range(self.nfe + 1)
        ]
        logsnr = [value if math.isfinite(value) else str(value) for value in self.logsnr.tolist()]
        content = {
            "format": "twosides.plan",
            "version": 1,
            "name": self.name,
            "noises": self.noise.shape[1] - 1,
            "logsnr": logsnr,
            "alpha": self.alpha.tolist(),
            "sigma": self.sigma.tolist(),
            "rows": rows,
        }
        return json.dumps(content, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan back, exactly; ValueError for anything else."""
        try:
            content = json.loads(text)
            if content.get("format") != "twosides.plan" or content.get("version") != 1:
                raise ValueError(f"format {content.get('format')!r} {content.get('version')!r}")
            levels = [np.array(content[key], dtype=np.float64) for key in _LEVELS]
            calls, rows = len(levels[0]) - 1, content["rows"]
            if max(calls, len(rows)) > MAX_CALLS:
                raise ValueError(f"{calls} calls; {MAX_CALLS} are read, for tables are square")
            noises = int(content["noises"])
            if not 0 <= noises <= sum(len(row["noise"]) for row in rows):
                raise ValueError(f"{noises} noises")
            widths = {"x": calls, "eps": calls, "noise": 1 + noises}
            tables = [_dense([row[key] for row in rows], width) for key, width in widths.items()]
            return cls(*levels, *tables, name=str(content["name"]))
        except _BROKEN as error:
            raise ValueError(f"this is not a twosides plan, version 1: {error!r}") from error

    def to_npz(self, path: str | Path) -> None:
        """The arrays of the plan as an .npz file of that very name."""
        from twosides.storage.files import write_file

        buffer = io.BytesIO()
        arrays: dict[str, Any] = {key: getattr(self, key) for key in _LEVELS} | self._tables()
        np.savez(buffer, name=np.array(self.name), **arrays)
        write_file(Path(path), buffer.getvalue())

    @classmethod
    def from_npz(cls, path: str | Path) -> Plan:
        """The plan back, exactly; never unpickles."""
        names = (*_LEVELS, "x", "eps", "noise", "name")
        try:
            with zipfile.ZipFile(path) as archive:  # savez does not deflate
                if any(entry.compress_type for entry in archive.infolist()):
                    raise ValueError("it is compressed")
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                if missing := set(names) - set(file.files):
                    raise ValueError(f"it lacks {sorted(missing)}")
                *tables, name = (file[key] for key in names)
            return cls(*(table.astype(np.float64) for table in tables), name=str(name))
        except (*_BROKEN, zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{path} is not a twosides plan: {error!r}") from error

    def _tables(self) -> dict[str, Array]:
        return {"x": self.x, "eps": self.eps, "noise": self.noise}


MAX_CALLS = 4096
_LEVELS = ("logsnr", "alpha", "sigma")
_BROKEN = (
    ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError,
    MemoryError,
)  # fmt: skip


def _sparse(row: Array) -> list[list[float]]:
    return [[int(k), float(row[k])] for k in np.flatnonzero(row)]


def _dense(rows: list[list[list[float]]], width: int) -> Array:
    table = np.zeros((len(rows), width))
    for i, row in enumerate(rows):
        for k, value in row:
            if not (isinstance(k, int) and 0 <= k < width):
                raise ValueError(f"row {i} names column {k!r} of {width}")
            table[i, k] = value
    return table


# ---------------------------------------------------------------------------- tracing


def trace(
    sampler: Callable[[Any, Callable[[], Any]], Generator[Any, Estimate, Any]],
    final: Level,
    name: str = "",
) -> Plan:
    """Run a sampler on symbols: `sampler(noise symbol, source of more)` yields (z, level)."""
    count = iter(range(1, 10**9))
    injected: list[int] = []

    def noise() -> Symbol:
        injected.append(next(count))
        return Symbol({("noise", injected[-1]): 1.0})

    asks = sampler(Symbol({("noise", 0): 1.0}), noise)
    rows: list[dict[Key, float]] = []
    levels: list[Level] = []
    estimate: Estimate | None = None
    while True:
        try:
            z, level = next(asks) if estimate is None else asks.send(estimate)
        except StopIteration as stop:
            rows.append(stop.value.terms)
            return _assemble(rows, [*levels, final], len(injected), name)
        call = len(rows)
        rows.append(z.terms)
        levels.append(level)
        # From here on the solver's z means what the network was shown, which the estimate carries:
        # rows stay recurrences in the current state.
        z.terms = {("x", call): level.alpha, ("eps", call): level.sigma}
        estimate = Estimate(Symbol({("x", call): 1.0}), Symbol({("eps", call): 1.0}))


def _assemble(rows: list[dict[Key, float]], levels: list[Level], noises: int, name: str) -> Plan:
    calls = len(rows) - 1
    tables = {"x": np.zeros((calls + 1, calls)), "eps": np.zeros((calls + 1, calls))}
    tables["noise"] = np.zeros((calls + 1, 1 + noises))
    for i, row in enumerate(rows):
        for (kind, k), value in row.items():
            tables[kind][i, k] = value
    logsnr, alpha, sigma = np.array(levels, dtype=np.float64).T
    return Plan(logsnr, alpha, sigma, tables["x"], tables["eps"], tables["noise"], name)


# ---------------------------------------------------------------------------- running


class Row(NamedTuple):
    """A state as a combination of kept tensors, and the slots that no later row needs.

    `keep` are the slots of the call that follows, and which part of its pair goes there.
    """

    terms: list[tuple[int, float]]
    forget: list[int]
    keep: list[tuple[int, int]]


class Program(NamedTuple):
    """A plan lowered to a denoiser: call k keeps its input in slot 2k, its answer in 2k + 1.

    Noise j lives in slot 2n + j.
    """

    rows: list[Row]
    calls: list[Call]


def lower(plan: Plan, denoiser: Denoises, dtype: torch.dtype, device: torch.device) -> Program:
    """Fold the denoiser's 2 x 2 solves into the plan's coefficients, in float64.

    A Denoiser's rows then act on (z_k, raw network output), one fused update per call; anything
    else that denoises keeps its estimates (x_k, eps_k).
    """
    levels, like = plan.levels[:-1], torch.empty(0, dtype=dtype, device=device)
    if isinstance(denoiser, Denoiser):
        calls = denoiser.prepare(levels, like)
    else:
        identity = Solution(1.0, 0.0, 0.0, 1.0)
        calls = [Call(level, 1.0, like, identity) for level in levels]
    x_z, x_o, eps_z, eps_o = np.array([call.solution for call in calls]).T
    inputs, answers = plan.x * x_z + plan.eps * eps_z, plan.x * x_o + plan.eps * eps_o
    pairs = np.stack([inputs, answers], 2).reshape(plan.nfe + 1, -1)
    table = np.concatenate([pairs, plan.noise], 1)
    last_use = (plan.nfe - (table[::-1] != 0).argmax(0)).tolist()
    places = table.nonzero()
    used = set(places[1].tolist())
    keeps = [[(s, s % 2) for s in (k, k + 1) if s in used] for k in range(0, 2 * plan.nfe, 2)]
    rows = [Row([], [], keep) for keep in (*keeps, [])]
    for i, slot, value in zip(*(part.tolist() for part in (*places, table[places])), strict=True):
        rows[i].terms.append((slot, value))
        if last_use[slot] == i:
            rows[i].forget.append(slot)
    return Program(rows, calls)


# torch.compile takes the result as it is: `torch.compiler.assume_constant_result`, which would
# import the compiler, seconds, for everybody.
lower.__dict__["_dynamo_marked_constant"] = True


def ask(
    denoiser: Denoises, z: Tensor, call: Call, conditioning: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """One call: what its two slots keep."""
    if isinstance(denoiser, Denoiser):
        scaled = z if call.scale == 1.0 else z * call.scale
        return z, denoiser.predict(scaled, call.time, **conditioning)
    x, eps = denoiser(z, call.level, **conditioning)
    return x, eps


def combine(terms: Sequence[tuple[Tensor, float]]) -> Tensor:
    """`sum_k c_k v_k` without temporaries."""
    (first, a), *rest = terms
    if not rest:
        return first * a
    second, b = rest[0]
    # A coefficient that is 1 but for rounding, such as flow matching's, saves a pass over memory.
    one = abs(a - 1.0) < 1e-15
    total = torch.add(first, second, alpha=b) if one else (first * a).add_(second, alpha=b)
    for tensor, coefficient in rest[1:]:
        total.add_(tensor, alpha=coefficient)
    return total


class Visit(NamedTuple):
    """One network call of a run: its number, input, level, and the estimate."""

    number: int
    z: Tensor
    level: Level
    estimate: Callable[[], Estimate]


def run(
    plan: Plan,
    denoiser: Denoises,
    initial: Tensor,
    noise: Callable[[], Tensor] | None = None,
    *,
    edit: Callable[[int, Tensor, Level], Tensor | None] | None = None,
    watch: Callable[[Visit], None] | None = None,
    conditioning: dict[str, Any] | None = None,
) -> Tensor:
    """Run a plan on tensors and return its final state (in the plan's scaling).

    `initial` is noise of unit variance, `noise()` gives more of it. `edit(k, z, level)` may return
    a replacement for the input of call k; `watch` sees each call. Differentiable.
    """
    program = lower(plan, denoiser, initial.dtype, initial.device)
    first_noise = 2 * plan.nfe
    kept: dict[int, Tensor] = {first_noise: initial}
    z = initial
    for index, row in enumerate(program.rows):
        for slot, _ in row.terms:
            if slot not in kept and slot > first_noise:
                kept[slot] = _draw(noise)
        z = (
            combine([(kept[slot], value) for slot, value in row.terms])
            if row.terms
            else torch.zeros_like(initial)
        )
        for slot in row.forget:
            del kept[slot]
        if index == plan.nfe:
            break
        call = program.calls[index]
        if edit is not None:
            edited = edit(index, z, call.level)
            z = z if edited is None else edited
        pair = ask(denoiser, z, call, conditioning or {})
        for slot, part in row.keep:
            kept[slot] = pair[part]
        if watch is not None:
            watch(Visit(index, z, call.level, partial(call.solution.apply, *pair)))
        del pair  # or the next call would find it in memory
    return z


def _draw(noise: Callable[[], Tensor] | None) -> Tensor:
    if noise is None:
        raise ValueError("this plan injects noise; pass noise=, a source of standard normals")
    return noise()
