"""The checkpoints of a run: numbered folders, of which the newest good one is used."""

import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from twosides.storage.files import commit_folder, recover, remove_folder, verify_folder
from twosides.storage.reading import CorruptFolder, Tree
from twosides.storage.trees import load_tree, save_tree

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one run: `root/step-00001234/`, the newest `keep` good ones.

    One process writes, any number may read. `newest` skips a damaged checkpoint with a warning that
    names it, and raises an error if none is good: a run never starts from nothing in silence.
    """

    def __init__(self, root: str | Path, keep: int = 2) -> None:
        """Name the folder, which the first `save` makes.

        root: the folder.
        keep: the number of good checkpoints to keep, >= 2, because one may turn out damaged.
        """
        if keep < 2:
            raise ValueError(f"keep is at least 2, as one may turn out damaged, got {keep}")
        self.root, self.keep = Path(root).absolute(), keep
        self._good: set[Path] = set()

    def folder(self, step: int) -> Path:
        """The folder of the checkpoint of this step, whether it exists or not."""
        if step < 0:
            raise ValueError(f"steps count from 0, got {step}")
        return self.root / f"step-{step:08d}"

    def save(self, step: int, tree: Tree) -> Path:
        """Commit the tree as the checkpoint of this step, prune older ones, return its folder."""
        folder = self.folder(step)
        commit_folder(folder, lambda temporary: save_tree(temporary, tree))
        self.prune(step)
        return folder

    def newest(self) -> tuple[int, Tree] | None:
        """The newest good checkpoint as (step, tree), or None if there is none at all."""
        return self._first_good(load_tree)

    def newest_folder(self, check: Callable[[Path], None] | None = None) -> Path | None:
        """The folder of the newest good checkpoint, or None if there is none at all.

        check: raises CorruptFolder for a folder from which the run must not continue; it counts as
            damaged.
        """

        def read(folder: Path) -> Path:
            if check is not None:
                check(folder)
            return folder

        found = self._first_good(read)
        return found and found[1]

    def prune(self, step: int) -> None:
        """Remove what is older than `keep` good checkpoints, `step`, just committed, included."""
        self._good.add(self.folder(step))
        self._tidy()
        good = 0
        for found, folder in self._list():
            if good >= self.keep:
                self._discard(folder)
            elif found <= step:
                good += self._is_good(folder)

    def _first_good(self, read: Callable[[Path], T]) -> tuple[int, T] | None:
        self._tidy()
        reasons: list[str] = []
        for step, folder in self._list():
            try:
                verify_folder(folder)
                return step, read(folder)
            except (CorruptFolder, OSError) as error:
                warnings.warn(f"skipped the checkpoint {folder}: {error}", stacklevel=3)
                reasons.append(f"\n  {error}")
        if reasons:
            found = f"has {len(reasons)} checkpoints and none is good:{''.join(reasons)}\n"
            raise CorruptFolder(self.root, "", f"{found}restore one, or move them away to restart")
        return None

    def _list(self) -> list[tuple[int, Path]]:
        """The checkpoints, newest first; one that is just being replaced counts, too."""
        if not self.root.is_dir():
            return []
        found: dict[int, Path] = {}
        for name in sorted(os.listdir(self.root)):  # ".old-" comes before "step-"
            if match := re.fullmatch(r"\.old-step-(\d{8,})-\d+|step-(\d{8,})", name):
                found[int(match[1] or match[2])] = self.root / name
        return sorted(found.items(), reverse=True)

    def _tidy(self) -> None:
        names = os.listdir(self.root) if self.root.is_dir() else []
        matches = [re.fullmatch(r"\.(?:tmp|old)-(step-\d{8,})-\d+", name) for name in names]
        for name in {match[1] for match in matches if match}:
            recover(self.root / name)

    def _is_good(self, folder: Path) -> bool:
        if folder not in self._good:
            try:
                verify_folder(folder)
            except (CorruptFolder, OSError):
                return False
            self._good.add(folder)
        return True

    def _discard(self, folder: Path) -> None:
        self._good.discard(folder)
        try:
            remove_folder(folder)
        except OSError as error:
            warnings.warn(f"could not prune {folder}: {error}; remove it by hand", stacklevel=4)
