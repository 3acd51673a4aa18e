"""The same denoiser in another notation: `convert` runs a `Denoiser` backwards.

A denoiser estimates (x, eps) at any log-SNR. Of that pair every output follows, `o = a x + b eps`,
in every scaling and on every clock; so a denoiser can be seen as an `nn.Module` that predicts u on
flow matching's schedule, or whatever another program wants to be given.

    >>> import torch
    >>> from twosides.denoiser import Denoiser
    >>> from twosides.schedules import Cosine, FlowMatching
    >>> denoiser = Denoiser(lambda z, t: z * t.reshape(-1, 1), output="v", schedule=Cosine())
    >>> flow = convert(denoiser, output="u", schedule=FlowMatching())
    >>> flow(torch.zeros(2, 3), torch.tensor([0.2, 0.7])).shape
    torch.Size([2, 3])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from twosides.clocks import Clock, _clamped, clock_named
from twosides.denoiser import BaseDenoiser, Denoises, as_denoiser
from twosides.outputs import Estimate, Output, output_named
from twosides.placement import check_floating, device_of
from twosides.schedules import FlowMatching, Level, Scalar, Schedule, along_batch, schedule_named
from twosides.schedules.level import _float64


class Converted(nn.Module):
    """A denoiser seen as a network of another notation: `network(z, time, **conditioning)`.

    Its state_dict is the wrapped network's. The coefficients of the conversion are computed in
    float64, the state keeps z's dtype.
    """

    any_dtype = True  # the denoiser casts for its own network, after the conversion's arithmetic

    def __init__(
        self,
        denoiser: Denoises,
        output: str | Output,
        schedule: Schedule,
        time: str | Clock,
        extend: bool | Sequence[float] = False,
    ) -> None:
        """See `convert`."""
        super().__init__()
        self.denoiser = as_denoiser(denoiser)
        self.coupling = self.denoiser.coupling
        self.schedule = schedule
        self.extend = extend
        self.output = output_named(output, schedule)
        self.clock = clock_named(time)

    def forward(
        self, z: Float[Tensor, " batch *event"], time: Scalar, **conditioning: Any
    ) -> Float[Tensor, " batch *event"]:
        """The other notation's output at z (in its scaling) and time (on its clock)."""
        check_floating(z.dtype, "z")
        logsnr = self.clock.logsnr(_float64(time), self.schedule)
        level = self.schedule.level(logsnr)
        if self.extend:
            ends = (-math.inf, math.inf) if self.extend is True else self.extend
            estimate = _extended(self.denoiser, z, level, ends, **conditioning)
        else:
            estimate = self.denoiser(z, level, **conditioning)
        return self.output.of(estimate.x, estimate.eps, level)

    @property
    def device(self) -> torch.device:
        """The device on which the wrapped network wants its input."""
        return device_of(self.denoiser)


def _extended(
    denoiser: BaseDenoiser, z: Tensor, level: Level, ends: Sequence[float], **conditioning: Any
) -> Estimate:
    """(x, eps) at any level from what is known at the nearest one; see `convert`."""
    vp, v = FlowMatching().with_scaling("vp"), output_named("v", denoiser.schedule)
    logsnr = torch.as_tensor(level.logsnr, dtype=torch.float64)
    known = vp.level(_clamped(logsnr, denoiser.schedule).clamp(*ends))
    here = vp.level(logsnr)
    shown = along_batch(here.scale / level.scale, z) * z
    estimate = denoiser(shown, known, **conditioning)
    return v.estimate(shown, v.of(estimate.x, estimate.eps, known), here)


def convert(
    denoiser: Denoises,
    output: str | Output = "u",
    schedule: str | Schedule | None = None,
    time: str | Clock = "t",
    *,
    extend: bool | Sequence[float] = False,
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
    `extend=(low, high)` also distrusts the network beyond these log-SNRs.
    """
    return Converted(denoiser, output, schedule_named(schedule or FlowMatching()), time, extend)
