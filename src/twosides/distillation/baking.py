"""Baking: a flow map's K steps inside the unchanged network, for programs that know no maps.

On a fixed grid of K steps the second time is a function of the first, so that all it does can be
done by the weights of the embedding of the time. Its last layer is linear: with H (d, K) what that
layer is given at the K times, and D (d', K) what is to be added to its answers there,

    W' = W + D H^+,      so that   W' h_k = W h_k + D_k    at these times, exactly

which changes W by a matrix of rank K. The network is then the flow map on this grid and nothing
anywhere else; its class and its files are those of before.

A scheduler of diffusers that steps evenly in flow matching's time, and ends at 0 after K steps, is
one of K training timesteps. The network is therefore told K t from now on, not 1000 t; the K
embeddings are moved to their new places by the same update.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twosides.clocks import Clock, Index, Time
from twosides.denoiser import Denoiser
from twosides.distillation.flow_map import FlowMap, flow_time
from twosides.distillation.second import SecondTime
from twosides.schedules import FlowMatching, Tabulated


@torch.no_grad()
def baked(
    flow_map: FlowMap,
    logsnrs: Tensor,
    shape: Sequence[int],
    *,
    clock: Clock | None = None,
    **conditioning: Any,
) -> Denoiser:
    """The flow map at the steps of one grid, as a denoiser over the unchanged network.

    flow_map: over a network of diffusers'.
    logsnrs: the grid (K + 1,), from noise to data, float64; K is at most the width of the
        embedding. `grid_of` has those of diffusers' schedulers.
    shape: of one sample; the network is run on zeros of it.
    clock: how the network is told the K times from now on, by default as before.
    conditioning: what the network cannot do without, for one sample, with B = 1.

    TypeError for networks without an embedding that is known to be linear at its end.
    """
    network = flow_map.network
    if not isinstance(network, SecondTime) or not network.copied:
        raise TypeError(
            "only networks of diffusers, whose embedding of the time ends in a linear layer, can "
            "take a second time into their weights; keep this flow map in a twosides folder"
        )
    network, told = copy.deepcopy(network).eval(), clock or flow_map.clock
    inner: Any = network.network
    first = next(inner.parameters())
    z = torch.zeros(1, *shape, device=first.device, dtype=first.dtype)

    def ask(times: Tensor, seconds: Tensor | None) -> Callable[[int], Tensor]:
        here, there = times.float().to(z.device), None if seconds is None else seconds.float()

        def call(k: int) -> Tensor:
            second = None if there is None else there[k : k + 1].to(z.device)
            return network(z, here[k : k + 1], second=second, **conditioning)

        return call

    before, after = (c.read(logsnrs[:-1], flow_map.schedule) for c in (flow_map.clock, told))
    count = len(before)
    wanted = _seen(network, count, ask(before, flow_time(logsnrs[1:])), ends=True)
    given = _seen(network, count, ask(after, None), ends=False)
    modules: Any = dict(inner.named_modules())
    for place in network.places:
        if getattr(modules[place], "post_act", None) is not None:
            raise TypeError(f"{place} does not end in a linear layer, and cannot take more in")
        _solve(modules[place].linear_2, given[place], wanted[place])
        _forget(modules[place], network)
    statistics = {"data_mean": flow_map.data_mean, "data_std": flow_map.data_std}
    made = Denoiser(inner, flow_map.output, flow_map.schedule, told, **statistics)
    made.coupling = f"a flow map of {count} steps"
    return made.eval()


def _seen(
    network: SecondTime, count: int, ask: Callable[[int], Tensor], *, ends: bool
) -> dict[str, Tensor]:
    """What the embeddings of the time make in the calls 0, 1, ... (width, K), by place.

    ends: their answers, or else what their last layers are given.
    """
    modules: Any = dict(network.network.named_modules())
    columns: dict[str, list[Tensor]] = {place: [] for place in network.places}
    call = 0

    def keep(place: str, value: Tensor) -> None:
        if len(columns[place]) == call:  # DiT asks the first of its embeddings twice
            columns[place].append(value[:1].reshape(-1).double())

    hooks: list[Any] = []
    for place in network.places:
        if ends:  # after the second time's own hook, whose addition it sees
            hook = modules[place].register_forward_hook(_after(keep, place))
        else:
            hook = modules[place].linear_2.register_forward_pre_hook(_before(keep, place))
        hooks.append(hook)
    for call in range(count):
        ask(call)
    for hook in hooks:
        hook.remove()
    return {place: torch.stack(values, 1) for place, values in columns.items()}


def _after(keep: Callable[[str, Tensor], None], place: str) -> Callable[..., None]:
    return lambda module, inputs, output: keep(place, output)


def _before(keep: Callable[[str, Tensor], None], place: str) -> Callable[..., None]:
    return lambda module, inputs: keep(place, inputs[0])


def _solve(layer: nn.Linear, given: Tensor, goal: Tensor) -> None:
    """Change the weights so that the layer makes `goal` (d', K) of `given` (d, K), by rank K."""
    weight = layer.weight.double()
    bias = 0.0 if layer.bias is None else layer.bias.double()[:, None]
    missing = goal - (weight @ given + bias)
    layer.weight.copy_(weight + missing @ torch.linalg.pinv(given))


def _forget(module: nn.Module, network: SecondTime) -> None:
    """Take the second time's hooks off a module of a copy."""
    hooks: Any = module._forward_hooks
    for key, hook in list(hooks.items()):
        if getattr(getattr(hook, "func", None), "__self__", None) is network:
            del hooks[key]


def grid_of(flow_map: FlowMap, steps: int) -> tuple[Tensor, Clock]:
    """The log-SNRs (K + 1,) of K steps of diffusers' own scheduler, and the clock that it tells.

    For u on flow matching's schedule told N t that is FlowMatchEulerDiscreteScheduler of K training
    timesteps, which tells K t; for discrete betas told the index DDIMScheduler with trailing
    indices. ValueError for notations that diffusers has no scheduler for.
    """
    schedule, clock = flow_map.schedule, flow_map.clock
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if schedule == FlowMatching() and isinstance(clock, Time) and flow_map.output.name == "u":
        t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return schedule.logsnr(t), Time(float(steps))
    if isinstance(schedule, Tabulated) and isinstance(clock, Index):
        # "trailing" indices, with set_alpha_to_one.
        spaced = torch.arange(schedule.count, 0, -schedule.count / steps, dtype=torch.float64)
        known = clock.logsnr(spaced.round() - 1, schedule)
        return torch.cat([known, known.new_full((1,), torch.inf)]), clock
    raise ValueError(
        f"diffusers has no scheduler of {steps} steps for {flow_map.output.name} on {schedule} "
        f"told {clock}; it has for u on FlowMatching() told '1000t', and for eps, x or v on "
        "discrete betas told 'index'"
    )
