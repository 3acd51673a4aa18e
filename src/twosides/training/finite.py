"""Nothing that is not finite is kept: no NaN and no infinity gets into a file of a run.

Three nets, of which none makes the host wait for the device in a step:

1. Each step, two numbers are looked at on the device: the largest loss of its micro-batches, and
   the norm of the whole gradient, which is not finite as soon as one element is not. The first
   step at which one was not finite is kept there, in a tensor of two integers (`FirstStep`).
2. It is read where the host waits for the device anyway, at a line of the log, and before anything
   is written; on the CPU, where nobody waits, after every step.
3. Before a checkpoint, a snapshot or the model is written, all of its tensors are looked at
   (`require_finite`): weights, moments and averages. An average that has taken in a weight that is
   not finite stays so, which is why no look at the weights of every step is needed.

The average in memory is thus only ever written, drawn or measured when all steps that it has taken
in are known to be finite. Training ends with the step and the reason; what was written before
stays, and the same command goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from twosides.storage.files import TENSORS, CorruptFolder
from twosides.storage.trees import Rows, load_tree

NEVER = 2**62


class FirstStep:
    """The first step whose loss, and whose gradient, was not finite, kept on the device."""

    def __init__(self, device: torch.device) -> None:
        """No step is bad yet."""
        self.steps = torch.full((2,), NEVER, dtype=torch.int64, device=device)

    def note(self, step: int, losses: Iterable[Tensor], norm: Tensor | None) -> None:
        """Look at one step, without waiting; no `norm` where infinite gradients are in order."""
        loss = torch.stack([loss.detach().float() for loss in losses]).amax()
        norm = torch.zeros_like(loss) if norm is None else local(norm).detach().float()
        bad = ~torch.stack([loss, norm.to(loss.device)]).isfinite()
        self.steps = self.steps.where(~bad | (self.steps < NEVER), step)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor (DTensor), or the tensor itself."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def lowest(values: Tensor) -> Tensor:
    """The lowest of all processes, element by element; all of them ask together."""
    if dist.is_available() and dist.is_initialized():
        on = values if dist.get_backend() == "nccl" else values.cpu()
        dist.all_reduce(on, dist.ReduceOp.MIN)
        return on
    return values


def tensors_of(tree: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dictionaries and lists that can hold NaN, with their places."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for name, value in pairs:
        if isinstance(value, Rows):
            value = value[:]
        if isinstance(value, Tensor) and value.itemsize > 1 and not value.is_meta:
            yield str(name), local(value.detach())
        elif isinstance(value, dict | list | tuple):
            yield from ((f"{name}/{inner}", found) for inner, found in tensors_of(value))


def not_finite(tree: Any, allowed: Iterable[str] = ()) -> list[str]:
    """Where in a tree NaN or infinities are, but for the places that end in an `allowed` name."""
    known = tuple(allowed)
    named = [
        (name, value) for name, value in tensors_of(tree) if not (known and name.endswith(known))
    ]
    if not named:
        return []
    # One number per tensor, and one wait for all of them.
    device = named[0][1].device
    good = torch.stack([value.isfinite().all().to(device) for _, value in named]).tolist()
    return [name for (name, _), fine in zip(named, good, strict=True) if not fine]


def require_finite(
    tree: Any, what: str, allowed: Iterable[str] = (), *, together: bool = True
) -> None:
    """ValueError if `what` would hold NaN or infinities.

    together: all processes ask, and all are refused if one is; False for what one process holds.
    """
    bad = not_finite(tree, allowed)
    device = next((value.device for _, value in tensors_of(tree)), torch.device("cpu"))
    count = torch.tensor([-len(bad)], device=device)
    if int(lowest(count) if together else count):
        where = f", in {bad[0]} first" if bad else " on another process"
        raise ValueError(
            f"{what} is not written: {max(len(bad), 1)} of its tensors are not finite{where}. The "
            "last checkpoint stays, and the same command goes on from it; lower the learning rate, "
            "or look for NaN in the data with `twosides data`"
        )


def require_finite_folder(folder: Path, allowed: Iterable[str] = ()) -> None:
    """CorruptFolder for a checkpoint with numbers that are not finite: none to go on from."""
    if bad := not_finite(load_tree(folder, copy=False), allowed):
        raise CorruptFolder(folder, TENSORS, f"has numbers that are not finite, in {bad[0]} first")


def infinite_on_purpose(module: nn.Module) -> set[str]:
    """What is not trained and has infinities before the first step, as masks of attention have.

    The names are those in the saved model. ValueError for a weight to train that is not finite.
    """
    parts = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    if bad := not_finite({name: value for name, value in parts if value.requires_grad}):
        raise ValueError(f"the weights to train are not finite, {bad[0]} first; load good ones")
    return {name.removeprefix("denoiser.") for name in not_finite(dict(parts))}
