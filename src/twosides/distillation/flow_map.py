"""Flow maps: denoisers that are told two noise levels, and whose step follows the ODE exactly.

A *level* is the noise level of a state `z = alpha x + sigma eps`. A denoiser is told the level of z
and estimates the pair (x, eps) there. A step of DDIM holds this pair until the next level, which
follows the ODE exactly only if the step is infinitely short. A flow map is also told the level `to`
at which the step ends. It answers with another pair (x', eps'), the one for which a single step of
DDIM, however long, ends where the ODE does [Boffi+ 2024, arxiv.org/abs/2406.07507]:

    z_level = alpha x' + sigma eps',    z_to = alpha_to x' + sigma_to eps'

The pair depends on the two log-SNRs and not on the schedule or its scaling. On flow matching's
schedule eps' - x' is the average velocity of MeanFlow and of shortcut models. At `to = level` the
pair is that of the denoiser, so that a flow map contains the denoiser whose ODE it follows.

Samplers are run as *plans*, tables of numbers with a row for each network call. A plan shows where
each of its steps ends. `ts.sample` therefore runs a flow map with the samplers that there are, of
which only those suit it whose steps are DDIM's, with or without noise added after the step.

A flow map is not to be confused with a consistency model, whose step always ends at the data, nor
with a denoiser after reflow, which is told one level and whose paths are merely straighter.
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
from twosides.schedules.level import _float64

_EXACT = 1e-9  # relative to alpha + sigma: how far the coefficients of a plan may be rounded


class FlowMap(Denoiser):
    """A denoiser over a network that is told two levels, that of z and that where a step ends.

    The network is called as `network(z, time, second=s, **conditioning)`. Here `time` states the
    level of z by the network's own clock, such as 1000 t, and s is the flow time
    `sigma / (alpha + sigma)` of the level where the step ends, in [0, 1] from data to noise; both
    have shape (B,). Everything else, the parameters included, is as in `Denoiser`. Most flow maps
    are made by `from_denoiser`.

    Without a second level the flow map is the denoiser of its ODE. Guidance and `convert` use it
    so; what they make is an ordinary denoiser, which needs as many steps as others.

        >>> import twosides as ts
        >>> from twosides.storage.networks import MLP
        >>> teacher = ts.Denoiser(MLP())
        >>> flow_map = FlowMap.from_denoiser(teacher)
        >>> x = ts.sample(flow_map, (4, 2), steps=2, seed=0)
        >>> torch.equal(x, ts.sample(teacher, (4, 2), steps=2, seed=0))
        True
    """

    stored_as = "FlowMap"  # its name in config.json, a key of `storage.models.DENOISERS`

    @classmethod
    def from_denoiser(cls, teacher: Denoiser, at: str | None = None) -> FlowMap:
        """A flow map that begins as a denoiser: it answers as the teacher until it is trained.

        The weights are copied, and all of the copies are trained, even if the teacher is frozen.

        teacher: the denoiser, over a network of diffusers, of this package, or of one's own. A flow
            map is copied as it is.
        at: for a network of one's own, the name of the module to whose output the second time is
            added (`SecondTime`).

        ValueError if it is not known where the second time enters the network; TypeError for a
        network that is no nn.Module.
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
        """The pair (x', eps') whose DDIM step from `level` to `to` ends where the ODE does.

        z: the state (B, ...) at `level`, in the scaling of `level`.
        level: the level of z, in any scaling, of floats or of tensors (B,).
        to: the level where the step ends, in the same forms. By default it is `level`, which gives
            the estimate (x, eps) of the denoiser.
        conditioning: what else the network is told.
        """
        return super().forward(z, level, to=level if to is None else to, **conditioning)

    def answer(
        self, z: Tensor, level: Level, to: Level | None = None, **conditioning: Any
    ) -> Tensor:
        """The network's own output for z at a level of its schedule, for a step that ends at `to`.

        z: the state (B, ...), in the scaling of the flow map's own schedule.
        level: the level of z on that schedule.
        to: the level where the step ends, by default `level`; only its log-SNR is read.
        conditioning: what else the network is told.
        """
        time = self.clock.read(_tensor(level.logsnr), self.schedule)
        second = flow_time(_tensor((to or level).logsnr))
        times = torch.stack(torch.broadcast_tensors(time, second)).reshape(2, -1)
        return self.predict(z, times.to(z.device, self.time_dtype(z.dtype)), **conditioning)

    def predict(self, z: Tensor, time: Tensor, **conditioning: Any) -> Tensor:
        """The network's own output for z at times that are already on its clock.

        z: the state (B, ...), in the scaling of the flow map's own schedule.
        time: the time on the network's clock and the second time, as the two rows of a tensor
            (2, B) or (2, 1). A tensor (B,) is the time on the clock alone; the step then has no
            length, and the output is that of the denoiser.
        conditioning: what else the network is told.
        """
        if time.ndim < 2:
            logsnr = self.clock.logsnr(_float64(time), self.schedule)
            time = torch.stack([time, flow_time(logsnr).to(time)])
        second = time[1].expand(z.shape[0])
        return super().predict(z, time[0], second=second, **conditioning)

    def calls(self, plan: Plan, like: Tensor) -> list[Call]:
        """The prepared network calls of a plan, each of which is told where its step ends.

        plan: the plan of a sampler whose steps are DDIM's, with or without noise added after each.
        like: a tensor with the dtype and the device of the states to come.

        ValueError for any other plan. Solvers of higher order correct the error of a straight step,
        and the step of a flow map has no such error.
        """
        seconds = flow_time(_tensor([step_end(plan, k) for k in range(plan.nfe)]))
        calls = super().calls(plan, like)
        pairs = zip(calls, seconds[:, None], strict=True)
        return [
            call._replace(time=torch.stack([call.time, second.to(call.time)]))
            for call, second in pairs
        ]


def flow_time(logsnr: Tensor) -> Tensor:
    """The flow time `sigma / (alpha + sigma)` of a log-SNR, from 0 at the data to 1 at noise.

    logsnr: log-SNRs in float64, of any shape; infinite ones are legal.

        >>> flow_time(torch.tensor([0.0, torch.inf], dtype=torch.float64))
        tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    return torch.sigmoid(-0.5 * logsnr)


def step_end(plan: Plan, number: int) -> float:
    """The log-SNR at which the ODE part of a step of a plan ends.

    A step without noise ends at the next level of the plan. A step with noise goes further along
    the ODE than the next level, and the noise then leads back down to that level. If the state
    after it is `z = a x + b eps + noise`, the ODE part ends at the log-SNR `2 log(a / b)`, because
    adding noise scales a and b by the same number.

    plan: the plan.
    number: the number of the network call before the step, from 0.

    ValueError unless (x, eps) of this call alone, with the coefficients of a DDIM step, make the
    next state.

        >>> import twosides as ts
        >>> step_end(ts.plan("consistency", ts.FlowMatching(), 4), 0)
        inf
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
