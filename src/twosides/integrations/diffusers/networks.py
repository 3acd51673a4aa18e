"""The network of a diffusers pipeline as a denoiser.

    denoiser = load_denoiser("path/to/pipeline", encoder_hidden_states=prompt_embeds)
    x = ts.sample(denoiser, (1, 4, 64, 64), sampler="dpmpp-2m", steps=12)
    pictures = denoiser.decode(x)

The network's output and clock are read from the scheduler's config (`notation`). Families of
networks differ in how they are called: `ADAPTERS` has a row for each, and a new family is a new
row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import deprecation_utils
from torch import Tensor, nn

from twosides.denoiser import Denoiser
from twosides.guidance import Guided
from twosides.integrations.diffusers.folders import check_source, guard_reading
from twosides.integrations.diffusers.latents import to_images, to_latents
from twosides.integrations.diffusers.notation import Notation
from twosides.integrations.diffusers.scheduler import Scheduler
from twosides.outputs import Estimate
from twosides.schedules import Level
from twosides.storage.models import build_network, describe_network

Conditioning = dict[str, Any]


Adapter = Callable[[Any, Tensor, Tensor, Conditioning], Tensor]


"""A function of (network, z, timestep in the scheduler's units, conditioning) -> output."""


def _unet(network: Any, z: Tensor, t: Tensor, given: Conditioning) -> Tensor:
    return network(z, t, **given).sample


def _transformer(network: Any, z: Tensor, t: Tensor, given: Conditioning) -> Tensor:
    return network(z, timestep=t, **given).sample


def _per_mille(network: Any, z: Tensor, t: Tensor, given: Conditioning) -> Tensor:
    return _transformer(network, z, t / 1000, given)


def _pixart(network: Any, z: Tensor, t: Tensor, given: Conditioning) -> Tensor:
    unsaid = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    return _transformer(network, z, t, unsaid | given)


def _sana(network: Any, z: Tensor, t: Tensor, given: Conditioning) -> Tensor:
    return _transformer(network, z, t * network.config.timestep_scale, given)


def _lumina(network: Any, z: Tensor, t: Tensor, given: Conditioning) -> Tensor:
    """A network that is told 1 - t, and predicts the data minus the noise."""
    return -_transformer(network, z, 1 - t / 1000, given)


ADAPTERS: dict[str, Adapter] = {
    "UNet2DModel": _unet,  # class_labels
    "UNet2DConditionModel": _unet,  # encoder_hidden_states, added_cond_kwargs
    "DiTTransformer2DModel": _transformer,  # class_labels
    "PixArtTransformer2DModel": _pixart,  # encoder_hidden_states, encoder_attention_mask
    "SD3Transformer2DModel": _transformer,  # encoder_hidden_states, pooled_projections
    "FluxTransformer2DModel": _per_mille,  # and img_ids, txt_ids, guidance; packed latents
    "AuraFlowTransformer2DModel": _per_mille,  # encoder_hidden_states
    "SanaTransformer2DModel": _sana,
    "Lumina2Transformer2DModel": _lumina,
    "WanTransformer3DModel": _transformer,
    "LTXVideoTransformer3DModel": _transformer,  # and num_frames, height, width; packed latents
    "QwenImageTransformer2DModel": _per_mille,  # and img_shapes, masks; packed latents
    "CogVideoXTransformer3DModel": _transformer,  # and image_rotary_emb
}


def row_of(network: Any) -> str | None:
    """The row of ADAPTERS for a network: that of its class, or else of a base class."""
    return next(
        (kind.__name__ for kind in type(network).__mro__ if kind.__name__ in ADAPTERS), None
    )


def tells_per_mille(row: str) -> bool:
    """Whether pipelines of this row divide the timestep by 1000, in the latents' dtype."""
    return ADAPTERS.get(row) is _per_mille


def _adapter(network: Any) -> Adapter:
    """The function that calls a network; TypeError if that is not known."""
    row = row_of(network)
    if row is not None:
        return ADAPTERS[row]
    raise TypeError(
        f"it is not known here how {type(network).__name__} is called (known: "
        f"{', '.join(ADAPTERS)}); wrap it yourself, with its scheduler's notation: "
        "Scheduler.from_pipeline(pipe).notation.denoiser(lambda z, t, **given: network(...))"
    )


class PipelineNetwork(nn.Module):
    """A network of diffusers, called as `network(z, timestep, **conditioning) -> output`.

    Channels of a learned variance are left out. `config` builds it again.
    """

    def __init__(self, network: nn.Module | Mapping[str, Any]) -> None:
        """Wrap a network, or build it from a description; TypeError for unknown families."""
        super().__init__()
        self.network = network if isinstance(network, nn.Module) else build_network(dict(network))
        self.adapter = _adapter(self.network)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that build the network again, for `storage.models`."""
        return {"network": describe_network(self.network)}

    def forward(self, z: Tensor, timestep: Tensor, **conditioning: Any) -> Tensor:
        """The output, of the shape of z."""
        answer = self.adapter(self.network, z, timestep, conditioning)
        learned = answer.ndim == z.ndim and answer.shape[1] == 2 * z.shape[1]
        return answer[:, : z.shape[1]] if learned else answer


def _as_called(network: Any) -> nn.Module:
    """The network in the form that Denoiser calls: itself if it has that form, or wrapped."""
    config = getattr(network, "config", {})
    plain = _adapter(network) is _unet
    same = config.get("in_channels") == config.get("out_channels")
    return network if plain and same else PipelineNetwork(network)


class PipelineDenoiser(Denoiser):
    """A pipeline's network as a Denoiser.

    `conditioning` is passed at every call, unless the call gives another. `encode` and `decode` go
    between images and latents, by the pipeline's VAE, which is no part of the state_dict.
    """

    def __init__(
        self, network: Any, notation: Notation, conditioning: Conditioning, vae: Any = None
    ) -> None:
        """See `load_denoiser`."""
        super().__init__(_as_called(network), notation.output, notation.schedule, notation.clock)
        self.conditioning = conditioning
        self.train(network.training)
        object.__setattr__(self, "vae", vae)  # not a submodule: neither trained nor saved

    def predict(self, z: Tensor, time: Tensor, **conditioning: Any) -> Tensor:
        """The network's own answer."""
        return super().predict(z, time, **{**self.conditioning, **conditioning})

    def encode(self, images: Tensor) -> Tensor:
        """Images as latents, see `to_latents`."""
        return to_latents(self.vae, images)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as images, see `to_images`."""
        return to_images(self.vae, latents)


class GuidedPipeline(Guided):
    """A pipeline's network under classifier-free guidance, with conditioning of its own."""

    def __init__(self, denoiser: PipelineDenoiser, scale: float, null: Conditioning) -> None:
        """See `load_denoiser`."""
        everywhere = (-float("inf"), float("inf"))
        super().__init__(denoiser, denoiser, scale, null=null, interval=everywhere)
        self.train(denoiser.training)

    def forward(self, z: Tensor, level: Level, **conditioning: Any) -> Estimate:
        """The guided (x, eps)."""
        return super().forward(z, level, **{**self.denoiser.conditioning, **conditioning})

    def encode(self, images: Tensor) -> Tensor:
        """Images as latents, see `to_latents`."""
        return self.denoiser.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as images, see `to_images`."""
        return self.denoiser.decode(latents)


def load_denoiser(
    source: Any,
    *,
    scheduler: Any = None,
    guidance_scale: float | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    allow_pickle: bool = False,
    **conditioning: Any,
) -> PipelineDenoiser | GuidedPipeline:
    """The network of a diffusers pipeline as a denoiser, in the pipeline's own latents.

    source: a pipeline, its folder or its name on the hub; with `scheduler` a bare network,
        likewise. Only the network, the VAE and configs are loaded.
    scheduler: the scheduler of a bare network: an object, its folder or name.
    guidance_scale: the scale of classifier-free guidance, from `negative_<keyword>` (a number fills
        the tensor) towards `<keyword>`, affine as in most pipelines; Lumina2's and Qwen's
        renormalise after it.
    dtype, device: those of the network and the VAE; the parts of a pipeline given as an object are
        moved, too.
    allow_pickle: whether to read weights that are not safetensors. Code of a repository is never
        run.
    conditioning: under the network's own keywords (`encoder_hidden_states`, `class_labels`, ...),
        on the network's device, with as many rows as there will be samples. A call may give or
        replace any.

    Nothing is clipped, which a pipeline's scheduler may do (`clip_sample`). TypeError for networks
    that are not in ADAPTERS.
    """
    with guard_reading(source, pickles=allow_pickle):
        network, reader, vae = _parts(source, scheduler, dtype, allow_pickle)
    for part in (network, vae):
        if part is not None and (device is not None or dtype is not None):
            part.to(device=device, dtype=dtype)
    prefix = "negative_"
    null = {k.removeprefix(prefix): v for k, v in conditioning.items() if k.startswith(prefix)}
    positive = {k: v for k, v in conditioning.items() if not k.startswith(prefix)}
    if (guidance_scale is None) != (not null):
        raise ValueError(
            "guidance takes both guidance_scale=... and negative conditioning, such as "
            f"negative_encoder_hidden_states=...; got guidance_scale={guidance_scale} and "
            f"{', '.join(prefix + name for name in null) or 'nothing negative'}"
        )
    notation = reader.notation.bare or reader.notation
    denoiser = PipelineDenoiser(network, notation, positive, vae)
    return denoiser if guidance_scale is None else GuidedPipeline(denoiser, guidance_scale, null)


def _parts(
    source: Any, scheduler: Any, dtype: torch.dtype | None, allow_pickle: bool
) -> tuple[Any, Scheduler, Any]:
    """The network, the scheduler, and the VAE or None."""
    options = {"use_safetensors": None if allow_pickle else True, **in_dtype(dtype)}
    if scheduler is not None:
        named = isinstance(source, str | Path)
        return _model(source, None, options) if named else source, _scheduler(scheduler), None
    if not isinstance(source, str | Path):
        network = network_of(source)
        return network, Scheduler.from_pipeline(source), getattr(source, "vae", None)
    index = read_index(source)
    name = network_name(parts_of(source))
    vae = _model(source, "vae", options, index) if is_present(index.get("vae")) else None
    config = Scheduler.load_config(str(source), subfolder="scheduler")
    return _model(source, name, options, index), Scheduler.from_config(config), vae


def network_of(pipe: Any) -> Any:
    """The network of a pipeline; TypeError where there is none, or more than one."""
    parts = {
        name: part
        for name in ("unet", "transformer", "transformer_2")
        if (part := getattr(pipe, name, None)) is not None
    }
    return parts[network_name(parts)]


def network_name(parts: Mapping[str, Any]) -> str:
    """The name of the network among a pipeline's parts: "unet" or "transformer"."""
    found = [name for name in ("unet", "transformer") if name in parts]
    if len(found) != 1 or "transformer_2" in parts:
        raise TypeError(
            f"a pipeline with one network, unet or transformer, is needed, but this has "
            f"{', '.join(sorted(parts)) or 'neither'}; wrap the network that you mean in Denoiser"
        )
    return found[0]


def read_index(source: str | Path) -> dict[str, Any]:
    """The model_index.json of a pipeline's folder or name."""
    folder = Path(source)
    if not folder.is_dir() and (folder.is_absolute() or len(folder.parts) != 2):
        raise FileNotFoundError(f"{folder} is neither a folder nor a name on the hub, owner/name")
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no model_index.json, so it is no pipeline; for a bare network, pass the "
            "scheduler's folder, too: load_denoiser(folder, scheduler=...)"
        )
    config: Any = _of_diffusers("DiffusionPipeline").load_config(check_source(source))
    return dict(config)


def parts_of(source: str | Path) -> dict[str, Any]:
    """The parts that a pipeline's folder or name has, by their names in its index."""
    return {key: value for key, value in read_index(source).items() if is_present(value)}


def is_present(entry: Any) -> bool:
    """Whether an entry of model_index.json names a part that exists."""
    return isinstance(entry, list | tuple) and len(entry) == 2 and entry[1] is not None


def model_class(source: str | Path, part: str, index: Mapping[str, Any]) -> Any:
    """The class of a pipeline's part; ValueError if it is no model of diffusers."""
    library, name = index[part]
    return _check_class(source, library, name)


def _check_class(source: str | Path, library: str, name: str) -> Any:
    """A class of a model of diffusers; nothing else is imported."""
    kind = _of_diffusers(name)
    if library != "diffusers" or not (isinstance(kind, type) and issubclass(kind, ModelMixin)):
        raise ValueError(
            f"the network of {source} is {library}.{name}, which is no model of diffusers; load it "
            "yourself and pass the pipeline"
        )
    return kind


def _model(
    source: str | Path, part: str | None, options: Conditioning, index: Conditioning | None = None
) -> Any:
    """A model of diffusers by name, in a subfolder if it is a part."""
    if index is None or part is None:
        config = _of_diffusers("UNet2DModel").load_config(check_source(source))
        kind = _check_class(source, "diffusers", str(config.get("_class_name")))
    else:
        kind = model_class(source, part, index)
    try:
        with torch.random.fork_rng(devices=[]):  # some models are built with random weights first
            model = kind.from_pretrained(str(source), subfolder=part, **options)
    except OSError as error:
        raise OSError(
            f"{error} (only safetensors are read; weights of other kinds are unpickled, which "
            "allow_pickle=True does if you trust them)"
        ) from error
    if without := [name for name, value in model.named_parameters() if value.is_meta]:
        raise ValueError(f"the weights in {Path(source) / (part or '')} lack {without[0]}")
    return model


def load_part(folder: str | Path, part: str) -> Any:
    """One model of a pipeline's folder, from safetensors, in float32."""
    with guard_reading(folder):
        return _model(folder, part, {"use_safetensors": True}, parts_of(folder))


def in_dtype(dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """The option of from_pretrained for a dtype, which older releases call `torch_dtype`."""
    newer = hasattr(deprecation_utils, "_resolve_dtype")
    return {"dtype" if newer else "torch_dtype": dtype} if dtype is not None else {}


def _of_diffusers(name: str) -> Any:
    """A class, imported only now; None if there is none."""
    return getattr(diffusers, name, None)


def _scheduler(scheduler: Any) -> Scheduler:
    if isinstance(scheduler, str | Path):
        return Scheduler.from_config(Scheduler.load_config(check_source(scheduler)))
    return Scheduler.from_config({**scheduler.config, "_class_name": type(scheduler).__name__})
