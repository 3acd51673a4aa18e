"""Flow maps: denoisers that are told two levels, and whose step is the ODE's, of any length.

A denoiser estimates the pair (x, eps) at the level of z, which is right for an infinitely short
step. A flow map is told where the step goes as well, and answers with the pair of bars for which
one step of DDIM arrives where the ODE does [Boffi+ 2024, arxiv.org/abs/2406.07507]:

    z_level = alpha x' + sigma eps',    z_to = alpha_to x' + sigma_to eps'

The pair is the same on every schedule, and at `to = level` it is the denoiser's. A plan, the table
of numbers that a run follows, says where each of its steps goes; so `ts.sample` needs no other
samplers for flow maps, only those whose steps are DDIM's.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from twosides.denoiser import Call, Denoiser
from twosides.distillation.second import SecondTime, units_of
from twosides.outputs import Estimate
from twosides.sampling.plan import Plan
from twosides.schedules import Level

_EXACT = 1e-9  # how far coefficients of plans may be rounded


class FlowMap(Denoiser):
    """A network that is told two levels, called as `network(z, time, second=s, **conditioning)`.

    time is that of z on the network's clock, and s the flow time `sigma / (alpha + sigma)` of the
    level to go to, both of shape (B,). All else is as in `Denoiser`, which it is at `to = level`;
    guidance and `convert` make of it the denoiser of its ODE, which needs more steps.

        >>> import twosides as ts
        >>> from twosides.storage.networks import MLP
        >>> teacher = ts.Denoiser(MLP())
        >>> flow_map = FlowMap.from_denoiser(teacher)
        >>> x = ts.sample(flow_map, (4, 2), steps=2, seed=0)
        >>> torch.equal(x, ts.sample(teacher, (4, 2), steps=2, seed=0))
        True
    """

    stored_as = "FlowMap"  # `storage.models.DENOISERS`

    @classmethod
    def from_denoiser(cls, teacher: Denoiser, at: str | None = None) -> FlowMap:
        """A flow map that answers exactly as the teacher until it is trained; weights are copied.

        teacher: a denoiser over a network of diffusers', of this package, or of one's own.
        at: for a network of one's own, the name of the module to whose output the second time is
            added, see `SecondTime`.

        ValueError where no place for the second time is known.
        """
        if isinstance(teacher, cls):
            return copy.deepcopy(teacher)
        network: Any = copy.deepcopy(teacher.network)
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"a second time is added to an nn.Module, not to a {type(network).__name__}"
            )
        network = SecondTime(network.requires_grad_(), at, units_of(network, teacher.clock))
        statistics = {"data_mean": teacher.data_mean, "data_std": teacher.data_std}
        made = cls(network, teacher.output, teacher.schedule, teacher.clock, **statistics)
        made.coupling = teacher.coupling
        return made.train(teacher.training)

    def forward(
        self, z: Tensor, level: Level, to: Level | None = None, **conditioning: Any
    ) -> Estimate:
        """The pair whose DDIM step from `level` to `to` is the map; by default the denoiser's.

        z: (B, ...), at `level`, in the scaling of that.
        level, to: levels of any scaling, of floats or of tensors (B,).
        """
        return super().forward(z, level, to=level if to is None else to, **conditioning)

    def answer(
        self, z: Tensor, level: Level, to: Level | None = None, **conditioning: Any
    ) -> Tensor:
        """The network's own answer to z at a level of its schedule, for a step to another."""
        time = self.clock.read(_tensor(level.logsnr), self.schedule)
        second = flow_time(_tensor((to or level).logsnr))
        times = torch.stack(torch.broadcast_tensors(time, second)).reshape(2, -1)
        return self.predict(z, times.to(z.device, self.time_dtype(z.dtype)), **conditioning)

    def predict(self, z: Tensor, time: Tensor, **conditioning: Any) -> Tensor:
        """The network's own answer.

        time: (2, B) or (2, 1), the time on the network's clock and the second time; or (B,), the
            former alone, for a step of no length.
        """
        if time.ndim < 2:
            logsnr = self.clock.logsnr(time.double(), self.schedule)
            time = torch.stack([time, flow_time(logsnr).to(time)])
        second = time[1].expand(z.shape[0])
        return super().predict(z, time[0], second=second, **conditioning)

    def calls(self, plan: Plan, like: Tensor) -> list[Call]:
        """The calls of a plan, each told where its step goes.

        ValueError for plans with other steps than DDIM's, with or without noise after it: solvers
        of higher order mend the error of a straight step, which a map does not make.
        """
        seconds = flow_time(_tensor([step_end(plan, k) for k in range(plan.nfe)]))
        calls = super().calls(plan, like)
        pairs = zip(calls, seconds[:, None], strict=True)
        return [
            call._replace(time=torch.stack([call.time, second.to(call.time)]))
            for call, second in pairs
        ]


def flow_time(logsnr: Tensor) -> Tensor:
    """`sigma / (alpha + sigma)`, from 0 at the data to 1 at noise; float64."""
    return torch.sigmoid(-0.5 * logsnr)


def step_end(plan: Plan, number: int) -> float:
    """The log-SNR to which the step after a call of a plan goes along the ODE.

    Where noise is injected that is the overshoot, from which noise leads down to the next level: of
    `z = a x + b eps + noise` it is `2 log(a / b)`. ValueError unless a and b are those of a DDIM
    step from this call alone.
    """
    row, level = plan.rows[number + 1], plan.levels[number + 1]
    a, b = row.get(("x", number), 0.0), row.get(("eps", number), 0.0)
    noises = [value for (kind, k), value in row.items() if kind == "noise" and k]
    kept = {("x", number), ("eps", number)}
    others = [
        value for key, value in row.items() if key not in kept and (key[0] != "noise" or not key[1])
    ]
    near = _EXACT * (level.alpha + level.sigma)
    spread = math.hypot(b, *noises)
    if (
        any(abs(value) > near for value in others)
        or abs(a - level.alpha) > near
        or b < -near
        or abs(spread - level.sigma) > near
    ):
        raise ValueError(
            f"{plan.name} does not step from call {number + 1} as DDIM does. A flow map answers "
            "with the pair whose DDIM step is exact: there is no error that earlier or further "
            "calls could mend. Sample it with ddim or flow-euler, or with consistency, ddpm or "
            "churn, which add noise after such a step; for more calls take more steps"
        )
    if not noises:
        return level.logsnr
    return math.inf if b <= 0 else 2 * math.log(a / b) if a > 0 else -math.inf


def _tensor(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)
