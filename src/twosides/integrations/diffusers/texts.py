"""What a pipeline tells its network of a text, in the pipeline's own words.

    texts = Texts("path/to/pipeline", size=512)
    texts("a lighthouse at dusk")       {"encoder_hidden_states": (1, L, width), ...}
    texts.null                          the same, of no text: what its guidance leads away from

There is no table of pipelines. Each is called as its users call it, and in the place of its network
is one without weights that keeps the keywords of its first call. A text is a call of its own, so
that nothing depends on which others are encoded with it.
"""

from __future__ import annotations

import contextlib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twosides.conditioning import flat
from twosides.integrations.diffusers.networks import (
    model_class,
    network_name,
    parts_of,
    read_index,
)
from twosides.integrations.diffusers.pipelines import inputs, load_pipeline, placement
from twosides.integrations.diffusers.required import SPOKEN

ANY = "a"  # whatever a text says, what it is guided away from is the same


class Texts:
    """Texts as a pipeline's conditioning: (1, ...) each, by `trees.flat` names, on the CPU.

    size: of the pictures, which some networks are told beside the text.

    Without guidance, since that is what networks are trained to hear. `null` is what the pipeline
    itself puts on the other side of its guidance: most encode "", Stable Diffusion XL may say 0
    (`force_zeros_for_empty_prompt`); where there is no guidance, it is the text "".
    """

    def __init__(self, folder: Path, size: int) -> None:
        """ValueError for a pipeline whose network is told a text by more than rows of tensors."""
        self.ear = _ear(folder)
        self.pipe, self.size = load_pipeline(folder, network=self.ear), size
        self.pipe.set_progress_bar_config(disable=True)
        self.null = self._null()

    def __call__(self, text: str) -> dict[str, Tensor]:
        """What the network is told; ValueError if that has another shape than of other texts."""
        told = self._heard(text)
        found, wanted = ({k: tuple(v.shape) for k, v in each.items()} for each in (told, self.null))
        if found != wanted:
            raise ValueError(
                f"{type(self.pipe).__name__} tells its network of {text!r} in {found}, but of "
                f'"" in {wanted}: rows of unequal shapes make no batch. Encode without captions'
            )
        return told

    def _null(self) -> dict[str, Tensor]:
        both, alone = self._heard(ANY, guidance=2.0, rows=2), self._heard(ANY)
        first, second = ({k: v[row : row + 1] for k, v in both.items()} for row in (0, 1))
        if _distance(first, second) == 0:  # not guided, or by the network itself
            return self._heard("")
        return max(first, second, key=lambda row: _distance(row, alone))

    def _heard(self, text: str, guidance: float = 1.0, rows: int = 1) -> dict[str, Tensor]:
        """What the network is told in the first calls, together of so many rows."""
        kind, self.ear.calls, self.ear.wanted = type(self.pipe), [], rows
        options = {
            "guidance_scale": guidance,
            "height": self.size,
            "width": self.size,
            "use_resolution_binning": False,
            "generator": torch.Generator().manual_seed(0),
            "output_type": "latent",
        }
        takes = inspect.signature(kind.__call__).parameters
        options = {name: value for name, value in options.items() if name in takes}
        with contextlib.suppress(_Enough):
            self.pipe(**inputs(self.pipe, 1, prompt=text), **options)
        calls = self.ear.calls
        found = {name: torch.cat([call[name] for call in calls]) for name in calls[0]}
        if not found or any(len(value) != rows for value in found.values()):
            shapes = {name: tuple(value.shape) for name, value in found.items()}
            raise _untellable(kind.__name__, f"{shapes} where {rows} rows were expected")
        return found


def _rows(pipeline: str, told: dict[str, Any]) -> dict[str, Tensor]:
    """The conditioning of a call; ValueError unless it is tensors with a row for each sample."""
    z = _state(told)
    if z.ndim != 4:
        raise _untellable(pipeline, f"latents as {tuple(z.shape)}, not (B, C, height, width)")
    given = flat({k: v for k, v in told.items() if k not in (*SPOKEN, "return_dict")})
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != len(z):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise _untellable(pipeline, f"{name}, {shape}, without a row for each of {len(z)}")
    return {name: value.detach().cpu() for name, value in given.items()}


def _state(told: dict[str, Any]) -> Tensor:
    return told["sample"] if "sample" in told else told["hidden_states"]


def _untellable(pipeline: str, what: str) -> ValueError:
    return ValueError(
        f"captions cannot be stored beside latents for {pipeline}: it tells its network {what}. "
        "Encode without captions"
    )


def _distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((value.double() - b[name].double()).abs().sum()) for name, value in a.items())


# ---------------------------------------------------------------------------- the listener


class _Enough(Exception):
    """Stops a pipeline."""


def _ear(folder: Path) -> Any:
    """A pipeline's network without its weights: it keeps what it is told, and answers zeros."""
    pipeline, parts = read_index(folder)["_class_name"], parts_of(folder)
    name = network_name(parts)
    kind = model_class(folder, name, parts)
    device, stored = placement(folder / name)

    class Ear(kind):
        calls: list[dict[str, Tensor]]
        wanted: int  # rows, after which the pipeline is stopped
        device = property(lambda self: device)
        dtype = property(lambda self: stored or torch.float32)

        def to(self, *args: Any, **kwargs: Any) -> Any:
            return self

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            told = inspect.signature(kind.forward).bind(self, *args, **kwargs).arguments
            self.calls.append(_rows(pipeline, told))
            self.wanted -= len(_state(told))
            if self.wanted <= 0:
                raise _Enough
            return (torch.zeros_like(_state(told)),)

    config = kind.load_config(str(folder), subfolder=name)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return Ear.from_config(config)
