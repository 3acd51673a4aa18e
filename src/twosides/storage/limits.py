"""Limits on what a model's config may demand, since anybody may have written it."""

import math
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

MAX_NUMBERS = 1 << 28  # the numbers in a sample: a gigabyte in float32
MAX_CLASSES = 1_000_000
MAX_WHOLE = 1 << 24  # the largest number in a network's config, unless it has more weights
MAX_TENSORS = 4000  # the tensors of a network whose weights are not known yet
MAX_CONVERSIONS = 8  # the conversions of a network to other notations, one inside another


@contextmanager
def limit_network(config: Any, tensors: int, numbers: int) -> Generator[None, None, None]:
    """Stop the building of a network that has many more parts than its weights' file has tensors.

    Even without memory for weights, ten million layers take hours and gigabytes. Numbers in the
    config that are larger than any size can be are refused, because some networks make tables of
    such a length at once.

    config: the network's config.
    tensors, numbers: the tensors in the weights' file, and the numbers in them.
    """
    from torch.nn.modules import module as registration  # this file is used without torch, too

    most, count, thread = 1000 + 20 * tensors, 0, threading.get_ident()
    for number in _numbers(config):
        if abs(number) > max(MAX_WHOLE, numbers):
            raise ValueError(f"a network's config has {str(number)[:20]}, beyond {MAX_WHOLE}")

    def count_one(*registered: object) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > most:
            raise ValueError(f"it has more than {most} layers, for {tensors} tensors of weights")

    hooks = [
        registration.register_module_module_registration_hook(count_one),
        registration.register_module_parameter_registration_hook(count_one),
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
    """Refuse a config whose notes have the wrong type; samples are drawn and named by them."""
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
