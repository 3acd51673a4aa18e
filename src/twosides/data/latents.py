"""Latents that were encoded before training by `encode`, as a data set.

    folder/encoding.json                the data, pipeline and size that were encoded
    folder/shard-00000/                 latents.safetensors, bad.json, and their checksums
    folder/summary/                     written last: counts, classes, statistics, the null prompt,
                                        and where the pipeline was

A latent is stored as the posterior's mean and standard deviation, in the units that the pipeline's
network is trained in: (raw - shift) scale, with the VAE's own numbers. A sample is a draw

    x_i = mean_i + std_i n_i            n_i a function of (seed, i)

A caption is stored as the tensors that the pipeline gives to its network, in their own dtype.
"""

from __future__ import annotations

import bisect
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from twosides.conditioning import nested
from twosides.randomness import PerSample
from twosides.storage.files import verify_folder
from twosides.storage.reading import CorruptFolder
from twosides.storage.tensors import open_tensors
from twosides.storage.trees import load_tree

SHARD, BAD = "latents.safetensors", "bad.json"
SUMMARY, ENCODING = "summary", "encoding.json"


def shard_folder(folder: Path, number: int) -> Path:
    """The folder of shard `number`."""
    return folder / f"shard-{number:05d}"


_FLOATS = ("F64", "F32", "F16", "BF16")  # the names of dtypes in safetensors
_OWN = {"x", "mean", "std", "index", "class_labels"}  # names that tensors of captions must not have


def _float(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


class Latents(Dataset[dict[str, Any]]):
    """Encoded images: {"x": (C, h, w)} and the class or the encoded caption, floats as float32.

    `data_mean` and `data_std` (C, 1, 1) are the moments of the draws. `null` has the tensors (1,
    ...) that stand for no caption, by their flat names (`conditioning.flat`); it is empty without
    captions. `pipeline` has the notes of `encoders.pipeline_notes` on the pipeline that encoded.
    Checksums are verified when a shard is first read.
    """

    def __init__(self, folder: str | Path, *, mean: bool = False, seed: int = 0) -> None:
        """Open the latents; `CorruptFolder` says what is damaged.

        folder: the folder that `twosides encode-latents` wrote.
        mean: whether to leave out the posterior's noise.
        seed: the seed of that noise.
        """
        self.folder, self.mean, self.seed = Path(folder), mean, seed
        if not (self.folder / SUMMARY).is_dir():
            raise FileNotFoundError(
                f"{folder} has no finished latents; `twosides encode-latents` writes them, and "
                "continues where it was interrupted"
            )
        verify_folder(self.folder / SUMMARY)
        summary = load_tree(self.folder / SUMMARY)
        try:
            self.shape: tuple[int, int, int] = tuple(summary["shape"])
            self.classes: tuple[str, ...] = tuple(summary["classes"])
            self.bad: list[str] = summary["bad"]
            self.data_mean, self.data_std = summary["data_mean"], summary["data_std"]
            self.null = {name: _float(value) for name, value in summary["null"].items()}
            kinds = {"folder": str, "size": int, "vae": str, "texts": str}
            self.pipeline = {name: kind(summary["pipeline"][name]) for name, kind in kinds.items()}
            self._check(summary["counts"])
            self.ends = list(accumulate(summary["counts"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"describes no latents: {error!r}"
            raise CorruptFolder(self.folder, SUMMARY, reason) from None
        self._open: dict[int, Any] = {}

    def _check(self, counts: list[Any]) -> None:
        """TypeError, AttributeError or ValueError for values that `encode` cannot have written."""
        if not all(type(count) is int and count >= 0 for count in counts):
            raise TypeError("counts that are no whole numbers >= 0")
        if any(each.shape != (self.shape[0], 1, 1) for each in (self.data_mean, self.data_std)):
            raise TypeError("moments of another shape")
        if not all(bool(each.float().isfinite().all()) for each in (self.data_mean, self.data_std)):
            raise ValueError("moments that are not finite")
        if not bool((self.data_std > 0).all()):
            raise ValueError("a standard deviation that is not positive")
        if any(len(value) != 1 for value in self.null.values()):
            raise TypeError("a null prompt that is not a single row")
        if nested(self.null).keys() & _OWN:
            raise TypeError(f"a null prompt called {', '.join(_OWN)}")

    def __getstate__(self) -> dict[str, Any]:
        """The state without the open files, which another process opens itself."""
        return {**self.__dict__, "_open": {}}

    def __len__(self) -> int:
        """The number of latents."""
        return self.ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One sample."""
        if not 0 <= index < len(self):
            raise IndexError(f"there is no latent {index}, the data have {len(self)}")
        number = bisect.bisect_right(self.ends, index)
        row = index - (self.ends[number] - self._count(number))
        stored = {name: self._row(number, name, row) for name in self._names()}
        x = stored.pop("mean")
        if not self.mean:
            x = x + stored.pop("std") * PerSample(self.seed, [index]).normal(self.shape)[0]
        return {"x": x, **nested({name: _float(value) for name, value in stored.items()})}

    def _names(self) -> list[str]:
        """The names of the tensors that make a sample."""
        conditioning = self.null or ["class_labels"] * bool(self.classes)
        return ["mean", *([] if self.mean else ["std"]), *conditioning]

    def _row(self, number: int, name: str, row: int) -> Tensor:
        if number not in self._open:
            folder = shard_folder(self.folder, number)
            verify_folder(folder)
            self._open[number] = self._open_checked(folder, self._count(number))
        return self._open[number].get_slice(name)[row].clone()

    def _count(self, number: int) -> int:
        return self.ends[number] - (self.ends[number - 1] if number else 0)

    def _open_checked(self, folder: Path, count: int) -> Any:
        """An open shard, whose tensors have the shapes that follow from the summary."""
        file = open_tensors(folder / SHARD)
        shapes = {name: tuple(value.shape[1:]) for name, value in self.null.items()}
        shapes["class_labels"] = ()
        for name in self._names():
            wanted = [count, *shapes.get(name, self.shape)]
            found = file.get_slice(name).get_shape() if name in file.keys() else "missing"
            if found != wanted:
                raise CorruptFolder(folder, SHARD, f"has {name} {found}, not {wanted}")
            kind = file.get_slice(name).get_dtype()
            if (name in ("mean", "std") and kind not in _FLOATS) or (
                name == "class_labels" and kind != "I64"
            ):
                raise CorruptFolder(folder, SHARD, f"has {name} of dtype {kind}")
        return file
