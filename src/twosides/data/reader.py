"""A small convolutional network that reads letters, to measure whether drawn ones are legible.

    features (B, 128)    three 3x3 convolutions, 16 -> 16 -> 8 -> 4 pixels, and a linear layer
    logits   (B, 26)     one more linear layer

It is trained on the fonts of `Glyphs(split="train")`, with a little noise added to the images, and
judged on the fonts of `Glyphs(split="validation")`, which it has not seen. Images of any size are
first averaged to 16 pixels, where every letter is legible: the reader does not see finer detail.
"""

import functools
import hashlib
import math
import os
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Generator, Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, relu

from twosides.storage.reading import require_file
from twosides.storage.tensors import open_tensors

from .glyphs import LETTERS, Glyphs, cache_folder, read_or_make, require_at_least

SIDE = 16
FEATURES = 128
BATCH = 128
RATE = 2e-3
NOISE = 0.3  # the largest standard deviation of the added noise; black to white is 2
VERSION = 1  # the version of network, training and data, which is part of the file's name


class Reader(nn.Module):
    """A classifier of letters, from `x (B, 1, S, S)` in [-1, 1] to `logits (B, 26)`.

    `features(x)` gives the input of the last layer, for distances between sets of images.
    `train_reader` makes a trained one.
    """

    def __init__(self) -> None:
        """Make the layers; PyTorch initialises them from its global generator."""
        super().__init__()
        channels = (1, 24, 48, 96)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels[k], channels[k + 1], 3, stride=1 if k == 0 else 2, padding=1)
            for k in range(3)
        )
        self.hidden = nn.Linear(channels[-1] * (SIDE // 4) ** 2, FEATURES)
        self.out = nn.Linear(FEATURES, len(LETTERS))

    def features(self, x: Tensor) -> Tensor:
        """The features (B, 128), each >= 0, of images (B, 1, S, S)."""
        x = adaptive_avg_pool2d(x, SIDE)
        for convolution in self.convolutions:
            x = relu(convolution(x))
        return relu(self.hidden(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """The logits (B, 26) of images (B, 1, S, S)."""
        return self.out(self.features(x))


def train_reader(
    size: int = 16,
    seed: int = 0,
    *,
    steps: int = 800,
    cache: str | os.PathLike[str] | None = None,
) -> Reader:
    """A reader of letters, which is trained the first time and read from `cache` afterwards.

    It reads about 99.5 % of the letters of fonts it has not seen. The weights depend on the
    arguments alone, up to rounding, and PyTorch's global generator is left as it was.

    size: the pixels a side of the letters, >= 8.
    seed: the seed of the training.
    steps: the number of training steps.
    cache: the folder of the weights and the letters; see `Glyphs`.
    """
    require_at_least("train_reader", size=(size, 8), seed=(seed, 0), steps=(steps, 1))
    name = f"reader-v{VERSION}-{size}px-{steps}steps-seed{seed}.safetensors"
    train = functools.partial(_train, size, seed, steps, cache)
    return (
        read_or_make(cache_folder(cache) / name, _read, _pack, train).requires_grad_(False).eval()
    )


@torch.inference_mode()
def accuracy(reader: Reader, x: Tensor, labels: Tensor) -> float:
    """The share of images x (N, 1, S, S) that are read as their labels (N,)."""
    if len(x) == 0 or len(x) != len(labels):
        raise ValueError(
            f"accuracy needs one label per image, and at least one image, got {len(x)} images "
            f"and {len(labels)} labels."
        )
    read = torch.cat([reader(part).argmax(1) for part in x.split(1000)])
    return (read == labels).double().mean().item()


@torch.enable_grad()
def _train(size: int, seed: int, steps: int, cache: str | os.PathLike[str] | None) -> Reader:
    letters = Glyphs(size, cache=cache)
    generator = Generator().manual_seed(seed)
    reader = _initialise(generator)
    optimizer = torch.optim.AdamW(reader.parameters(), weight_decay=0.01)
    for step in range(steps):
        pick = torch.randint(len(letters), (BATCH,), generator=generator)
        x = letters.x[pick]
        std = NOISE * torch.rand(BATCH, 1, 1, 1, generator=generator)
        x = x + std * torch.randn(x.shape, generator=generator)
        optimizer.param_groups[0]["lr"] = RATE * math.cos(math.pi / 2 * step / steps) ** 2
        optimizer.zero_grad()
        cross_entropy(reader(x), letters.labels[pick]).backward()
        optimizer.step()
    return reader


def _empty() -> Reader:
    # On the meta device the layers' own initialisation draws no random numbers.
    with torch.device("meta"):
        return Reader()


def _initialise(generator: Generator) -> Reader:
    """A reader with He-normal weights drawn from `generator`, and biases 0."""
    reader = _empty().to_empty(device="cpu")
    for weight in reader.parameters():
        if weight.ndim > 1:
            nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
        else:
            nn.init.zeros_(weight)
    return reader


def _digest(weights: dict[str, Tensor]) -> str:
    data = b"".join(weights[name].numpy().tobytes() for name in sorted(weights))
    return hashlib.sha256(data).hexdigest()


def _pack(reader: Reader) -> bytes:
    # Safetensors has no checksum of its own.
    weights = reader.state_dict()
    return save(weights, metadata={"sha256": _digest(weights)})


def _read(path: Path) -> Reader:
    with open_tensors(require_file(path)) as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}
        metadata = file.metadata() or {}
    if metadata.get("sha256") != _digest(weights):
        raise ValueError("its weights do not have the checksum stored with them")
    reader = _empty()
    reader.load_state_dict(weights, assign=True)
    return reader
