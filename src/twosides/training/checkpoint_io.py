"""Lightning checkpoints as verified folders without pickle.

`TreeCheckpointIO` makes every checkpoint of a Trainer a folder of safetensors and JSON, committed
as a whole; `SaveCheckpoints` writes one every n optimizer steps and prunes older ones:

    checkpoints = Checkpoints("run/checkpoints")
    trainer = Trainer(
        plugins=[TreeCheckpointIO()], callbacks=[SaveCheckpoints(checkpoints, every=1000)]
    )
    trainer.fit(model, data, ckpt_path=checkpoints.newest_folder())
"""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO

from twosides.storage.checkpoints import Checkpoints
from twosides.storage.files import commit_folder, remove_folder, verify_folder
from twosides.storage.reading import Tree
from twosides.storage.trees import load_tree, save_tree


class TreeCheckpointIO(CheckpointIO):
    """Lightning's reader and writer of checkpoints, as committed folders: `Trainer(plugins=[...])`.

    Whatever the Trainer is told to load is verified first. Only trees, which are nested
    dictionaries and lists of tensors and JSON values, can be stored: an object among the
    hyperparameters or in the state of a callback is a TypeError that names it.
    `LightningModule.load_from_checkpoint` bypasses this class; load the weights on their own with
    `model.load_state_dict(load_tree(folder)["state_dict"])`.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Tree = None
    ) -> None:
        """Commit the checkpoint as the folder `path`."""
        if storage_options is not None:
            raise TypeError(
                f"storage_options is {storage_options!r}, but checkpoints are local folders; pass "
                "None"
            )
        commit_folder(path, lambda folder: save_tree(folder, checkpoint))

    def load_checkpoint(
        self, path: str | Path, map_location: Tree = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verify and read a folder; `weights_only` changes nothing, because no code is ever run."""
        verify_folder(path)
        return load_tree(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove the folder, if it is there."""
        if Path(path).is_dir():
            remove_folder(path)


class SaveCheckpoints(Checkpoint):
    """The callback that saves the Trainer's whole state and removes older checkpoints.

    It saves every so many optimizer steps and at the end. It replaces ModelCheckpoint and like it
    runs after all other callbacks, so that what they change at the end of a step is stored. Changes
    that a LightningModule makes in its own `on_train_batch_end` are not stored, because Lightning
    calls that method later.
    """

    def __init__(self, checkpoints: Checkpoints, *, every: int) -> None:
        """Prepare to save.

        checkpoints: where to save, and how many to keep.
        every: the number of optimizer steps from one checkpoint to the next, >= 1.
        """
        if every < 1:
            raise ValueError(f"every is a number of steps >= 1, got {every}")
        self.checkpoints, self.every, self._last = checkpoints, every, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not write again the checkpoint from which a run has been resumed."""
        self._last = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tree,
        batch: Tree,
        batch_idx: int,
    ) -> None:
        """Save after an optimizer step, but not again after the micro-batches of the next one.

        The last step is saved, too: that of `max_steps`, or the one after which training stops.
        """
        step = trainer.global_step
        last = trainer.should_stop or step == trainer.max_steps
        if step == self._last or (step % self.every and not last):
            return
        if not isinstance(trainer.strategy.checkpoint_io, TreeCheckpointIO):
            raise ValueError("SaveCheckpoints needs Trainer(plugins=[TreeCheckpointIO()])")
        self._last = step
        trainer.save_checkpoint(self.checkpoints.folder(step))
        if trainer.is_global_zero:
            self.checkpoints.prune(step)
