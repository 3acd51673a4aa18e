"""Features to measure distances in: any function from samples (N, ...) to (N, D).

By name: "pixels", the samples themselves; "reader", what a classifier trained on letters sees;
the folder of a transformers vision model (DINOv2, CLIP, ...); "package.module:function".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from twosides.naming import import_object, unknown
from twosides.storage.reading import read_json, require_folder

Extractor = Callable[[Tensor], Tensor]
BATCH = 250


def pixels(x: Float[Tensor, " n *event"]) -> Float[Tensor, " n d"]:
    """The samples themselves, as rows."""
    return x.flatten(1) if x.ndim > 1 else x[:, None]


def reader() -> Extractor:
    """Features (N, 128) of the classifier of letters, which is trained the first time.

    Rows are scaled to mean square 1: kernels are made for features of that size.
    """
    from twosides.data.reader import train_reader

    network = train_reader()

    def features(x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 1:
            raise ValueError(
                f"the reader reads grey images (N, 1, S, S), got {tuple(x.shape)}; "
                "use another extractor, such as pixels"
            )
        found = network.features(x.float())
        return normalize(found) * found.shape[1] ** 0.5

    return features


EXTRACTORS: dict[str, Callable[[], Extractor]] = {"pixels": lambda: pixels, "reader": reader}


def extractor_named(name: str | Extractor, *, trust_code: bool = False) -> Extractor:
    """An extractor by name (see this module), or the function itself.

    ValueError for unknown names, and for import paths without `trust_code`: importing runs code.
    """
    if not isinstance(name, str):
        if not callable(name):
            raise TypeError(f"an extractor is a function x -> (N, D) or a name, got {name!r}")
        return name
    if name in EXTRACTORS:
        return EXTRACTORS[name]()
    if (Path(name) / "config.json").is_file():
        return transformers_folder(name)
    module, colon, function = name.partition(":")
    if not colon:
        known = (*EXTRACTORS, "a folder with config.json", "package.module:function")
        raise unknown("extractor", name, known)
    found = import_object(name, "extractor", trust_code=trust_code)
    if not callable(found):
        raise ValueError(f"{module} has no function called {function!r}")
    return cast(Extractor, found)


@torch.no_grad()
def extract(x: Tensor, extractor: Extractor, *, batch: int = BATCH) -> Float[Tensor, " n d"]:
    """Features of samples (N, ...) in float64 on the CPU, `batch` samples at a time.

    TypeError for samples that are not floating point; ValueError for features that are no rows.
    """
    if not x.is_floating_point():
        raise TypeError(f"samples must be floating point, got {x.dtype}; scale images to [-1, 1]")
    if len(x) == 0:
        raise ValueError("there are no samples to measure")
    parts: list[Tensor] = []
    for rows in x.split(batch):
        features = extractor(rows)
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(rows):  # pyright: ignore[reportUnnecessaryIsInstance]
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                f"an extractor gives features ({len(rows)}, D) for {len(rows)} samples, got {got}"
            )
        parts.append(features.to("cpu", torch.float64))
    return torch.cat(parts)


# ---------------------------------------------------------------------------- transformers


def transformers_folder(folder: str | Path) -> Extractor:
    """The image features of a transformers model in a local folder: DINOv2, CLIP, ViT, ...

    Reads config.json, model.safetensors and preprocessor_config.json; no code of the folder's is
    run, nothing unpickled or downloaded. Images (N, 1 or 3, H, W) in [-1, 1] are resized as a whole
    (bicubic, antialiased, not cropped) to the model's side and normalised as it was trained.
    """
    folder = Path(folder)
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise ImportError(
            f"{folder} needs transformers: pip install 'twosides[diffusers]'"
        ) from error
    with torch.random.fork_rng(devices=[]):
        model: Any = AutoModel.from_pretrained(
            require_folder(folder),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        ).eval()
    side, mean, std = _preparation(folder, model.config)

    def features(x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"{folder} sees images (N, 1 or 3, H, W), got {tuple(x.shape)}")
        x = (x.float() / 2 + 0.5).clamp(0, 1).expand(-1, 3, -1, -1)
        x = interpolate(x, (side, side), mode="bicubic", antialias=True)
        return _image_features(model, (x - mean) / std)

    return features


def _image_features(model: Any, images: Tensor) -> Tensor:
    if hasattr(model, "get_image_features"):  # CLIP and its kind also read text
        found = model.get_image_features(pixel_values=images)
        return found if isinstance(found, Tensor) else found.pooler_output
    found = model(pixel_values=images)
    pooled = getattr(found, "pooler_output", None)
    return (found.last_hidden_state[:, 0] if pooled is None else pooled).flatten(1)


def _preparation(folder: Path, config: Any) -> tuple[int, Tensor, Tensor]:
    """Side, mean and standard deviation (3, 1, 1) of the images a model wants."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {path.name}, which says how its images are normalised; "
            "download it with the model"
        )
    said = read_json(path, finite=False)
    size = said.get("crop_size") or said.get("size") or getattr(config, "image_size", None)
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"{path} names no size of images: {said!r}")
    mean, std = (
        torch.tensor(said.get(key, [0.5] * 3)).reshape(-1, 1, 1)
        for key in ("image_mean", "image_std")
    )
    return size, mean, std
