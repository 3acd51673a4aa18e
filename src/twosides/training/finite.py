"""Checks that no NaN and no infinity gets into a file of a run.

There are three, and none makes the host wait for the device in a step:

1. Each step, two numbers are examined on the device: the loss of the step's micro-batches, the
largest without its sign, and the norm of the whole gradient, which is not finite as soon as one
element is not. The first step at which one was not finite is kept there, in a tensor of two
integers (`FirstStep`).
2. This tensor is read where the host waits for the device anyway, at a line of the log, and before
anything is written; on the CPU, where nobody waits, after every step.
3. Before a checkpoint, a snapshot or the model is written, and before the average is drawn or
measured, all of its tensors are checked (`require_finite`): weights, moments and averages. An
average that has taken in a weight that is not finite stays not finite, which is why the weights
need not be checked at every step.

Training ends with a message that names the step and the reason; the files that were written before
stay, and the same command continues from there.
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

NEVER = 2**62  # the step at which something happens that has not happened


class FirstStep:
    """The first step whose loss, and whose gradient, was not finite, kept on the device."""

    def __init__(self, device: torch.device) -> None:
        """Begin with no such step."""
        self.steps = torch.full((2,), NEVER, dtype=torch.int64, device=device)

    def note(self, step: int, losses: Iterable[Tensor], norm: Tensor | None) -> None:
        """Examine one step, without waiting for the device.

        step: its number.
        losses: the losses of its micro-batches.
        norm: the norm of its gradient; None where infinite gradients are expected.
        """
        loss = torch.stack([loss.detach().float() for loss in losses]).abs().amax()
        norm = torch.zeros_like(loss) if norm is None else local(norm).detach().float()
        bad = ~torch.stack([loss, norm.to(loss.device)]).isfinite()
        self.steps = self.steps.where(~bad | (self.steps < NEVER), step)


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor (DTensor) that this process has, or the tensor itself."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


def minimum_of_processes(values: Tensor) -> Tensor:
    """The minimum over all processes, element by element; all of them have to call this."""
    if dist.is_available() and dist.is_initialized():
        on = values if dist.get_backend() == "nccl" else values.cpu()
        dist.all_reduce(on, dist.ReduceOp.MIN)
        return on
    return values


def tensors_of(tree: Any) -> Iterator[tuple[str, Tensor]]:
    """The floating-point tensors of nested dictionaries and lists, with their places."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for name, value in pairs:
        if isinstance(value, Rows):
            value = value[:]
        if isinstance(value, Tensor) and value.itemsize > 1 and not value.is_meta:
            yield str(name), local(value.detach())
        elif isinstance(value, dict | list | tuple):
            yield from ((f"{name}/{inner}", found) for inner, found in tensors_of(value))


def places_not_finite(tree: Any, allowed: Iterable[str] = ()) -> list[str]:
    """The places in a tree with NaN or infinities, but for those that end in an `allowed` name."""
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
    """Refuse to write NaN or infinities, with a ValueError.

    tree: nested dictionaries and lists of tensors.
    what: the name of what would be written, for the message.
    allowed: the ends of the names of tensors that may have infinities.
    together: whether all processes call this, so that all raise if one has to; False for a tree
        that one process alone has.
    """
    bad = places_not_finite(tree, allowed)
    device = next((value.device for _, value in tensors_of(tree)), torch.device("cpu"))
    count = torch.tensor([-len(bad)], device=device)
    if int(minimum_of_processes(count) if together else count):
        where = f", in {bad[0]} first" if bad else " on another process"
        raise ValueError(
            f"{what} is not written: {max(len(bad), 1)} of its tensors are not finite{where}. The "
            "last checkpoint stays, and the same command goes on from it; lower the learning rate, "
            "or look for NaN in the data with `twosides data`"
        )


def require_finite_folder(folder: Path, allowed: Iterable[str] = ()) -> None:
    """CorruptFolder for a checkpoint with numbers that are not finite, which is not continued."""
    if bad := places_not_finite(load_tree(folder, copy=False), allowed):
        raise CorruptFolder(folder, TENSORS, f"has numbers that are not finite, in {bad[0]} first")


def intended_infinities(module: nn.Module) -> set[str]:
    """The names, in the saved model, of tensors that have infinities before the first step.

    They are not trained, as the masks of attention are not. ValueError for a weight to train that
    is not finite.
    """
    parts = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    if bad := places_not_finite({name: value for name, value in parts if value.requires_grad}):
        raise ValueError(f"the weights to train are not finite, {bad[0]} first; load good ones")
    return {name.removeprefix("denoiser.") for name in places_not_finite(dict(parts))}
