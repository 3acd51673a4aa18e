"""The only network of this package: a small MLP for low-dimensional data."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


class MLP(nn.Module):
    """A residual MLP on (B, dim) data, told the time by Fourier features.

    network(z, time, class_labels=None) -> (B, dim),    class_labels integers below `classes`
    """

    def __init__(self, dim: int = 2, width: int = 128, depth: int = 3, classes: int = 0) -> None:
        """Make the layers.

        dim: the dimension of the data.
        width: the width of the hidden layers.
        depth: the number of residual blocks.
        classes: the number of classes, 0 for none.
        """
        super().__init__()
        self.config = {"dim": dim, "width": width, "depth": depth, "classes": classes}
        self.register_buffer("frequencies", 2.0 ** torch.arange(8) * torch.pi / 2)
        self.enter = nn.Linear(dim + 16, width)
        self.labels = nn.Embedding(classes, width) if classes else None
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(depth)
        )
        self.leave = nn.Linear(width, dim)

    def forward(
        self,
        z: Float[Tensor, " batch dim"],
        time: Float[Tensor, " batch"],
        class_labels: Tensor | None = None,
    ) -> Float[Tensor, " batch dim"]:
        """The prediction (B, dim)."""
        # Half precision would round the time to steps of 1/256, and so the fastest wave.
        wide = torch.promote_types(z.dtype, torch.float32)
        angles = time[:, None].to(wide) * self.get_buffer("frequencies").to(wide)
        hidden = self.enter(torch.cat([z, angles.sin().to(z), angles.cos().to(z)], 1))
        if self.labels is not None and class_labels is not None:
            hidden = hidden + self.labels(class_labels)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.leave(hidden)


NETWORKS: dict[str, type[Any]] = {"MLP": MLP}
