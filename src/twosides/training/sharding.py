"""Networks too large for one device: FSDP2, and checkpoints for any number of processes.

Parameters, gradients, optimizer state and averages are DTensors, with a shard on every process; the
whole parameters of a block are gathered when it computes. Every process writes its own shards of a
checkpoint and their checksum, into one folder that appears when all are done, so that saving takes
the time of the largest shard. On loading every process checks the folder and reads its own rows,
whatever number of processes has written them.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch import distributed as dist

from twosides.storage.files import Records, commit_folder, verify_folder
from twosides.storage.trees import Rows, load_tree, save_tree
from twosides.training.ema import shard_like


def shard(module: nn.Module, mesh: Any) -> None:
    """Apply FSDP2 to the children of the module's ModuleLists, one at a time, then to the rest."""
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
        """False, as in all other strategies: the module is sharded before."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: Lightning calls `load_optimizer_state_dict`."""
        return True

    def setup_environment(self) -> None:
        """Share the data between all processes, and split no single tensor."""
        self._data_parallel_size, self._tensor_parallel_size = (
            self.num_nodes * self.num_processes,
            1,
        )
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The shards, under the names that the whole tensors have."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The shards, under the numbers that the whole tensors have."""
        return getattr(optimizer, "_optimizer", optimizer).state_dict()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Write on all processes, and commit on the first; OSError on all if one has failed."""
        if self.is_global_zero:
            commit_folder(filepath, lambda folder: self._write(checkpoint, folder))
        else:
            self._write(checkpoint)

    def _write(self, checkpoint: dict[str, Any], folder: Path | None = None) -> Records:
        """Write this process's part into the first one's folder; return the records of all."""
        target = self.broadcast(folder)
        assert target is not None
        try:
            if not target.is_dir():
                raise FileNotFoundError(f"{target} is on one machine only; choose a shared folder")
            own = save_tree(target, checkpoint, self.global_rank)
        except Exception as error:  # the other processes wait for this one's answer
            self._gather(error)
            raise
        return {name: record for part in self._gather(own) for name, record in part.items()}

    def _gather(self, own: Records | Exception) -> list[Records]:
        """The records of all processes; OSError if one of them has failed."""
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, own)
        failed = [f"process {i}: {e}" for i, e in enumerate(everyone) if isinstance(e, Exception)]
        if failed and not isinstance(own, Exception):
            raise OSError(errno.EIO, "; ".join(failed))
        return everyone

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verify the folder, and map its tensors into memory instead of reading them."""
        verify_folder(checkpoint_path)
        return load_tree(Path(checkpoint_path), copy=False)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load this process's shards of the weights."""
        assert self.lightning_module is not None
        own, found = self.lightning_module.state_dict(), checkpoint["state_dict"]
        parts = {name: _part(value, own.get(name)) for name, value in found.items()}
        self.lightning_module.load_state_dict(parts, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's shards of the state that has the shape of a parameter."""
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
    """This process's part of a value of a checkpoint, if it has the shape of `like`."""
    if not isinstance(value, Tensor | Rows):
        return value
    if like is None or like.shape != value.shape:
        return value[:] if isinstance(value, Rows) else value.clone()
    part = shard_like(value, like)
    return part.clone() if part is value else part
