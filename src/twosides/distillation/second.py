"""A second time for any network: exactly the network at the start, a flow map after training.

A flow map is told two levels: where z is, and where its step goes. Networks are told one. This
module adds the other in the place where the first one enters: to the embedding of the time it adds

    gate(copy of the embedding(second)),        gate = a linear layer of zeros

so that the answer does not change by one bit until the gate is trained. Nothing else of the network
is touched, which is what lets `baking` fold the second time into the weights again.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twosides.clocks import Clock, Index, Time
from twosides.storage.models import build_network, describe_network

# How diffusers' networks call the module that embeds the time, and the one that makes its
# sinusoids. The embedders of guidance, sizes and texts have other names.
EMBEDDERS = ("time_embedding", "timestep_embedder", "time_embedder", "time_step_proj")
SINUSOIDS = ("time_proj", "timesteps_proj", "time_step_embed")
# Networks whose sinusoids are not of the time that the denoiser tells: (factor, offset) of it.
UNITS = {
    "QwenImageTransformer2DModel": (1e-3, 0.0),
    "Lumina2Transformer2DModel": (-1e-3, 1.0),
}
PLACES = {"MLP": "enter"}  # of networks without such modules: the layer whose output is added to


class Features(nn.Module):
    """A flow time in [0, 1] as sinusoids of eight octaves, and a hidden layer."""

    def __init__(self, width: int) -> None:
        """width: of the layer."""
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(8) * torch.pi / 2)
        self.layer = nn.Linear(16, width)

    def forward(self, time: Tensor) -> Tensor:
        """(B,) to (B, width)."""
        angles = time[:, None] * self.get_buffer("frequencies")
        waves = torch.cat([angles.sin(), angles.cos()], 1)
        return nn.functional.silu(self.layer(waves.to(self.layer.weight.dtype)))


class SecondTime(nn.Module):
    """A network that may be told a second time: `network(z, time, second=s, **conditioning)`.

    The second time is the flow time `s = sigma / (alpha + sigma)` of a level, of shape (B,), from 0
    at the data to 1 at noise, whatever the network's own clock is. Without it the network answers
    as it always did.

        >>> from twosides.storage.networks import MLP
        >>> network, z, t = MLP(), torch.ones(2, 2), torch.full((2,), 0.7)
        >>> before = network(z, t)
        >>> torch.equal(SecondTime(network)(z, t, second=torch.zeros(2)), before)
        True
    """

    def __init__(
        self,
        network: nn.Module | Mapping[str, Any],
        at: str | None = None,
        units: Sequence[float] = (1.0, 0.0),
    ) -> None:
        """Hook the second time into a network; ValueError where no place for it is known.

        network: the network, which gets hooks, or its description as `storage.models` has it.
        at: the name of the module, as `named_modules` has it, to whose output (B, width, ...) the
            second time is added; by default the modules that embed the time in diffusers' networks.
        units: (factor, offset) that make of the flow time what the network's sinusoids are made of;
            (1000, 0) for most of diffusers'. `units_of` finds it.
        """
        super().__init__()
        self.network = network if isinstance(network, nn.Module) else build_network(dict(network))
        self.at, self.units = at, (float(units[0]), float(units[1]))
        self._second: Tensor | None = None
        found = dict(_embedders(self.network)) if at is None else {}
        if at is None and not found:
            at = PLACES.get(type(self.network).__name__)
            if at is None:
                raise ValueError(
                    f"no place for a second time is known in {type(self.network).__name__}; name "
                    "the module to whose output it is added, the one that embeds the time: "
                    "at='time_mlp' (names are those of network.named_modules())"
                )
        self.places = [at] if at is not None else list(found)
        modules = dict(self.network.named_modules())
        for place in self.places:
            if place not in modules:
                raise ValueError(f"the network has no module called {place!r}")
        self.copied = at is None
        self.embedders, self.gates = nn.ModuleList(), nn.ModuleList()
        with torch.random.fork_rng(devices=[]):  # the initial weights of `Features` are always one
            torch.manual_seed(0)
            for place in self.places:
                width = _width(modules[place], place)
                self.embedders.append(_Embedding(*found[place]) if self.copied else Features(width))
                self.gates.append(_zeros(width, like=next(modules[place].parameters())))
        for number, place in enumerate(self.places):
            modules[place].register_forward_hook(functools.partial(self._add, number))

    @property
    def config(self) -> dict[str, Any]:
        """What builds it again."""
        return {
            "network": describe_network(self.network),
            "at": self.at,
            "units": list(self.units),
        }

    def forward(
        self, z: Tensor, time: Tensor, *, second: Tensor | None = None, **conditioning: Any
    ) -> Tensor:
        """The network's answer, in z's shape."""
        self._second = second
        try:
            answer = self.network(z, time, **conditioning)
        finally:
            self._second = None
        return answer if isinstance(answer, Tensor) else answer.sample

    def added(self, number: int, second: Tensor) -> Tensor:
        """What the second time (B,) adds at a place, (B, width)."""
        factor, offset = self.units if self.copied else (1.0, 0.0)
        return self.gates[number](self.embedders[number](factor * second + offset))

    def _add(self, number: int, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if self._second is None:
            return output
        added = self.added(number, self._second).to(output.dtype)
        return output + added.reshape(added.shape + (1,) * (output.ndim - added.ndim))


class _Embedding(nn.Module):
    """A copy of the embedding of the time of a network of diffusers'; it learns, frozen or not."""

    def __init__(self, sinusoids: nn.Module, embedder: nn.Module) -> None:
        super().__init__()
        self.sinusoids = copy.deepcopy(sinusoids)
        self.embedder = copy.deepcopy(embedder).requires_grad_()

    def forward(self, time: Tensor) -> Tensor:
        weight = next(self.embedder.parameters())
        return self.embedder(self.sinusoids(time).to(weight.dtype))


def _embedders(network: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, nn.Module]]]:
    """(name, (sinusoids, embedder)) of all modules that embed the time."""
    for name, parent in network.named_modules():
        children = dict(parent.named_children())
        made = (children[key] for key in SINUSOIDS if key in children)
        # Wan has a linear layer of one of these names, and tables of embeddings know whole numbers.
        sinusoids = next((m for m in made if not isinstance(m, nn.Linear | nn.Embedding)), None)
        embedder = next((key for key in EMBEDDERS if key in children), None)
        if embedder is None or sinusoids is None or not hasattr(children[embedder], "linear_2"):
            continue
        yield f"{name}.{embedder}".lstrip("."), (sinusoids, children[embedder])


def _width(module: nn.Module, name: str) -> int:
    """The width of a module's output, that of the last linear layer or convolution in it."""
    last = [part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    if not last:
        raise ValueError(f"{name} has no linear layer, so that the width of its output is unknown")
    return last[-1].out_features if isinstance(last[-1], nn.Linear) else last[-1].out_channels


def _zeros(width: int, like: Tensor) -> nn.Linear:
    gate = nn.Linear(width, width, bias=False, dtype=like.dtype, device=like.device)
    nn.init.zeros_(gate.weight)
    return gate


def units_of(network: Any, clock: Clock) -> tuple[float, float]:
    """(factor, offset) of the flow time to what the network's sinusoids are made of.

    clock: how the denoiser tells the network the time; of clocks of the log-SNR, which have no
        value at pure noise, the flow time itself is told.
    """
    scale = 1.0
    if isinstance(clock, Time):
        scale = clock.scale
    elif isinstance(clock, Index):
        scale = float(clock.count)
    inner = next((m for m in network.modules() if type(m).__name__ in UNITS), None)
    if inner is not None:
        factor, offset = UNITS[type(inner).__name__]
        return factor * scale, offset
    configs = (getattr(module, "config", None) for module in network.modules())
    scales = (c["timestep_scale"] for c in configs if isinstance(c, dict) and "timestep_scale" in c)
    return scale * float(next(scales, 1.0)), 0.0
