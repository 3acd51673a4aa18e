"""Models on disk: a folder of `model.safetensors`, `config.json` and `README.md`.

config.json has everything that is needed to use the weights with any sampler: the network's class
and configuration, its output, schedule and clock, the range of log-SNR, the data's mean and
standard deviation, and how it was trained. Folders are committed as a whole with a checksum of each
file; reading runs no code of the folder and unpickles nothing.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from twosides.clocks import Clock
from twosides.conversion import Converted, convert
from twosides.denoiser import Denoiser
from twosides.naming import unknown
from twosides.schedules import Schedule
from twosides.storage.files import commit_folder, verify_folder
from twosides.storage.limits import (
    MAX_CONVERSIONS,
    MAX_TENSORS,
    MAX_WHOLE,
    check_notes,
    limit_network,
)
from twosides.storage.networks import NETWORKS
from twosides.storage.parts import describe, describe_output, restore, restore_output
from twosides.storage.reading import blame, read_json
from twosides.storage.tensors import load_tensors, open_tensors, save_tensors
from twosides.storage.trust import import_object

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
# Denoisers of other rooms that are stored, by the name that they have in files (`stored_as`).
MAX_COUPLING = 100  # characters
DENOISERS = {"FlowMap": "twosides.distillation.flow_map:FlowMap"}


def describe_network(network: Any) -> dict[str, Any]:
    """A network as JSON: its class and the configuration that builds it."""
    if isinstance(network, Converted):
        return {
            "class": "Converted",
            "of": describe_denoiser(network.denoiser),
            "output": describe_output(network.output, network.schedule),
            "schedule": describe(network.schedule),
            "time": describe(network.clock),
            "extend": network.extend,
        }
    config = getattr(network, "config", None)
    if not isinstance(network, nn.Module) or config is None:
        raise TypeError(
            f"{type(network).__name__} has no `.config` from which it could be built again; use a "
            "diffusers model, or store your network's keyword arguments as its `config` dictionary"
        )
    config = {key: value for key, value in dict(config).items() if not key.startswith("_")}
    root = type(network).__module__.split(".")[0]
    path = f"diffusers.{type(network).__name__}" if root == "diffusers" else _path(type(network))
    return {"class": path, "config": config}


def _path(kind: type[Any]) -> str:
    return kind.__name__ if kind in NETWORKS.values() else f"{kind.__module__}:{kind.__name__}"


def build_network(
    spec: Any, *, trust_code: bool = False, like: nn.Module | None = None, seed: int = 0
) -> nn.Module:
    """A network from its description, with fresh weights.

    spec: {"class": ..., "config": ...}. Classes are models of diffusers ("diffusers.UNet2DModel"),
        of this package ("MLP"), or import paths "package.module:Class".
    trust_code: whether an import path may be imported, which runs that module.
    like: a module that the caller has. Classes that occur in it need no import and no trust.
    seed: the seed of the weights.
    """
    known = _classes_in(like)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if _is_foreign(spec):
            return _build_network(spec, trust_code, known)
        with limit_network(spec, MAX_TENSORS, MAX_WHOLE):
            return _build_network(spec, trust_code, known)


def _is_foreign(spec: Any) -> bool:
    """Whether a network is code outside of this package, which is trusted and not limited."""
    inner = _innermost(spec)
    path = str(inner.get("class")) if isinstance(inner, dict) else ""
    return ":" in path and not path.startswith("twosides.")


def _classes_in(module: nn.Module | None) -> dict[str, type[nn.Module]]:
    """The classes of a module and of those inside it, by their paths in a description."""
    return {_path(type(part)): type(part) for part in (module.modules() if module else ())}


def _build_network(spec: Any, trust_code: bool, known: dict[str, type[nn.Module]]) -> nn.Module:
    if not isinstance(spec, dict) or not isinstance(spec.get("config", {}), dict):
        raise ValueError(
            f'a network is described as {{"class": ..., "config": {{...}}}}, not {spec!r}'
        )
    spec = {"config": {}, **spec}
    name = str(spec.get("class"))
    if name == "Converted":
        if missing := {"of", "output", "schedule", "time"} - spec.keys():
            raise ValueError(f"a converted network lacks {', '.join(sorted(missing))}")
        inner = _build_denoiser(spec["of"], trust_code, known)
        schedule, time = _notation(spec)
        extend = bool(spec.get("extend", False))
        return convert(inner, restore_output(spec["output"]), schedule, time, extend=extend)
    if name in NETWORKS or name.startswith("diffusers."):
        return _build_known(name, spec["config"])
    if ":" not in name:
        raise unknown("network class", name, [*NETWORKS, "diffusers.UNet2DModel"])
    ours = name.startswith("twosides.")
    found = known.get(name) or import_object(name, "network", trust_code=trust_code or ours)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        module, _, kind = name.partition(":")
        raise ValueError(f"{module} has no torch.nn.Module called {kind!r}")
    return found(**spec["config"])


def _build_known(name: str, config: dict[str, Any]) -> nn.Module:
    """A network of this package or of diffusers, from a config that anybody may have written."""
    ours = NETWORKS.get(name)
    kind = ours or _diffusers_model(name.removeprefix("diffusers."))
    try:
        return ours(**config) if ours else kind.from_config(config)
    except Exception as error:  # constructors check little, and raise errors of any kind
        reason = str(error) or type(error).__name__
        raise ValueError(f"no {name} can be built from its config: {reason}") from error


def _diffusers_model(name: str) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            f"diffusers.{name} needs diffusers: pip install 'twosides[diffusers]'"
        ) from error
    kind = getattr(diffusers, name, None)
    model = isinstance(kind, type) and issubclass(kind, nn.Module)
    if not (model and hasattr(kind, "from_config")):
        raise ValueError(f"diffusers has no model called {name!r}")
    return kind


def describe_denoiser(denoiser: Any) -> dict[str, Any]:
    """A denoiser as JSON, without its weights."""
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"only a Denoiser can be written to a file, not {type(denoiser).__name__}")
    schedule, kind = denoiser.schedule, getattr(denoiser, "stored_as", None)
    return {
        **({"kind": kind} if kind else {}),
        **({} if denoiser.coupling == "independent" else {"coupling": denoiser.coupling}),
        "network": describe_network(denoiser.network),
        "output": describe_output(denoiser.output, schedule),
        "schedule": describe(schedule),
        "time": describe(denoiser.clock),
        "logsnr_range": [describe(schedule.logsnr_min), describe(schedule.logsnr_max)],
        "data_mean": denoiser.data_mean.tolist(),
        "data_std": denoiser.data_std.tolist(),
    }


def build_denoiser(
    config: dict[str, Any], *, trust_code: bool = False, like: nn.Module | None = None
) -> Denoiser:
    """The denoiser of a description, with fresh weights.

    config: the description of `describe_denoiser`.
    trust_code, like: see `build_network`.
    """
    return _build_denoiser(config, trust_code, _classes_in(like))


def _build_denoiser(
    config: dict[str, Any], trust_code: bool, known: dict[str, type[nn.Module]]
) -> Denoiser:
    missing = {"network", "output", "schedule", "time"} - config.keys()
    if missing:
        raise ValueError(f"config.json lacks {', '.join(sorted(missing))}")
    shape = config.get("shape")
    statistics = {
        name: _statistic(name, config.get(name, default), shape)
        for name, default in (("data_mean", 0.0), ("data_std", 1.0))
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _build_network(config["network"], trust_code, known)
    schedule, time = _notation(config)
    kind, coupling = _kind(config), config.get("coupling", "independent")
    if not isinstance(coupling, str) or len(coupling) > MAX_COUPLING:
        raise ValueError(f"the coupling in config.json is a few words, not {str(coupling)[:80]!r}")
    made = kind(network, restore_output(config["output"]), schedule, time, **statistics)
    made.coupling = coupling
    return made


def _kind(config: dict[str, Any]) -> type[Denoiser]:
    """The class of a denoiser that is a description's "kind"."""
    name = config.get("kind")
    if name is None:
        return Denoiser
    if not isinstance(name, str) or name not in DENOISERS:
        raise unknown("kind of denoiser in config.json", name, DENOISERS)
    return import_object(DENOISERS[name], "denoiser", trust_code=True)  # a row of our own


def _statistic(name: str, value: Any, shape: list[int] | None) -> Tensor:
    """The mean or the standard deviation of the data, checked against the shape of a sample."""
    found = torch.tensor(value, dtype=torch.float64)
    if not bool(found.float().isfinite().all()):
        raise ValueError(f"{name} has numbers that are not finite in float32")
    if shape is not None and torch.broadcast_shapes(found.shape, shape) != tuple(shape):
        raise ValueError(
            f"{name} of shape {tuple(found.shape)} does not fit samples {tuple(shape)}"
        )
    return found


def _notation(config: dict[str, Any]) -> tuple[Schedule, Clock]:
    schedule, time = restore(config["schedule"]), restore(config["time"])
    if not isinstance(schedule, Schedule) or not isinstance(time, Clock):
        raise ValueError(f"config.json describes no schedule and time: {schedule!r}, {time!r}")
    return schedule, time


def save(denoiser: Denoiser, folder: str | Path, **about: Any) -> None:
    """Write a model folder.

    denoiser: the denoiser.
    folder: the folder. A model folder that exists is replaced as a whole; anything else that is
        there is an error.
    about: notes for config.json, such as the recipe or the classes, as JSON values.
    """
    folder = Path(folder)
    ours = (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not a model folder; choose a new one")
    notation = describe_denoiser(denoiser)
    config = {"format": "twosides.model", "version": 1, **notation, **about}
    text = json.dumps(config, indent=2, allow_nan=False)

    def write(target: Path) -> None:
        save_tensors(target / WEIGHTS, denoiser.state_dict())
        (target / CONFIG).write_text(text, encoding="utf-8")
        (target / CARD).write_text(_card(config), encoding="utf-8")

    commit_folder(folder, write)


def is_pipeline(source: object) -> TypeGuard[str | Path]:
    """Whether this is the folder of a diffusers pipeline."""
    return isinstance(source, str | Path) and (Path(source) / "model_index.json").is_file()


def load(
    folder: str | Path, *, trust_code: bool = False, like: nn.Module | None = None
) -> Denoiser:
    """Read a model folder, or the model of a training run's folder.

    folder: the folder.
    trust_code: whether a network may be imported by its path, which runs that module.
    like: see `build_network`.

    Checksums are verified first. FileNotFoundError, `CorruptFolder` or ValueError say what is
    wrong.
    """
    folder = model_folder(folder)
    verify_folder(folder)
    config = read_config(folder)
    with blame(folder / CONFIG):
        _check_size(folder, config)
        denoiser = build_denoiser(config, trust_code=trust_code, like=like)
    try:
        denoiser.load_state_dict(load_tensors(folder / WEIGHTS))
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit the network: {error}") from error
    return denoiser.eval()


def _check_size(folder: Path, config: dict[str, Any]) -> None:
    """Refuse a network that is larger than its weights' file, before memory is taken for it."""
    spec = config.get("network")
    if _is_foreign(spec):
        return  # its code may not work on the meta device
    with open_tensors(folder / WEIGHTS) as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]
    stored = sum(math.prod(shape) for shape in shapes)
    with limit_network(spec, len(shapes), stored), torch.device("meta"):
        network = build_network(_innermost(spec))
    wanted = sum(value.numel() for value in network.state_dict().values())
    if wanted > stored:
        raise ValueError(
            f"{folder / WEIGHTS} does not fit the network: by {CONFIG} that has {wanted} numbers, "
            f"but the file has {stored}"
        )


def _innermost(spec: Any) -> Any:
    """The description of the network inside of conversions."""
    for _ in range(MAX_CONVERSIONS + 1):
        if not isinstance(spec, dict) or spec.get("class") != "Converted":
            return spec
        inner = spec.get("of")
        spec = inner.get("network") if isinstance(inner, dict) else None
    raise ValueError(f"a network is converted more than {MAX_CONVERSIONS} times; convert it once")


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config.json of a model folder; ValueError if it is none."""
    path = model_folder(folder) / CONFIG
    config = read_json(path)
    if config.get("format") != "twosides.model":
        raise ValueError(f"{path} does not describe a twosides model")
    if config.get("version") != 1:
        raise ValueError(f"{path} has version {config.get('version')!r}; this twosides reads 1")
    with blame(path):
        check_notes(config)
    return config


def read_notes(folder: str | Path) -> dict[str, Any]:
    """The notes in config.json beside the notation: recipe, shape, classes, training, ..."""
    config = read_config(folder)
    notation = {"format", "version", "network", "output", "schedule", "time", "logsnr_range"}
    notation |= {"data_mean", "data_std", "kind", "coupling"}
    return {k: v for k, v in config.items() if k not in notation}


def model_folder(folder: str | Path) -> Path:
    """The model inside a run's folder, or the folder itself."""
    folder = Path(folder)
    for candidate in (folder / "model", folder):
        if (candidate / CONFIG).is_file():
            return candidate
    raise FileNotFoundError(
        f"{folder} holds no {CONFIG}: it is not a model folder, or training has not finished"
    )


def _card(config: dict[str, Any]) -> str:
    extra = "\n".join(
        f"- {key}: `{json.dumps(value)}`"
        for key, value in config.items()
        if key not in ("format", "version", "network")
    )
    return (
        "---\nlibrary_name: twosides\ntags: [diffusion, flow-matching]\n---\n\n"
        f"# A {config['output']}-prediction model on {config['schedule']['type']}\n\n"
        f"Network: `{config['network']['class']}`.\n\n{extra}\n\n"
        "```python\nimport twosides as ts\n\ndenoiser = ts.load('.')\n"
        "x = ts.sample(denoiser, shape, sampler='ddim', steps=20)\n```\n"
    )
