"""A second time for any network, which changes no answer until it is trained.

A flow map (`flow_map`) is a denoiser that is told two noise levels, that of the state z and that
where its step ends. Networks are told one level, by a time. This module tells a network the other
level by a second time, which enters where the first one does. To the output of the module that
embeds the time it adds

    gate(copy of the embedding(second)),        gate = a linear layer, zero at the start

As the gate is zero, the network answers as before, to the last bit, until the gate is trained. All
else in the network stays as it is. This is why the second time can be put into the weights of the
embedding again, which `baking` does for programs that pass one time only.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twosides.clocks import Clock, Index, Time
from twosides.placement import dtype_of
from twosides.storage.models import build_network, describe_network

# The names that the networks of diffusers have for the module that embeds the time, and for the one
# that makes its sinusoids. The embedders of guidance, sizes and texts have other names.
EMBEDDERS = ("time_embedding", "timestep_embedder", "time_embedder", "time_step_proj")
SINUSOIDS = ("time_proj", "timesteps_proj", "time_step_embed")
# Networks that make their sinusoids not of the time that the denoiser tells, but of factor times
# that time plus offset: (factor, offset). Qwen and AuraFlow are told t / 1000, and Lumina2
# 1 - t / 1000.
UNITS = {
    "QwenImageTransformer2DModel": (1e-3, 0.0),
    "AuraFlowTransformer2DModel": (1e-3, 0.0),
    "Lumina2Transformer2DModel": (-1e-3, 1.0),
}
# For networks without such modules: the layer to whose output the second time is added.
PLACES = {"MLP": "enter"}


class Features(nn.Module):
    """An embedding of a flow time in [0, 1]: sinusoids of eight octaves, and one hidden layer.

    It embeds the second time of networks whose own embedding of the time is not known.
    """

    def __init__(self, width: int) -> None:
        """Make the layer.

        width: the number of features.
        """
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(8) * torch.pi / 2)
        self.layer = nn.Linear(16, width)

    def forward(self, time: Tensor) -> Tensor:
        """The features (B, width) of flow times (B,)."""
        angles = time[:, None] * self.get_buffer("frequencies")
        waves = torch.cat([angles.sin(), angles.cos()], 1)
        return nn.functional.silu(self.layer(waves.to(self.layer.weight.dtype)))


class SecondTime(nn.Module):
    """A network that may be told a second time: `network(z, time, second=s, **conditioning)`.

    The second time is the flow time `s = sigma / (alpha + sigma)` of a level, from 0 at the data to
    1 at noise, of shape (B,). It is so whatever the network's own *clock* is, the rule by which the
    first time states a level, such as 1000 t. Without a second time the network answers as it did
    before it was wrapped.

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
        """Hook the second time into a network.

        network: the network itself, which is not copied and gets hooks; or its description, as
            `storage.models` writes it.
        at: the name, as in `named_modules`, of the module to whose output (B, width, ...) the
            second time is added. By default these are the modules that embed the time in networks
            of diffusers, of which the embedding of the second time is a copy. With a name the
            embedding is a `Features`.
        units: (factor, offset): the sinusoids of a copied embedding are made of factor s + offset.
            `units_of` finds the numbers that fit the network's own time; they are (1000, 0) for
            most networks of diffusers. Other embeddings are told s.

        ValueError if no place for the second time is known, and for a name that the network has
        not.
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
        # With a seed of its own the initial weights of `Features` are the same in every process,
        # and the caller's random numbers are left alone.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for place in self.places:
                width, like = _width(modules[place], place), next(modules[place].parameters())
                features = None if self.copied else Features(width).to(like.device)
                self.embedders.append(features or _Embedding(*found[place]))
                self.gates.append(_zeros(width, like))
        for number, place in enumerate(self.places):
            modules[place].register_forward_hook(functools.partial(self._add, number))

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that build this network again, as JSON values."""
        return {
            "network": describe_network(self.network),
            "at": self.at,
            "units": list(self.units),
        }

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype in which the network inside wants its input."""
        return dtype_of(self.network)

    def forward(
        self, z: Tensor, time: Tensor, *, second: Tensor | None = None, **conditioning: Any
    ) -> Tensor:
        """The network's answer, in the shape of z.

        z: the state (B, ...).
        time: the time of z on the network's clock (B,).
        second: the flow time of the other level (B,); None for the network as it was.
        conditioning: what else the network is told.
        """
        self._second = second  # for the hooks, which see the inputs of their own modules only
        try:
            answer = self.network(z, time, **conditioning)
        finally:
            self._second = None
        return answer if isinstance(answer, Tensor) else answer.sample

    def added(self, number: int, second: Tensor) -> Tensor:
        """The vector (B, width) that the second time adds to the output of one module.

        number: the number of the module in `places`.
        second: the flow time (B,).
        """
        factor, offset = self.units if self.copied else (1.0, 0.0)
        gate = self.gates[number]
        return gate(self.embedders[number](factor * second + offset).to(gate.weight.dtype))

    def _add(self, number: int, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if self._second is None:
            return output
        added = self.added(number, self._second).to(output.dtype)
        return output + added.reshape(added.shape + (1,) * (output.ndim - added.ndim))


class _Embedding(nn.Module):
    """A copy of the embedding of the time in a network of diffusers.

    The copy is trained, even if the network is frozen; sinusoids have nothing to train.
    """

    def __init__(self, sinusoids: nn.Module, embedder: nn.Module) -> None:
        super().__init__()
        self.sinusoids = copy.deepcopy(sinusoids)
        self.embedder = copy.deepcopy(embedder).requires_grad_()

    def forward(self, time: Tensor) -> Tensor:
        weight = next(self.embedder.parameters())
        return self.embedder(self.sinusoids(time).to(weight.dtype))


def _embedders(network: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, nn.Module]]]:
    """The modules of a network that embed the time: (name, (sinusoids, embedder)) of each."""
    for name, parent in network.named_modules():
        children = dict(parent.named_children())
        made = (children[key] for key in SINUSOIDS if key in children)
        # A linear layer of Wan has one of these names, too. A table of embeddings knows whole
        # numbers only, and a flow time is none; Gaussian features take a logarithm, and 0 has none.
        sinusoids = next((m for m in made if not isinstance(m, nn.Linear | nn.Embedding)), None)
        if type(sinusoids).__name__ == "GaussianFourierProjection":
            continue
        embedder = next((key for key in EMBEDDERS if key in children), None)
        if embedder is None or sinusoids is None or not hasattr(children[embedder], "linear_2"):
            continue
        yield f"{name}.{embedder}".lstrip("."), (sinusoids, children[embedder])


def _width(module: nn.Module, name: str) -> int:
    """The width of a module's output, taken from the last linear layer or convolution in it.

    ValueError for a module that has neither.
    """
    last = [part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    if not last:
        raise ValueError(f"{name} has no linear layer, so that the width of its output is unknown")
    return last[-1].out_features if isinstance(last[-1], nn.Linear) else last[-1].out_channels


def _zeros(width: int, like: Tensor) -> nn.Linear:
    """A linear layer of zeros without bias, with the dtype and on the device of `like`."""
    gate = nn.Linear(width, width, bias=False, dtype=like.dtype, device=like.device)
    nn.init.zeros_(gate.weight)
    return gate


def units_of(network: Any, clock: Clock) -> tuple[float, float]:
    """The numbers (factor, offset) that bring the second time into the units of the first.

    The sinusoids of the first time are made of a number in some range, such as 0 ... 1000. Those of
    the second time are made of factor s + offset, so that they have the same range.

    network: the network, an nn.Module.
    clock: how the denoiser tells the network the first time. Clocks of the log-SNR have no value at
        pure noise, so that for them the flow time s itself is told.

        >>> from twosides.storage.networks import MLP
        >>> units_of(MLP(), Time(1000.0))
        (1000.0, 0.0)
        >>> units_of(MLP(), Time(1.0, reversed=True))  # the network is told 1 - t
        (-1.0, 1.0)
    """
    scale, start = 1.0, 0.0  # the second time is told as scale s + start
    if isinstance(clock, Time):
        scale, start = (-clock.scale, clock.scale) if clock.reversed else (clock.scale, 0.0)
    elif isinstance(clock, Index):
        scale = float(clock.count)
    inner = next((m for m in network.modules() if type(m).__name__ in UNITS), None)
    if inner is not None:
        factor, offset = UNITS[type(inner).__name__]
        return factor * scale, factor * start + offset
    configs = (getattr(module, "config", None) for module in network.modules())
    scales = (c["timestep_scale"] for c in configs if isinstance(c, dict) and "timestep_scale" in c)
    factor = float(next(scales, 1.0))
    return factor * scale, factor * start
