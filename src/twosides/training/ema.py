"""Power-function averages of weights [Karras+ 2024, EDM2, section 3.1].

The average at step t weighs the weights of step s by s^gamma, which is the recursion

    ema <- ema + (1 - beta_t) (weights - ema),    beta_t = (1 - 1/t)^(gamma + 1)

gamma follows from the relative width sigma_rel of this profile (0.05 is about the last 10 % of
training):

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from twosides.storage.tensors import whole
from twosides.storage.trees import Rows


def gamma_of(sigma_rel: float) -> float:
    """The exponent gamma of a profile of relative width sigma_rel, in (0, 0.288).

    It is the largest root of gamma^3 + 7 gamma^2 + (16 - s) gamma + 12 - s, with s = sigma_rel^-2.

    >>> round(gamma_of(0.10), 3)
    6.937
    """
    if not 0 < sigma_rel < 0.288:
        raise ValueError(f"sigma_rel is in (0, 0.288), 0.05 to 0.15 is usual; got {sigma_rel}")
    inverse = sigma_rel**-2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def first_names(module: nn.Module) -> dict[str, str]:
    """The first name of each parameter, by every name that it has.

    A parameter that is shared, as tied embeddings and `ModuleList([block] * 4)` are, has several
    names: `state_dict` lists them all, and `named_parameters` the first alone.
    """
    first: dict[int, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    return {name: first.setdefault(id(value), name) for name, value in named}


class PowerEMA:
    """One averaged copy of a module's trained parameters, in float32 or wider.

    A shared parameter is averaged once, under the first of its names (`first_names`). Of sharded
    parameters (DTensors) each process averages its own shard, without communication.
    """

    def __init__(self, module: nn.Module, sigma_rel: float = 0.1) -> None:
        """Begin with a copy of the weights, which the first update replaces.

        module: the module whose trained parameters are averaged.
        sigma_rel: the relative width of the average, in (0, 0.288).
        """
        self.sigma_rel, self.exponent, self.steps = sigma_rel, gamma_of(sigma_rel) + 1, 0
        self.weights = {
            name: value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=True)
            for name, value in module.named_parameters()
            if value.requires_grad
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the weights after one more step."""
        self.steps += 1
        take = 1 - (1 - 1 / self.steps) ** self.exponent
        values: dict[str, Tensor] = dict(module.named_parameters())
        for name, average in self.weights.items():
            average.lerp_(values[name].detach().to(average.device, average.dtype), take)

    def state_dict(self) -> dict[str, object]:
        """The average, its width and its counter."""
        return {"sigma_rel": self.sigma_rel, "steps": self.steps, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore; ValueError if it is another profile or another network's."""
        weights = state["weights"]
        assert isinstance(weights, dict)
        if state["sigma_rel"] != self.sigma_rel or weights.keys() != self.weights.keys():
            raise ValueError(
                f"the stored average (sigma_rel {state['sigma_rel']}, {len(weights)} tensors) "
                f"is not this run's (sigma_rel {self.sigma_rel}, {len(self.weights)} tensors)"
            )
        self.steps = int(str(state["steps"]))
        for name, value in weights.items():
            self.weights[name].copy_(shard_like(value, self.weights[name]))

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Overwrite the module's parameters by the average.

        If the module is sharded, all processes have to call this.
        """
        targets: dict[str, Tensor] = dict(module.named_parameters())
        for name, value in self.weights.items():
            target = targets[name]
            target.copy_(value if type(target) is type(value) else whole(value))

    @contextmanager
    def substitute(self, module: nn.Module) -> Generator[None, None, None]:
        """Put the average in the place of the module's parameters, which come back bit for bit."""
        targets: dict[str, Tensor] = dict(module.named_parameters())
        kept = {name: targets[name].detach().clone() for name in self.weights}
        try:
            self.copy_to(module)
            yield
        finally:
            free_gathered(module)
            with torch.no_grad():
                for name, value in kept.items():
                    targets[name].copy_(value)


def free_gathered(module: nn.Module) -> None:
    """Free the weights that FSDP2 keeps gathered after a pass without gradients.

    The next pass would use them, even if the shards have changed.
    """
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def shard_like(value: Tensor | Rows, like: Tensor) -> Tensor:
    """This process's rows of a whole tensor, if `like` is sharded; else the whole tensor."""
    from torch.distributed.tensor import DTensor

    if isinstance(value, DTensor):
        return value
    if not isinstance(like, DTensor):
        return value[:] if isinstance(value, Rows) else value
    mesh, count = like.device_mesh, like.shape[0]
    share = -(-count // mesh.size())  # as torch.chunk: the last ones may get less, or nothing
    start = min(share * mesh.get_local_rank(), count)
    local = value[start : min(start + share, count)].to(like.device, copy=True).contiguous()
    stride = torch.empty(like.shape, device="meta").stride()
    # A process cannot infer the whole tensor's shape from its own rows, so it is passed.
    return DTensor.from_local(
        local, mesh, like.placements, run_check=False, shape=like.shape, stride=stride
    )
