"""Features in which distances are measured: any function from samples (N, ...) to (N, D).

An extractor has a name: "pixels" for the samples themselves; "reader" for the features of a
classifier of letters; the folder of a vision model of transformers (DINOv2, CLIP, ...); or
"package.module:function".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from twosides.data.decode import MAX_SIDE
from twosides.naming import unknown
from twosides.storage.devices import device_named
from twosides.storage.reading import read_json, require_folder
from twosides.storage.trust import import_object

Extractor = Callable[[Tensor], Tensor]
BATCH = 250  # the samples whose features are computed at a time


def pixels(x: Float[Tensor, " n *event"]) -> Float[Tensor, " n d"]:
    """The samples themselves, as rows."""
    return x.flatten(1) if x.ndim > 1 else x[:, None]


def reader() -> Extractor:
    """The features (N, 128) of the classifier of letters, which is trained the first time.

    Rows are scaled to mean square 1, because kernels are made for features of that size.
    """
    from twosides.data.reader import train_reader

    network = train_reader()

    def features(x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != 1:
            raise ValueError(
                f"the reader reads grey images (N, 1, S, S), got {tuple(x.shape)}; "
                "use another extractor, such as pixels"
            )
        rows = network.features(x.float())
        return normalize(rows) * rows.shape[1] ** 0.5

    return features


EXTRACTORS: dict[str, Callable[[], Extractor]] = {"pixels": lambda: pixels, "reader": reader}


def extractor_named(name: str | Extractor, *, trust_code: bool = False) -> Extractor:
    """The extractor of a name (see this module); a function is returned as it is.

    name: the name.
    trust_code: whether an import path may be imported, which runs its module.

    ValueError for unknown names, and for import paths without `trust_code`.
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
    extractor = import_object(name, "extractor", trust_code=trust_code)
    if not callable(extractor):
        raise ValueError(f"{module} has no function called {function!r}")
    return cast(Extractor, extractor)


def extract(x: Tensor, extractor: Extractor, *, batch: int = BATCH) -> Float[Tensor, " n d"]:
    """The features of samples in float64 on the CPU.

    x: the samples (N, ...); TypeError unless they are floating point.
    extractor: the function from (B, ...) to features (B, D); ValueError for other shapes.
    batch: the number of samples at a time.
    """
    return extract_batches(x.split(batch), extractor, len(x))


@torch.no_grad()
def extract_batches(
    batches: Iterable[Tensor], extractor: Extractor, count: int
) -> Float[Tensor, " n d"]:
    """The features in float64 on the CPU of samples that come in batches, of which none is kept.

    batches: samples (B, ...).
    extractor: the function from (B, ...) to features (B, D).
    count: the number of samples in all batches together.
    """
    found, done = torch.empty(0, 0, dtype=torch.float64), 0
    for x in batches:
        if not x.is_floating_point():
            raise TypeError(
                f"samples must be floating point, got {x.dtype}; scale images to [-1, 1]"
            )
        features = extractor(x)
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(x):  # pyright: ignore[reportUnnecessaryIsInstance]
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                f"an extractor gives features ({len(x)}, D) for {len(x)} samples, got {got}"
            )
        if not done:
            found = torch.empty(count, features.shape[1], dtype=torch.float64)
        found[done : done + len(x)] = features
        done += len(x)
    if not done or done != count:
        raise ValueError(f"{count} samples were to be measured, but there are {done}")
    return found


# ---------------------------------------------------------------------------- transformers


def transformers_folder(folder: str | Path) -> Extractor:
    """The image features of a transformers model in a local folder: DINOv2, CLIP, ViT, ...

    Images (N, 1 or 3, H, W) in [-1, 1] are resized as a whole (bicubic, antialiased, not cropped)
    to the model's side and normalised as it was trained. The files config.json, model.safetensors
    and preprocessor_config.json are read; no code of the folder is run, nothing unpickled or
    downloaded.
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
        ).to(device_named())
    model.eval()
    side, mean, std = _preparation(folder, model.config)

    def features(x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"{folder} takes images (N, 1 or 3, H, W), got {tuple(x.shape)}")
        x = (x.to(model.device).float() / 2 + 0.5).clamp(0, 1).expand(-1, 3, -1, -1)
        x = interpolate(x, (side, side), mode="bicubic", antialias=True)
        return _image_features(model, (x - mean.to(x)) / std.to(x))

    return features


def _image_features(model: Any, images: Tensor) -> Tensor:
    if hasattr(model, "get_image_features"):  # CLIP and models like it also read text
        answer = model.get_image_features(pixel_values=images)
        return answer if isinstance(answer, Tensor) else answer.pooler_output
    answer = model(pixel_values=images)
    pooled = getattr(answer, "pooler_output", None)
    return (answer.last_hidden_state[:, 0] if pooled is None else pooled).flatten(1)


def _preparation(folder: Path, config: Any) -> tuple[int, Tensor, Tensor]:
    """The side, the mean and the standard deviation (3, 1, 1) of the images that a model takes."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {path.name}, which states how its images are normalised; download "
            "it with the model"
        )
    notes = read_json(path, finite=False)
    size = notes.get("crop_size") or notes.get("size") or getattr(config, "image_size", None)
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    if not isinstance(size, int) or not 1 <= size <= MAX_SIDE:
        raise ValueError(f"{path} has no size of images, 1 to {MAX_SIDE}: {size!r}")
    mean, std = (_per_channel(path, key, notes.get(key)) for key in ("image_mean", "image_std"))
    return size, mean, std


def _per_channel(path: Path, key: str, values: Any) -> Tensor:
    """A number for each of three channels, (3, 1, 1); by default 0.5."""
    values = [0.5] * 3 if values is None else values
    listed = isinstance(values, list) and len(values) == 3
    if not listed or not all(type(value) in (int, float) for value in values):
        raise ValueError(f'"{key}" in {path} must be three numbers, and is {values!r}')
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1)
