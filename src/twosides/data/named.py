"""Data by name: "folder:photos?size=64,flip", "tar:shards/{000..009}.tar".

A name is a kind, a path, and options after a question mark: `option=value`, or `option` alone for
true. The kinds are the rows of `SOURCES`; the options of a kind are its function's parameters, and
of a parameter that is a dataclass, its fields.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twosides.data.arrays import TORCH, array, task_of
from twosides.data.decode import Frame
from twosides.data.glyphs import Glyphs
from twosides.data.huggingface import Columns, Rows, Stream
from twosides.data.images import Folder, Images
from twosides.data.stored import ARRAYS
from twosides.data.tasks import Points, Task, hold_out, unet, widths
from twosides.naming import unknown
from twosides.oracle import GaussianMixture
from twosides.storage.trust import import_object

if TYPE_CHECKING:
    from twosides.data.latents import Latents


def folder(
    path: str,
    *,
    frame: Frame = Frame(),
    flip: bool = False,
    labels: bool = True,
    max_bad: float = 0.1,
) -> Task:
    """Images in a folder, with the subfolders as their classes.

    path: the folder.
    frame: the form in which images are read: size= and grey= in a name.
    flip: whether to add the mirror images.
    labels: whether images have classes.
    max_bad: the share of images that may be damaged.
    """
    files = Folder(Path(path), labels)
    return _pictures(Images(files, frame, flip=flip, max_bad=max_bad))


def tar(
    path: str,
    *,
    frame: Frame = Frame(),
    flip: bool = False,
    labels: bool = True,
    ignore: str = "",
    max_bad: float = 0.1,
) -> Task:
    """Samples in tar files.

    path: a path with `*` and braces, see `Tars`.
    ignore: the extensions of members to leave out, joined by +.
    frame, flip, labels, max_bad: see `folder`.
    """
    from twosides.data.tars import Tars

    files = Tars(path, labels, tuple(filter(None, ignore.split("+"))))
    return _pictures(Images(files, frame, flip=flip, max_bad=max_bad))


def hf(
    path: str,
    *,
    frame: Frame = Frame(),
    columns: Columns = Columns(),
    flip: bool = False,
    stream: bool = False,
    seed: int = 0,
    max_bad: float = 0.1,
) -> Task:
    """A Hugging Face dataset.

    path: a folder, a file, or a name on the hub.
    columns: the columns and the split: image=, label=, text= and split= in a name.
    stream: whether to read in the order of the dataset, without downloading all of it.
    seed: the seed of a stream's order.
    frame, flip, max_bad: see `folder`.
    """
    if stream:
        return _pictures(Stream(path, frame, columns, seed=seed, flip=flip, max_bad=max_bad))
    if seed:
        raise ValueError("seed sets the order of a stream; without stream the training sets it")
    return _pictures(Images(Rows(path, columns), frame, flip=flip, max_bad=max_bad))


def latents(path: str, *, mean: bool = False, seed: int = 0) -> Task:
    """Latents that `twosides encode-latents` wrote.

    path: their folder.
    mean: whether to take the mean of each posterior in place of a draw.
    seed: the seed of the draws.
    """
    from twosides.data.latents import Latents

    data = Latents(path, mean=mean, seed=seed)
    return Task(
        data,
        data.shape,
        _small(data),
        "1000t",
        data.classes,
        data.null or _null(data.classes),
        moments=(data.data_mean, data.data_std),
        pipeline=data.pipeline,
    )


_TOKENS, _POOLED, _SIZES = (
    "encoder_hidden_states",
    "added_cond_kwargs.text_embeds",
    "added_cond_kwargs.time_ids",
)


def _small(data: Latents) -> dict[str, Any]:
    """A small UNet with the conditioning of Stable Diffusion or XL; {} for other conditioning."""
    (channels, size, _), null = data.shape, data.null
    wide = {name: value.shape[-1] for name, value in null.items()}
    network = unet(size, widths(size), len(data.classes), channels, wide.get(_TOKENS, 0))
    if {_POOLED, _SIZES} <= wide.keys():
        network["config"] |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 32,
            "projection_class_embeddings_input_dim": wide[_POOLED] + 32 * wide[_SIZES],
        }
    known = {_TOKENS, _POOLED, _SIZES, "encoder_attention_mask"}
    return network if wide.keys() <= known else {}


SOURCES: dict[str, Callable[..., Task]] = {
    "folder": folder,
    "tar": tar,
    "hf": hf,
    "latents": latents,
    "array": array,
}
GENERAL: dict[str, Any] = {"holdout": 0.0}
"""Options of every kind. holdout: rows kept for validation, a share below 1 or a number."""


def source_named(name: str) -> Task:
    """The task of a name such as "folder:photos?size=64"; ValueError for an unknown one."""
    kind, _, rest = name.partition(":")
    if kind not in SOURCES:
        raise unknown("kind of data", kind, SOURCES)
    path, _, words = rest.rpartition("?") if "?" in rest else (rest, "", "")
    options = _options(kind, words)
    share = options.pop("holdout", 0.0)
    task = SOURCES[kind](str(Path(path).expanduser()), **_arguments(kind, options))
    return hold_out(task, share) if share else task


def options_of(kind: str) -> dict[str, Any]:
    """The options of a kind of data, with their defaults."""
    options = dict[str, Any]()
    for name, default in _parameters(kind).items():
        options |= vars(default) if is_dataclass(default) else {name: default}
    return options | GENERAL


def _parameters(kind: str) -> dict[str, Any]:
    parameters = inspect.signature(SOURCES[kind]).parameters
    return {name: p.default for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def _arguments(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """The function's arguments, of options that were given."""
    arguments = dict[str, Any]()
    for name, default in _parameters(kind).items():
        if is_dataclass(default) and not isinstance(default, type):
            fields = {option: given[option] for option in vars(default).keys() & given.keys()}
            arguments[name] = replace(default, **fields)
        elif name in given:
            arguments[name] = given[name]
    return arguments


def _options(kind: str, words: str) -> dict[str, Any]:
    known, given = options_of(kind), dict[str, Any]()
    for word in filter(None, words.split(",")):
        name, equals, value = word.partition("=")
        if name not in known:
            raise unknown(f"option of {kind}:", name, known)
        if name in given:
            raise ValueError(f"the option {name} is given twice: {words!r}")
        given[name] = _value(name, value if equals else "true", type(known[name]))
    return given


def _value(name: str, text: str, kind: type[Any]) -> Any:
    words = {"true": True, "false": False}
    try:
        return words[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        wanted = "true or false" if kind is bool else f"of type {kind.__name__}"
        raise ValueError(f"the option {name} is {wanted}, got {text!r}") from None


def _pictures(data: Any) -> Task:
    """The task of images, with the small network that suits their size."""
    frame: Frame = data.frame
    network = unet(frame.size, widths(frame.size), len(data.classes), frame.shape[0])
    return Task(data, frame.shape, network, "1000t", data.classes, _null(data.classes))


def _null(classes: tuple[str, ...]) -> dict[str, Any]:
    return {"class_labels": len(classes)} if classes else {}


def _glyphs(size: int, channels: tuple[int, ...]) -> Task:
    data = Glyphs(size)
    classes = data.classes
    network = unet(size, channels, len(classes))
    null = {"class_labels": len(classes)}
    validation = functools.partial(Glyphs, size, 1040, split="validation")
    return Task(data, (1, size, size), network, "1000t", classes, null, validation)


def _ring() -> Task:
    data = Points(GaussianMixture.ring(8).sample(20_000, seed=0).float())
    return Task(data, (2,), {"class": "MLP", "config": {"dim": 2}})


TASKS: dict[str, Callable[[], Task]] = {
    "glyphs": lambda: _glyphs(16, (32, 64)),
    "glyphs-32": lambda: _glyphs(32, (32, 64, 64)),
    "ring": _ring,
}


def task_named(name: str) -> Task:
    """The task of a name: a row of TASKS, data as in `source_named`, or an import path.

    name: such as "glyphs", "folder:photos?size=64", or "package.module:function" of a function that
        returns a Task.
    """
    if name in TASKS:
        return TASKS[name]()
    if name.partition(":")[0] in SOURCES:
        return source_named(name)
    file = Path(name.partition("?")[0])
    if file.suffix.lower() in (*ARRAYS, *TORCH) and (":" not in name or file.exists()):
        return source_named(f"array:{name}")
    if file.is_dir():
        raise ValueError(
            f"{name} is a folder; say of what: folder:{name} of pictures, or array:{name}"
        )
    kinds = [*TASKS, *(f"{kind}:..." for kind in SOURCES)]
    module, _, function = name.partition(":")
    path = all(part.isidentifier() for part in [*module.split("."), function])
    if not path or module.split(".")[0] in sys.stdlib_module_names:
        kinds.append("package.module:function")
        raise unknown("data set" if ":" not in name else "kind of data", name, kinds)
    try:
        make = import_object(name, "data set", trust_code=True)  # the user has typed it
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        known = unknown("kind of data", name, kinds)
        raise ValueError(f"{known}; and there is no module {error.name} here") from None
    if make is None:
        raise ValueError(f"{module} has no function {function!r} that returns a Task, or data")
    made = make()
    return made if isinstance(made, Task) else task_of(made)
