"""Low-rank adapters of a diffusers network [Hu+ 2021], through peft.

    adapted = Adapted(network, rank=8)          # W + B A, B = 0: at first the network itself
    save_lora(adapted, "run/lora")              # pipe.load_lora_weights("run/lora")

Only A and B are trained. They belong to the network in its own notation, so that a pipeline loads
them whatever the notation in which they were trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import save
from torch import Tensor, nn

from twosides.conversion import Converted
from twosides.storage.files import write_file
from twosides.storage.models import build_network, describe_network

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FILE = "pytorch_lora_weights.safetensors"


class Adapted(nn.Module):
    """A network whose linear layers of some names have adapters; all else is frozen.

    The adapters' scale is 1 (lora_alpha = rank). `config` builds it again.
    """

    def __init__(
        self,
        network: nn.Module | Mapping[str, Any],
        rank: int,
        target: Iterable[str] = ATTENTION,
        seed: int = 0,
    ) -> None:
        """Add adapters to a network.

        network: a network of diffusers as `load_denoiser` has it, or its description.
        rank: the rank of the adapters, >= 1.
        target: the names of the layers, or ends of their paths; ValueError for a name without a
            layer.
        seed: the seed of A; B is 0.
        """
        super().__init__()
        if rank < 1:
            raise ValueError(f"an adapter's rank is at least 1, got {rank}")
        self.network = network if isinstance(network, nn.Module) else build_network(dict(network))
        self.rank, self.target, self.seed = rank, tuple(target), seed
        self._inject(model_of(self.network))

    def _inject(self, model: Any) -> None:
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise ImportError("LoRA needs peft: pip install 'twosides[finetune]'") from error
        names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
        for wanted in self.target:
            if not any(f".{name}".endswith(f".{wanted}") for name in names):
                last = sorted({name.rsplit(".", 1)[-1] for name in names})
                raise ValueError(
                    f"no linear layer of {type(model).__name__} is called {wanted!r}; there are "
                    f"{', '.join(last)} (and longer paths)"
                )
        model.requires_grad_(False)
        settings = LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=list(self.target))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model.add_adapter(settings)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that build the network again, for `storage.models`."""
        described = describe_network(self.network)
        return {
            "network": described, "rank": self.rank, "target": list(self.target), "seed": self.seed
        }  # fmt: skip

    def forward(self, z: Tensor, time: Tensor, **conditioning: Any) -> Any:
        """The adapted network's answer."""
        return self.network(z, time, **conditioning)


def model_of(network: Any) -> Any:
    """The network of diffusers inside of all wrappers here; TypeError if there is none."""
    while not isinstance(network, ModelMixin):
        inner = network.denoiser if isinstance(network, Converted) else network
        inner = getattr(inner, "network", None)
        if inner is None:
            raise TypeError(f"{type(network).__name__} has no network of diffusers inside")
        network = inner
    return network


def save_lora(network: Any, folder: str | Path) -> Path:
    """Write the adapters as the file that `pipe.load_lora_weights(folder)` reads."""
    from peft.utils import get_peft_model_state_dict

    model = model_of(network)
    part = "unet" if "UNet" in type(model).__name__ else "transformer"
    weights = get_peft_model_state_dict(model, adapter_name="default")
    tensors = {f"{part}.{name}": value.contiguous().cpu() for name, value in weights.items()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_file(Path(folder) / FILE, save(tensors, metadata={"format": "pt"}))
    return Path(folder)
