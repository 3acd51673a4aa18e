"""A device without float64, as Apple's MPS is one, pretended on the CPU.

    with pretended():
        network.to(DEVICE)

Tensors there say that their device is "meta", but hold numbers. An operation that would make one of
float64 raises, and so does one that mixes them with tensors of the CPU, but for plain numbers.
`torch.tensor(..., device=DEVICE)` alone makes one without numbers: make it here and move it there.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
_WIDE = (torch.float64, torch.complex128)
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class There(torch.Tensor):
    """A tensor on the device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        self = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=DEVICE,
        )  # fmt: skip
        self.inner = inner
        return self

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        return _run(function, arguments, options or {})

    def __repr__(self, **_):
        return f"There({self.inner})"


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return _run(function, arguments, options or {})


def _run(function, arguments, options):
    values = [v for v in tree_flatten((arguments, options))[0] if isinstance(v, torch.Tensor)]
    mine = {id(value.inner): value for value in values if isinstance(value, There)}
    strangers = [v for v in values if not isinstance(v, There) and v.ndim]
    if mine and strangers and function not in _COPIES:
        raise RuntimeError(f"{function} mixes the device with the CPU: {strangers[0].shape}")
    there = bool(mine) and not (
        function is torch.ops.aten.copy_.default and not isinstance(arguments[0], There)
    )
    if options.get("device") is not None:
        there = torch.device(options["device"]).type == DEVICE.type
        options = {**options, "device": "cpu"}

    def inner(value):
        return value.inner if isinstance(value, There) else value

    def outer(value):
        if not there or not isinstance(value, torch.Tensor):
            return value
        if value.dtype in _WIDE:
            raise TypeError(f"{function} makes {value.dtype} of {tuple(value.shape)} there")
        return mine.get(id(value)) if id(value) in mine else There(value)

    return tree_map(outer, function(*tree_map(inner, arguments), **tree_map(inner, options)))


@contextlib.contextmanager
def pretended():
    """With the device."""
    with _Mode():
        yield DEVICE


def here(tensor):
    """The numbers of a tensor, wherever it is."""
    return tensor.inner if isinstance(tensor, There) else tensor
