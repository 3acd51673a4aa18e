"""Networks that no single device holds: FSDP2 with ordinary checkpoints.

Parameters, gradients, optimizer state and averages are DTensors, a shard on every process; the
whole parameters of a block are gathered when it computes. A checkpoint is gathered too, tensor by
tensor while the first process writes it: it is the same folder that one process would write, and
any number of processes continues from it. That costs the first process the memory of one whole
tensor, and time in proportion to the model rather than to a shard; on loading, every process checks
the folder, and takes its shards from the file without reading all of it into memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from twosides.storage import help_save_tree, load_tree, verify_folder
from twosides.training.ema import shard_like


def shard(module: nn.Module, mesh: Any) -> None:
    """FSDP2 on the children of its ModuleLists, one at a time, then on what remains."""
    from torch.distributed.fsdp import fully_shard

    for block in _blocks(module):
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules that are items of a list."""
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _blocks(child)


class Sharded(ModelParallelStrategy):
    """Lightning's strategy over one data-parallel mesh, with the checkpoints of this package."""

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """As in all other strategies; the module is sharded before."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """By `load_optimizer_state_dict`."""
        return True

    def setup_environment(self) -> None:
        """All processes share the data; none splits single tensors."""
        self._data_parallel_size, self._tensor_parallel_size = (
            self.num_nodes * self.num_processes,
            1,
        )
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Shards under the names that the whole has."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Shards under the numbers that the whole has."""
        return getattr(optimizer, "_optimizer", optimizer).state_dict()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """One process writes, all gather."""
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)
        else:
            help_save_tree(checkpoint)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verified, and mapped rather than read."""
        verify_folder(checkpoint_path)
        return load_tree(Path(checkpoint_path), copy=False)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Each process takes its shards."""
        assert self.lightning_module is not None
        own, found = self.lightning_module.state_dict(), checkpoint["state_dict"]
        parts = {name: _part(value, own.get(name)) for name, value in found.items()}
        self.lightning_module.load_state_dict(parts, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Each process takes its shards of what has the shape of a parameter."""
        for optimizer, found in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            own = [p for group in optimizer.param_groups for p in group["params"]]
            numbers = [number for group in found["param_groups"] for number in group["params"]]
            of = dict(zip(numbers, own, strict=True))
            state = {
                number: {name: _part(value, of[number]) for name, value in values.items()}
                for number, values in found["state"].items()
            }
            optimizer.load_state_dict({**found, "state": state})


def _part(value: Any, like: Tensor | None) -> Any:
    if not isinstance(value, Tensor):
        return value
    if like is None or like.shape != value.shape:
        return value.clone()
    part = shard_like(value, like)
    return part.clone() if part is value else part
