"""Snapshots of weight averages during training, from which `posthoc` makes averages of any width.

    run/snapshots/step-00002000/   average-0.safetensors  average-1.safetensors  snapshot.json

Averages stay where the weights are: of sharded weights (DTensor) each process averages its shards.
They are gathered only when a snapshot is written, one tensor at a time.
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
    """Two or more averages of the weights, written every `every` optimizer steps and at the end.

    What is averaged are the parameters of the LightningModule's `denoiser`, if it has one, else its
    own. The averages and their counters go into the checkpoints: after a kill and a continuation
    the snapshots are bitwise those of an uninterrupted run. A good snapshot that is there is left
    alone; a damaged one is written again, with a warning; one of another run is a ValueError.
    """

    def __init__(
        self, folder: str | Path, every: int, sigma_rels: Sequence[float] = (0.05, 0.10)
    ) -> None:
        """`folder` is the run's; 32 to 64 snapshots with the usual widths span 0.05 to 0.2."""
        if every < 1:
            raise ValueError(f"every={every} was asked; write snapshots every 1 step or more")
        if len(set(sigma_rels)) < len(sigma_rels) or not sigma_rels:
            raise ValueError(f"different values of sigma_rel are needed, got {sigma_rels}")
        self.root, self.every, self.sigma_rels = Path(folder) / FOLDER, every, tuple(sigma_rels)
        self.averages: list[PowerEMA] = []
        self.names: dict[str, Any] = {}
        self.run, self._seen = "", 0
        self._restored: Mapping[str, Any] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin, or go on from the checkpoint; only now the weights are where they are trained."""
        module = _averaged(pl_module)
        self.averages = [PowerEMA(module, sigma_rel) for sigma_rel in self.sigma_rels]
        self.names = _special_names(module)
        self._seen = trainer.global_step
        if self._restored is not None:
            self._restore(self._restored)
        elif self._seen:
            raise ValueError(
                f"the run goes on from step {self._seen}, whose checkpoint has no averages for "
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
            average.update(_averaged(pl_module))
        if self.averages[0].steps % self.every == 0:
            self._write(trainer)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The last step has a snapshot, so that profiles can end there."""
        if self.averages[0].steps:
            self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Averages and counters."""
        return {"run": self.run, "averages": [average.state_dict() for average in self.averages]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts."""
        self._restored = state_dict

    def _restore(self, state: Mapping[str, Any]) -> None:
        found = [float(average["sigma_rel"]) for average in state["averages"]]
        if found != list(self.sigma_rels):
            raise ValueError(
                f"snapshots of sigma_rel {self.sigma_rels} were asked, but the checkpoint has "
                f"{found}; ask for these, or train in another folder"
            )
        self.run = str(state["run"])
        for average, stored in zip(self.averages, state["averages"], strict=True):
            average.load_state_dict(stored)

    def _write(self, trainer: Any) -> None:
        step = self.averages[0].steps
        folder = self.root / f"step-{step:08d}"
        # Gathering needs all processes, and only the first one's disk counts.
        if trainer.strategy.broadcast(trainer.is_global_zero and self._there(folder, step)):
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

    def _there(self, folder: Path, step: int) -> bool:
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


def _averaged(pl_module: Any) -> nn.Module:
    return cast(nn.Module, getattr(pl_module, "denoiser", pl_module))


def _special_names(module: nn.Module) -> dict[str, Any]:
    """For snapshot.json, the names of parameters that are not stored under their own name."""
    stored = first_names(module)
    named = module.named_parameters(remove_duplicate=False)
    found = {
        "shared": {name: first for name, first in stored.items() if name != first},
        "frozen": [name for name, value in named if not value.requires_grad],
    }
    return {kind: names for kind, names in found.items() if names}


def _fingerprint(module: nn.Module) -> str:
    """A run is known by the weights that it began with."""
    digest = hashlib.sha256()
    for name, value in module.named_parameters():
        plain = whole(value.detach()).cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode() + b"\0")
        digest.update(plain.numpy().data)
    return digest.hexdigest()[:16]
