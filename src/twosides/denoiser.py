"""A denoiser: any network, of any output, schedule, input scaling and time convention.

    Denoiser = network + output + schedule + clock        (z, level) -> Estimate(x, eps)

The pair (x, eps) at a log-SNR is the same function whatever notation the network was trained in:

    1. z is rescaled to the network's own (alpha', sigma') at the same logsnr, z' = z c'/c;
    2. the network is told the noise level on its own clock, and answers o;
    3. o = a x + b eps and z' = alpha' x + sigma' eps are solved for (x, eps).

`convert` runs this backwards: the same function as an `nn.Module` of another notation.

    >>> import torch
    >>> from twosides.schedules.schedule import Cosine, FlowMatching
    >>> network = lambda z, t: z * t.reshape(-1, 1)
    >>> denoiser = Denoiser(network, output="v", schedule=Cosine())
    >>> flow = convert(denoiser, output="u", schedule=FlowMatching())
    >>> flow(torch.zeros(2, 3), torch.tensor([0.2, 0.7])).shape
    torch.Size([2, 3])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twosides.clocks import Clock, _clamped, clock_named
from twosides.outputs import Estimate, Output, Solution, output_named
from twosides.schedules import (
    FlowMatching,
    Level,
    Scalar,
    Schedule,
    along_batch,
    schedule_named,
)


class Call(NamedTuple):
    """One prepared network call: everything about its level that does not depend on z."""

    level: Level
    scale: float
    time: Tensor
    solution: Solution


@runtime_checkable
class Denoises(Protocol):
    """Whatever stands where a denoiser does: networks, guidance, exact oracles."""

    schedule: Schedule

    def __call__(self, *args: Any, **conditioning: Any) -> Estimate:
        """`(z, level, **conditioning)`: (x, eps) at a level of any scaling."""
        ...


class Denoiser(nn.Module):
    """A network that predicts `output` on `schedule`, told the level as `time`.

    network(z, time, **conditioning) gets z of shape (B, ...) in the schedule's own scaling, time of
    shape (B,) in float32 (float64 for a float64 state), and answers `output` with z's shape (or an
    object with a `.sample` of that shape, as diffusers' models do). It may have any dtype.

    Everything here is in the network's own units of data: where the data were standardised before
    training, `x = (data - data_mean) / data_std` (numbers, or tensors such as (C, 1, 1)).
    `sample` and the training objective translate.
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
        """Wrap a network; ValueError for unknown names or a data_std that is not positive."""
        super().__init__()
        if isinstance(schedule, type):
            raise TypeError(f"pass an instance, {schedule.__name__}(), not the class")
        self.network = network
        self.schedule = schedule_named(schedule or FlowMatching())
        self.output = output_named(output, self.schedule)
        self.clock = clock_named(time)
        # Not buffers: `.to(bfloat16)` is for the network's weights.
        self.data_mean = torch.as_tensor(data_mean, dtype=torch.float64)
        self.data_std = torch.as_tensor(data_std, dtype=torch.float64)
        if not bool((self.data_std > 0).all()):
            raise ValueError(f"data_std must be positive, got {data_std}")

    def forward(
        self, z: Float[Tensor, " batch *event"], level: Level, **conditioning: Any
    ) -> Estimate:
        """(x, eps) with `z = alpha x + sigma eps`, for a level of any scaling, scalar or (B,)."""
        if not isinstance(level, Level):
            raise TypeError(f"level is a Level, such as schedule.at(0.5), got {level!r}")
        own = self.schedule.level(level.logsnr)
        scale = own.scale / level.scale
        time = self.clock.read(own.logsnr, self.schedule).to(z.device, self.time_dtype(z.dtype))
        output = self.predict(along_batch(scale, z) * z, time, **conditioning)
        x_z, x_o, eps_z, eps_o = self.output.solve(own)
        return Solution(scale * x_z, x_o, scale * eps_z, eps_o).apply(z, output)

    def predict(self, z: Tensor, time: Tensor, **conditioning: Any) -> Tensor:
        """The network's own answer to z in its own scaling, in z's dtype."""
        dtype = self._network_dtype(z.dtype)
        answer = self.network(z.to(dtype), time.expand(z.shape[0]), **conditioning)
        answer = answer if isinstance(answer, Tensor) else answer.sample
        if answer.shape != z.shape:
            raise ValueError(
                f"the network answered {tuple(answer.shape)} to z of shape {tuple(z.shape)}; it "
                f"must predict {self.output.name} with the shape of z"
            )
        return answer.to(z.dtype)

    def prepare(self, levels: Sequence[Level], like: Tensor) -> list[Call]:
        """The calls at a list of levels: one vectorised pass, for a plan's whole grid."""
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

    def standardise(self, data: Tensor) -> Tensor:
        """`(data - data_mean) / data_std`."""
        return (data - self.data_mean.to(data)) / self.data_std.to(data)

    def unstandardise(self, x: Tensor) -> Tensor:
        """`data_mean + data_std x`."""
        return self.data_mean.to(x) + self.data_std.to(x) * x

    def extra_repr(self) -> str:
        """Notation, for print()."""
        low, high = self.schedule.logsnr_min, self.schedule.logsnr_max
        return (
            f"output={self.output.name!r}, schedule={self.schedule}, time={self.clock}, "
            f"logsnr in [{low:.4g}, {high:.4g}]"
        )

    def time_dtype(self, state: torch.dtype) -> torch.dtype:
        """The dtype in which the network is told the time, for a state of this dtype.

        Never bf16: 0.999 rounds to 1 there, and 500 of 1000 indices collide.
        """
        return torch.float64 if self._network_dtype(state) == torch.float64 else torch.float32

    def _network_dtype(self, default: torch.dtype) -> torch.dtype:
        if not isinstance(self.network, nn.Module) or isinstance(self.network, Converted):
            return default
        # Quantised weights say nothing about the dtype of inputs.
        floating = (p.dtype for p in self.network.parameters() if p.is_floating_point())
        return next((dtype for dtype in floating if dtype.itemsize > 1), default)


def describes(denoiser: Any) -> Schedule:
    """The schedule a denoiser samples on by default."""
    if not callable(denoiser):
        raise TypeError(f"a denoiser is called with (z, level), but got {type(denoiser).__name__}")
    schedule = getattr(denoiser, "schedule", None)
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"{type(denoiser).__name__} does not say what it predicts; wrap the network as "
            "Denoiser(network, output=..., schedule=..., time=...)"
        )
    return schedule


class Converted(nn.Module):
    """A denoiser seen as a network of another notation: `network(z, time, **conditioning)`.

    Its state_dict is the wrapped network's; the arithmetic of the conversion is float64 in the
    coefficients and z's dtype in the state.
    """

    def __init__(
        self,
        denoiser: Denoises,
        output: str | Output,
        schedule: Schedule,
        time: str | Clock,
        extend: bool = False,
    ) -> None:
        """See `convert`."""
        super().__init__()
        self.denoiser = denoiser
        self.schedule = schedule
        self.extend = extend
        self.output = output_named(output, schedule)
        self.clock = clock_named(time)

    def forward(
        self, z: Float[Tensor, " batch *event"], time: Scalar, **conditioning: Any
    ) -> Float[Tensor, " batch *event"]:
        """The other notation's output at z (in its scaling) and time (on its clock)."""
        time = torch.as_tensor(time)
        device = torch.device("cpu") if time.device.type == "mps" else time.device
        logsnr = self.clock.logsnr(time.to(device, torch.float64), self.schedule)
        level = self.schedule.level(logsnr)
        if self.extend:
            estimate = _extended(self.denoiser, z, level, **conditioning)
        else:
            estimate = self.denoiser(z, level, **conditioning)
        return self.output.of(estimate.x, estimate.eps, level)


def _extended(denoiser: Denoises, z: Tensor, level: Level, **conditioning: Any) -> Estimate:
    """(x, eps) at any level from what is known at the nearest one; see `convert`."""
    vp, v = FlowMatching().with_scaling("vp"), output_named("v", denoiser.schedule)
    here, known = vp.level(level.logsnr), vp.level(_clamped(level.logsnr, denoiser.schedule))
    shown = along_batch(here.scale / level.scale, z) * z
    estimate = denoiser(shown, known, **conditioning)
    return v.estimate(shown, v.of(estimate.x, estimate.eps, known), here)


def convert(
    denoiser: Denoises,
    output: str | Output = "u",
    schedule: str | Schedule | None = None,
    time: str | Clock = "t",
    *,
    extend: bool = False,
) -> Converted:
    """The same function in another notation: an `nn.Module`, `network(z, time) -> output`.

    `Denoiser(convert(d, output, schedule, time), output, schedule, time)` is d again, to rounding.
    A level outside what the original network covers is an error unless its clock has `clamp=True`,
    or with `extend=True`: the network is then asked at the nearest level that it covers, with z of
    the same variance, and its v there is taken for v at the true level,

        x = alpha z - sigma v,    eps = sigma z + alpha v        (alpha^2 + sigma^2 = 1)

    This joins on continuously and stays finite up to pure noise and pure data, whatever the network
    predicts, and would be exact for normal data of unit variance. (An eps network that is clamped
    and read with the true alpha, x = (z - sigma eps) / alpha, has no limit at pure noise.)
    """
    describes(denoiser)
    return Converted(denoiser, output, schedule_named(schedule or FlowMatching()), time, extend)
