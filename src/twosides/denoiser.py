"""What a denoiser is, and the denoiser that any network makes, in whatever notation it was trained.

    Denoiser = network + output + schedule + clock        (z, level) -> Estimate(x, eps)

A denoiser is asked about a noisy z and its level, which is (logsnr, alpha, sigma), and estimates
the pair with `z = alpha x + sigma eps`. At a log-SNR this pair is the same function whatever the
notation of the network. A `Denoiser` finds it in three steps:

    1. It rescales z to the network's own (alpha', sigma') at the same logsnr, z' = z c'/c.
    2. It tells the network the level on the network's clock (t, an index, ...); the network
       answers o.
    3. It solves o = a x + b eps and z' = alpha' x + sigma' eps for (x, eps).

    >>> import torch
    >>> from twosides.schedules import Cosine
    >>> denoiser = Denoiser(lambda z, t: z * t.reshape(-1, 1), output="v", schedule=Cosine())
    >>> level = denoiser.schedule.at(0.5)
    >>> x, eps = denoiser(torch.ones(2, 3), level)
    >>> torch.allclose(level.mix(x, eps), torch.ones(2, 3))
    True
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twosides.clocks import Clock, clock_named
from twosides.display.elsewhere import note_misspelt
from twosides.outputs import OUTPUTS, Estimate, Output, Solution, output_named
from twosides.placement import check_floating, device_of, dtype_of
from twosides.schedules import FlowMatching, Level, Schedule, along_batch, schedule_named


class Call(NamedTuple):
    """One prepared call of a denoiser: all that depends on its level and not on z.

    level: the level at which the denoiser is asked.
    scale: the number by which z is multiplied before a network sees it.
    time: the level on the network's clock, of shape (1,).
    solution: how (x, eps) follow from the two tensors that `BaseDenoiser.ask` returns.
    """

    level: Level
    scale: float
    time: Tensor
    solution: Solution


@runtime_checkable
class Denoises(Protocol):
    """What a user may pass for a denoiser; where it enters, `as_denoiser` adapts it."""

    schedule: Schedule

    def __call__(self, *args: Any, **conditioning: Any) -> Estimate:
        """`(z, level, **conditioning)`: (x, eps) at a level of any scaling."""
        ...


class BaseDenoiser:
    """What networks, guidance and exact oracles have in common, so that nobody asks which it is.

    A subclass has a `schedule`, on which it is sampled by default, and is called with a level of
    any scaling. The defaults suit whatever answers with (x, eps) in the units of the data.

    output: the form in which `answer` answers, and whose error is trained.
    coupling: how training paired noise and data; eps is the score only if it is "independent".
    """

    schedule: Schedule
    output: Output = OUTPUTS["eps"]
    coupling: str = "independent"
    __call__: Callable[..., Estimate]

    def standardise(self, data: Tensor) -> Tensor:
        """Data in the units in which the denoiser estimates."""
        return data

    def unstandardise(self, x: Tensor) -> Tensor:
        """The inverse of `standardise`."""
        return x

    def prepare(self, levels: Sequence[Level], like: Tensor) -> list[Call]:
        """One call for each level, so that a loop over them computes no coefficient.

        levels: levels of floats, in any scaling.
        like: a tensor of the dtype and on the device of the states to come.
        """
        return [Call(level, 1.0, like, Solution(1.0, 0.0, 0.0, 1.0)) for level in levels]

    def calls(self, plan: Any, like: Tensor) -> list[Call]:
        """Those of a Plan; a flow map is also told where each step goes, and refuses some plans."""
        return self.prepare(plan.levels[:-1], like)

    def ask(self, z: Tensor, call: Call, conditioning: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The two tensors of a call from which `call.solution` makes (x, eps): here, these."""
        return self(z, call.level, **conditioning)

    def answer(self, z: Tensor, level: Level, **conditioning: Any) -> Tensor:
        """The estimate of `output`, which is what is trained.

        level: of tensors, in the scaling of `schedule`.
        """
        return self(z, level, **conditioning).eps


class Denoiser(nn.Module, BaseDenoiser):
    """A network that predicts `output` on `schedule` and is told the level as `time`.

    The network is called as `network(z, time, **conditioning)`: with z of shape (B, ...) in the
    schedule's own scaling and in the network's dtype, and time of shape (B,) in float32 (float64
    for a network in float64). It answers `output` in z's shape, or an object with a `.sample` of
    that shape, as diffusers' models do.

    Estimates are of data in its own units, `(data - data_mean) / data_std`; `sample` translates.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        output: str | Output = "u",
        schedule: str | Schedule | None = None,
        time: str | Clock | Callable[[Level], Tensor] = "t",
        *,
        data_mean: float | Tensor = 0.0,
        data_std: float | Tensor = 1.0,
    ) -> None:
        """Wrap a network; ValueError for unknown names or statistics that are none.

        network: any module or function; its weights stay its own.
        output: what it predicts, a name such as "eps" or "-u", or an Output.
        schedule: the noise schedule it was trained on, by default flow matching.
        time: how it is told the level, a name such as "1000t", a Clock, or a function of the Level.
        data_mean, data_std: how the data were standardised before training; numbers, or tensors
            that fit a sample, such as (C, 1, 1).
        """
        super().__init__()
        if isinstance(schedule, type):
            raise TypeError(f"pass an instance, {schedule.__name__}(), not the class")
        self.network = network
        self.schedule = schedule_named(schedule or FlowMatching())
        self.output = output_named(output, self.schedule)
        self.clock = clock_named(time)
        self.coupling = getattr(network, "coupling", "independent")
        # Not buffers: `.to(bfloat16)` is for the network's weights.
        self.data_mean = torch.as_tensor(data_mean, dtype=torch.float64)
        self.data_std = torch.as_tensor(data_std, dtype=torch.float64)
        if not bool(((self.data_std > 0) & self.data_std.isfinite()).all()):
            raise ValueError(f"data_std must be positive and finite, got {data_std}")
        if not bool(self.data_mean.isfinite().all()):
            raise ValueError(f"data_mean must be finite, got {data_mean}")

    def forward(
        self, z: Float[Tensor, " batch *event"], level: Level, **conditioning: Any
    ) -> Estimate:
        """(x, eps) with `z = alpha x + sigma eps`, for a level of any scaling, scalar or (B,)."""
        if not isinstance(level, Level):
            raise TypeError(f"level is a Level, such as schedule.at(0.5), got {level!r}")
        check_floating(z.dtype, "z")
        own = self.schedule.level(level.logsnr)
        scale = own.scale / level.scale
        output = self.answer(along_batch(scale, z) * z, own, **conditioning)
        x_z, x_o, eps_z, eps_o = self.output.solve(own)
        return Solution(scale * x_z, x_o, scale * eps_z, eps_o).apply(z, output)

    def answer(self, z: Tensor, level: Level, **conditioning: Any) -> Tensor:
        """The network's own answer to z at a level of its schedule."""
        time = self.clock.read(level.logsnr, self.schedule)
        return self.predict(z, time.to(z.device, self.time_dtype(z.dtype)), **conditioning)

    def predict(self, z: Tensor, time: Tensor, **conditioning: Any) -> Tensor:
        """The network's own answer to z at a time of its clock, in z's dtype."""
        dtype = dtype_of(self.network) or z.dtype
        shown = z if z.dtype == dtype else z.to(dtype)
        try:
            answer = self.network(shown, time.expand(z.shape[0]), **conditioning)
        except TypeError as error:
            note_misspelt(error, conditioning)
            raise
        answer = answer if isinstance(answer, Tensor) else answer.sample
        if answer.shape != z.shape:
            raise ValueError(
                f"the network answered {tuple(answer.shape)} to z of shape {tuple(z.shape)}; it "
                f"must predict {self.output.name} with the shape of z"
            )
        return answer if answer.dtype == z.dtype else answer.to(z.dtype)

    def prepare(self, levels: Sequence[Level], like: Tensor) -> list[Call]:
        """The calls at a list of levels, by one vectorised pass in float64."""
        asked = Level(*torch.tensor(levels, dtype=torch.float64).T)
        own = self.schedule.level(asked.logsnr)
        times = self.clock.read(own.logsnr, self.schedule)
        # Of shape (1,): compilers take the numbers in tensors without axes for inputs.
        times = times[:, None].to(like.device, self.time_dtype(like.dtype)).unbind()
        scale = own.scale / asked.scale
        x_z, x_o, eps_z, eps_o = self.output.solve(own)
        one = torch.ones_like(scale)
        parts = (scale, scale * x_z, one * x_o, scale * eps_z, one * eps_o)
        rows = zip(levels, times, *(part.tolist() for part in parts), strict=True)
        return [Call(level, row[0], time, Solution(*row[1:])) for level, time, *row in rows]

    def ask(self, z: Tensor, call: Call, conditioning: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """z as it was given, and the network's answer: its 2 x 2 solve is left to the plan."""
        scaled = z if call.scale == 1.0 else z * call.scale
        return z, self.predict(scaled, call.time, **conditioning)

    def standardise(self, data: Tensor) -> Tensor:
        """`(data - data_mean) / data_std`."""
        return (data - self.data_mean.to(data)) / self.data_std.to(data)

    def unstandardise(self, x: Tensor) -> Tensor:
        """`data_mean + data_std x`."""
        return self.data_mean.to(x) + self.data_std.to(x) * x

    @property
    def device(self) -> torch.device:
        """The device on which the network wants its input."""
        return device_of(self.network)

    def extra_repr(self) -> str:
        """The notation, for print()."""
        low, high = self.schedule.logsnr_min, self.schedule.logsnr_max
        return (
            f"output={self.output.name!r}, schedule={self.schedule}, time={self.clock}, "
            f"logsnr in [{low:.4g}, {high:.4g}]"
        )

    def time_dtype(self, state: torch.dtype) -> torch.dtype:
        """The dtype in which the network is told the time; never bf16, where 0.999 rounds to 1."""
        double = (dtype_of(self.network) or state) == torch.float64
        return torch.float64 if double else torch.float32


class Around(nn.Module, BaseDenoiser):
    """A denoiser around another, with its schedule, device and units of the data."""

    def __init__(self, denoiser: Any) -> None:
        """Whatever has a schedule and is called as `(z, level)`; it need not derive from ours."""
        super().__init__()
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        for name in {"standardise", "unstandardise", "coupling"} & {*dir(denoiser)}:
            setattr(self, name, getattr(denoiser, name))

    def forward(self, z: Tensor, level: Level, **conditioning: Any) -> Estimate:
        """What the denoiser inside estimates."""
        return self.denoiser(z, level, **conditioning)

    @property
    def device(self) -> torch.device:
        """The device on which the denoiser inside wants its input."""
        return device_of(self.denoiser)


def as_denoiser(thing: Any) -> BaseDenoiser:
    """The thing as a `BaseDenoiser`; TypeError, with what to do, for what is no denoiser."""
    if not callable(thing):
        raise TypeError(f"a denoiser is called with (z, level), but got {type(thing).__name__}")
    if not isinstance(getattr(thing, "schedule", None), Schedule):
        raise TypeError(
            f"{type(thing).__name__} does not say what it predicts; wrap the network as "
            "Denoiser(network, output=..., schedule=..., time=...)"
        )
    return thing if isinstance(thing, BaseDenoiser) else Around(thing)
