"""Baking: K steps of a flow map, put into the weights of the network as it was without the map.

A flow map (`flow_map`) is a denoiser that is told two noise levels, that of the state z and that to
which its step goes. The second level enters the network as a second time (`second`), which other
programs do not pass. On a fixed grid of K steps they need not: the second time is then a function
of the first, and the weights of the module that embeds the time can do what the second time does.

The last layer of that module is linear, h -> W h + b. Let the columns of H (d, K) be the inputs of
this layer at the K times, and the columns of D (d', K) what has to be added to its outputs there.
With the pseudo-inverse H^+ of H the new weights are

    W' = W + D H^+,      so that   W' h_k = W h_k + D_k    for each column k

The change of W has at most rank K. The equality is exact, but for rounding, if the columns of H are
linearly independent; that needs K <= d. The baked network is the flow map at the K times of the
grid and means nothing at any other time. Its class and the names in its files are those of the
network before it was made a flow map.

A scheduler of diffusers takes K even steps of flow matching's time, down to 0, if it has K training
timesteps. It then tells the network K t, where the network was trained to be told 1000 t. The same
change of the weights moves the K embeddings to their new times (`grid_of`).
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
    """The flow map at the steps of one grid, as a denoiser over the network without a second time.

    The flow map is left as it is; the denoiser has a copy of the network, in evaluation mode. Its
    `coupling` names the flow map, so that samplers that inject noise refuse it: between the steps
    of the grid it is no denoiser.

    flow_map: a flow map over a network of diffusers.
    logsnrs: the log-SNRs of the grid (K + 1,), rising from noise to data, float64. `grid_of`
        returns those of diffusers' schedulers. K must be at most the width d of the hidden layer
        that embeds the time. This is not checked: for a larger K the denoiser differs from the map.
    shape: the shape of one sample, without the batch. The network is run on zeros of this shape.
    clock: how the network is told the K times from now on; by default by the clock of the flow map.
    conditioning: the conditioning without which the network cannot be called, for one sample, with
        B = 1.

    TypeError for a network whose embedding of the time is not known, or does not end in a linear
    layer.
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
    """The numbers at one end of each module that embeds the time, seen in K calls of the network.

    The result has, by the name of the module, a matrix (width, K) in float64, one column per call.

    network: the network with its second time.
    count: K, the number of calls.
    ask: runs the call k, for k = 0 ... K - 1.
    ends: True for the outputs of the modules, which contain what the second time adds; False for
        the inputs of their last linear layers.
    """
    modules: Any = dict(network.network.named_modules())
    columns: dict[str, list[Tensor]] = {place: [] for place in network.places}
    call = 0

    def keep(place: str, value: Tensor) -> None:
        # DiT runs the first of its embeddings twice in one call; the second value is the same.
        if len(columns[place]) == call:
            columns[place].append(value[:1].reshape(-1).double())

    hooks: list[Any] = []
    for place in network.places:
        if ends:
            # Hooks run in the order of their registration, so this one sees what the hook of the
            # second time has added.
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
    """Change the weights, as little as possible, so that the layer maps `given` to `goal`.

    given: H of the module's docstring, (d, K).
    goal: the outputs that the layer has to give for these inputs, (d', K).

    The arithmetic is in float64; the weights are rounded to their own dtype at the end. ValueError
    if no weights do that: there are more inputs than the layer has, or two of them are the same.
    """
    weight = layer.weight.double()
    bias = 0.0 if layer.bias is None else layer.bias.double()[:, None]
    missing = goal - (weight @ given + bias)
    change = missing @ torch.linalg.pinv(given)
    left = float((missing - change @ given).abs().max())
    if not left <= 1e-6 * float(goal.abs().max()):
        raise ValueError(
            f"{given.shape[1]} steps do not fit into a layer of {len(given)} inputs: the baked "
            "network would be another map; take fewer steps"
        )
    layer.weight.copy_(weight + change)


def _forget(module: nn.Module, network: SecondTime) -> None:
    """Remove the hooks by which a network adds its second time to the output of a module."""
    hooks: Any = module._forward_hooks
    for key, hook in list(hooks.items()):
        if getattr(getattr(hook, "func", None), "__self__", None) is network:
            del hooks[key]


def grid_of(flow_map: FlowMap, steps: int) -> tuple[Tensor, Clock]:
    """The log-SNRs (K + 1,) of K steps of diffusers' own scheduler, and the clock that it tells.

    A *clock* is the rule by which a network is told the noise level, such as 1000 t. Diffusers has
    a scheduler for two kinds of flow maps:

        u on flow matching's schedule, told N t        FlowMatchEulerDiscreteScheduler with K
                                                       training timesteps, which tells K t
        any output on discrete betas, told the index   DDIMScheduler with trailing indices

    flow_map: the flow map, of which only the output, the schedule and the clock are read.
    steps: K, at least 1.

    ValueError for any other output, schedule or clock, and for K below 1. On discrete betas
    diffusers knows the outputs eps, x and v only, which is checked when the pipeline is written.

        >>> import twosides as ts
        >>> from twosides.storage.networks import MLP
        >>> flow_map = FlowMap.from_denoiser(ts.Denoiser(MLP(), time="1000t"))
        >>> grid, clock = grid_of(flow_map, 2)
        >>> len(grid), clock.scale
        (3, 2.0)
    """
    schedule, clock = flow_map.schedule, flow_map.clock
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if schedule == FlowMatching() and isinstance(clock, Time) and flow_map.output.name == "u":
        t = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        return schedule.logsnr(t), Time(float(steps))
    if isinstance(schedule, Tabulated) and isinstance(clock, Index):
        # DDIMScheduler with "trailing" spacing rounds in this way; with set_alpha_to_one its last
        # step ends at zero noise.
        spaced = torch.arange(schedule.count, 0, -schedule.count / steps, dtype=torch.float64)
        if len(spaced) != steps:  # DDIMScheduler rounds as badly
            raise ValueError(
                f"diffusers' DDIMScheduler makes {len(spaced)} timesteps of {steps}, by rounding; "
                "take another number of steps"
            )
        known = clock.logsnr(spaced.round() - 1, schedule)
        return torch.cat([known, known.new_full((1,), torch.inf)]), clock
    raise ValueError(
        f"diffusers has no scheduler of {steps} steps for {flow_map.output.name} on {schedule} "
        f"told {clock}; it has for u on FlowMatching() told '1000t', and for eps, x or v on "
        "discrete betas told 'index'"
    )
