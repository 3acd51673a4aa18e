"""The conditioning that a pipeline makes of a text, under its network's own keywords.

    texts = Texts("path/to/pipeline", size=512)
    texts("a lighthouse at dusk")       {"encoder_hidden_states": (1, L, width), ...}
    texts.null                          the negative side of guidance, which has no text

There is no table of pipelines. Each is called as its users call it, and in the place of its network
is one without weights that records the keywords of its first call. Each text is encoded by a call
of its own, so that the result does not depend on other texts.
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
from twosides.integrations.diffusers.required import NOT_CONDITIONING

ANY = "a"  # any text, because the negative side of guidance is the same for all


class Texts:
    """Texts as a pipeline's conditioning: (1, ...) each, by flat names (`conditioning.flat`), on
    the CPU.

    They are encoded without guidance, since networks are trained on that. `null` is the pipeline's
    own negative side of guidance: most encode "", Stable Diffusion XL may use 0
    (`force_zeros_for_empty_prompt`); without guidance it is the text "".
    """

    def __init__(self, folder: Path, size: int) -> None:
        """Load the pipeline without its network.

        folder: the pipeline's folder.
        size: the pixels a side of the images, which some networks are told beside the text.

        ValueError for a pipeline whose conditioning is more than rows of tensors.
        """
        self.recorder = _recorder(folder)
        self.pipe, self.size = load_pipeline(folder, network=self.recorder), size
        self.pipe.set_progress_bar_config(disable=True)
        self.null = self._null()

    def __call__(self, text: str) -> dict[str, Tensor]:
        """The conditioning of a text; ValueError if its shape differs from that of other texts."""
        rows = self._record(text)
        found, wanted = ({k: tuple(v.shape) for k, v in each.items()} for each in (rows, self.null))
        if found != wanted:
            raise ValueError(
                f"{type(self.pipe).__name__} encodes {text!r} as {found}, but no text as {wanted}: "
                "rows of unequal shapes make no batch. Encode without captions"
            )
        return rows

    def _null(self) -> dict[str, Tensor]:
        both, alone = self._record(ANY, guidance=2.0, rows=2), self._record(ANY)
        first, second = ({k: v[row : row + 1] for k, v in both.items()} for row in (0, 1))
        if _distance(first, second) == 0:  # there is no guidance, or the network itself guides
            return self._record("")
        return max(first, second, key=lambda row: _distance(row, alone))

    def _record(self, text: str, guidance: float = 1.0, rows: int = 1) -> dict[str, Tensor]:
        """The conditioning of the network's first calls, until there are so many rows."""
        kind, self.recorder.calls, self.recorder.wanted = type(self.pipe), [], rows
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
        calls = self.recorder.calls
        found = {name: torch.cat([call[name] for call in calls]) for name in calls[0]}
        if not found or any(len(value) != rows for value in found.values()):
            shapes = {name: tuple(value.shape) for name, value in found.items()}
            raise _refusal(kind.__name__, f"{shapes} where {rows} rows were expected")
        return found


def _rows(pipeline: str, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """The conditioning of a call; ValueError unless it is tensors with a row for each sample."""
    z = _state(arguments)
    if z.ndim != 4:
        raise _refusal(pipeline, f"latents as {tuple(z.shape)}, not (B, C, height, width)")
    skipped = (*NOT_CONDITIONING, "return_dict")
    given = flat({k: v for k, v in arguments.items() if k not in skipped})
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != len(z):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise _refusal(pipeline, f"{name}, {shape}, without a row for each of {len(z)}")
    return {name: value.detach().cpu() for name, value in given.items()}


def _state(arguments: dict[str, Any]) -> Tensor:
    return arguments["sample"] if "sample" in arguments else arguments["hidden_states"]


def _refusal(pipeline: str, what: str) -> ValueError:
    return ValueError(
        f"captions cannot be stored beside latents for {pipeline}: it passes its network {what}. "
        "Encode without captions"
    )


def _distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((value.double() - b[name].double()).abs().sum()) for name, value in a.items())


# ---------------------------------------------------------------------------- the recorder


class _Enough(Exception):
    """Stops a pipeline once enough calls are recorded."""


def _recorder(folder: Path) -> Any:
    """A pipeline's network without weights, which records its conditioning and answers zeros."""
    pipeline, parts = read_index(folder)["_class_name"], parts_of(folder)
    name = network_name(parts)
    kind = model_class(folder, name, parts)
    device, stored = placement(folder / name)

    class Recorder(kind):
        calls: list[dict[str, Tensor]]
        wanted: int  # the rows after which the pipeline is stopped
        device = property(lambda self: device)
        dtype = property(lambda self: stored or torch.float32)

        def to(self, *args: Any, **kwargs: Any) -> Any:
            return self

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            arguments = inspect.signature(kind.forward).bind(self, *args, **kwargs).arguments
            self.calls.append(_rows(pipeline, arguments))
            self.wanted -= len(_state(arguments))
            if self.wanted <= 0:
                raise _Enough
            return (torch.zeros_like(_state(arguments)),)

    config = kind.load_config(str(folder), subfolder=name)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return Recorder.from_config(config)
