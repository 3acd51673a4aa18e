"""How much the config of a model may ask for, whoever has written it."""

import math
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

MAX_NUMBERS = 1 << 28  # of one sample: a gigabyte in float32
MAX_CLASSES = 1_000_000
MAX_WHOLE = 1 << 24  # in a network's config, unless its weights are more
MAX_TENSORS = 4000  # of a network whose weights are not there yet
MAX_CONVERSIONS = 8  # of a network in other notations, one in another


@contextmanager
def bounded(config: Any, tensors: int, numbers: int) -> Generator[None, None, None]:
    """Stop the building of a network that has many more parts than its weights' file has tensors.

    Without memory for weights, ten million layers still take hours and gigabytes. Numbers in the
    config that are larger than any size can be are refused, because some networks make tables of
    such a length at once.

    tensors, numbers: how many the weights' file holds.
    """
    from torch.nn.modules import module as registration  # notes are checked without torch, too

    most, count, thread = 1000 + 20 * tensors, 0, threading.get_ident()
    for number in _numbers(config):
        if abs(number) > max(MAX_WHOLE, numbers):
            raise ValueError(f"a network's config holds {str(number)[:20]}, beyond {MAX_WHOLE}")

    def counted(*registered: object) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > most:
            raise ValueError(f"it has more than {most} layers, for {tensors} tensors of weights")

    hooks = [
        registration.register_module_module_registration_hook(counted),
        registration.register_module_parameter_registration_hook(counted),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _numbers(config: Any) -> Generator[float, None, None]:
    """All finite numbers in a document but seeds, which are no sizes."""
    pending = [config]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending += [value for key, value in item.items() if key != "seed"]
        elif isinstance(item, list | tuple):
            pending += item
        elif isinstance(item, int) or (isinstance(item, float) and math.isfinite(item)):
            yield item


def check_notes(config: dict[str, Any]) -> None:
    """Refuse notes by which samples are drawn and named if they are not what they must be."""
    for name, (check, wanted) in _NOTES.items():
        if name in config and not check(config[name]):
            raise ValueError(f"it says that {name} is {config[name]!r:.60}; that is {wanted}")


def _is_shape(value: Any) -> bool:
    whole = isinstance(value, list) and all(type(size) is int and size > 0 for size in value)
    return whole and len(value) <= 8 and math.prod(value) <= MAX_NUMBERS


def _are_names(value: Any) -> bool:
    return (
        isinstance(value, str | list)
        and len(value) <= MAX_CLASSES
        and all(isinstance(name, str) for name in value)
    )


def _is_null(value: Any) -> bool:
    return isinstance(value, dict) and all(
        type(null) is int and abs(null) < 2**63 for null in value.values()
    )


_NOTES = {
    "shape": (_is_shape, f"whole numbers from 1, whose product is at most {MAX_NUMBERS}"),
    "classes": (_are_names, f"a text or a list of at most {MAX_CLASSES} texts"),
    "null": (_is_null, "an object of whole numbers"),
    **{
        name: (lambda value: isinstance(value, dict), "an object")
        for name in ("network", "training", "pipeline", "ema", "entropic")
    },
}
