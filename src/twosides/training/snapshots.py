"""Snapshots of weight averages during training, from which `posthoc` makes averages of any width.

    run/snapshots/step-00002000/   average-0.safetensors  average-1.safetensors  snapshot.json

The averages are kept where the weights are: of sharded weights (DTensor) each process averages its
own shards. They are gathered only when a snapshot is written, one tensor at a time.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as lightning
import torch
from torch import nn

from twosides.storage.files import commit_folder
from twosides.storage.reading import CorruptFolder
from twosides.storage.tensors import help_save_tensors, save_tensors, whole
from twosides.training.ema import PowerEMA, first_names
from twosides.training.finite import require_finite
from twosides.training.posthoc import ABOUT, FOLDER, Snapshot, average_file, read_snapshot


class Snapshots(lightning.Callback):
    """The callback that averages the weights and writes the averages.

    It averages the parameters of the LightningModule's `denoiser`, if it has one, else its own. The
    averages and their counters go into the checkpoints: after a kill and a continuation the
    snapshots are bitwise those of an uninterrupted run. A good snapshot that exists is left alone;
    a damaged one is written again, with a warning; one of another run is a ValueError.
    """

    def __init__(
        self, folder: str | Path, every: int, sigma_rels: Sequence[float] = (0.05, 0.10)
    ) -> None:
        """Prepare to write snapshots.

        folder: the folder of the run.
        every: the number of optimizer steps from one snapshot to the next, >= 1; one is written at
            the end, too. 32 to 64 snapshots with the usual widths span widths of 0.05 to 0.2.
        sigma_rels: the relative widths of the averages, different ones in (0, 0.288).
        """
        if every < 1:
            raise ValueError(f"every is a number of steps >= 1, got {every}")
        if len(set(sigma_rels)) < len(sigma_rels) or not sigma_rels:
            raise ValueError(f"different values of sigma_rel are needed, got {sigma_rels}")
        self.root, self.every, self.sigma_rels = Path(folder) / FOLDER, every, tuple(sigma_rels)
        self.averages: list[PowerEMA] = []
        self.names: dict[str, Any] = {}
        self.run, self._seen = "", 0
        self._restored: Mapping[str, Any] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin, or continue from the checkpoint; the weights are on their devices only now."""
        module = _trained_module(pl_module)
        self.averages = [PowerEMA(module, sigma_rel) for sigma_rel in self.sigma_rels]
        self.names = _special_names(module)
        self._seen = trainer.global_step
        if self._restored is not None:
            self._restore(self._restored)
        elif self._seen:
            raise ValueError(
                f"the run continues from step {self._seen}, whose checkpoint has no averages for "
                "snapshots: they need the whole run. Train without them or in another folder"
            )
        else:
            self.run = _fingerprint(module)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in every optimizer step once."""
        if trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        for average in self.averages:
            average.update(_trained_module(pl_module))
        if self.averages[0].steps % self.every == 0:
            self._write(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write a snapshot of the last step, so that profiles can end there."""
        if self.averages[0].steps:
            self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The averages and their counters."""
        return {"run": self.run, "averages": [average.state_dict() for average in self.averages]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the averages and their counters until training starts."""
        self._restored = state_dict

    def _restore(self, state: Mapping[str, Any]) -> None:
        found = [float(average["sigma_rel"]) for average in state["averages"]]
        if found != list(self.sigma_rels):
            raise ValueError(
                f"snapshots are to have sigma_rel {self.sigma_rels}, but the checkpoint has "
                f"{found}; use these, or train in another folder"
            )
        self.run = str(state["run"])
        for average, stored in zip(self.averages, state["averages"], strict=True):
            average.load_state_dict(stored)

    def _write(self, trainer: Any) -> None:
        step = self.averages[0].steps
        folder = self.root / f"step-{step:08d}"
        # Gathering needs all processes, and the first one decides by its disk.
        if trainer.strategy.broadcast(trainer.is_global_zero and self._exists(folder, step)):
            return
        weights = [average.weights for average in self.averages]
        require_finite(weights, f"the snapshot of step {step}")
        if not trainer.is_global_zero:
            return help_save_tensors(weights)
        about = {"format": "twosides snapshot", "version": 1, "step": step, "run": self.run}
        text = json.dumps({**about, "sigma_rels": list(self.sigma_rels), **self.names}, indent=1)

        def write(target: Path) -> None:
            for number, tensors in enumerate(weights):
                save_tensors(target / average_file(number), tensors)
            (target / ABOUT).write_text(text, encoding="utf-8")

        commit_folder(folder, write)

    def _exists(self, folder: Path, step: int) -> bool:
        """Whether this snapshot is on disk and good; ValueError for one of another run."""
        if not folder.exists():
            return False
        try:
            found = read_snapshot(folder)
        except CorruptFolder as error:
            warnings.warn(f"the snapshot is written again: {error}", stacklevel=2)
            return False
        if found != Snapshot(folder, step, self.sigma_rels, self.run):
            raise ValueError(
                f"{folder} is a snapshot of another run; move it away, or train elsewhere"
            )
        return True


def _trained_module(pl_module: Any) -> nn.Module:
    return cast(nn.Module, getattr(pl_module, "denoiser", pl_module))


def _special_names(module: nn.Module) -> dict[str, Any]:
    """The names, for snapshot.json, of parameters that are not stored under their own name."""
    stored = first_names(module)
    named = module.named_parameters(remove_duplicate=False)
    found = {
        "shared": {name: first for name, first in stored.items() if name != first},
        "frozen": [name for name, value in named if not value.requires_grad],
    }
    return {kind: names for kind, names in found.items() if names}


def _fingerprint(module: nn.Module) -> str:
    """A hash of the weights with which a run began, by which it is recognised."""
    digest = hashlib.sha256()
    for name, value in module.named_parameters():
        plain = whole(value.detach()).cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode() + b"\0")
        digest.update(plain.numpy().data)
    return digest.hexdigest()[:16]
