"""Networks that `torch.compile` has wrapped, trained under their own names.

`torch.compile(network)` is a wrapper (OptimizedModule) whose parameters are called `_orig_mod.…`,
and which has no configuration of its own. Checkpoints, averages and the saved model are those of
the plain network: whether a run is compiled or not, it is the same run.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def plain_names(module: nn.Module) -> Generator[None, None, None]:
    """Replace every compiled wrapper inside of the module by its own network, while within.

    The network is still compiled, as `nn.Module.compile` does it, with the wrapper's options.
    """
    from torch._dynamo import OptimizedModule

    places: list[tuple[nn.Module, str, Any, Any]] = []
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, OptimizedModule):
                plain: Any = child._orig_mod
                places.append((parent, name, child, plain._compiled_call_impl))
                setattr(parent, name, plain)
                plain._compiled_call_impl = child.dynamo_ctx(plain._call_impl)
    try:
        yield
    finally:
        for parent, name, child, before in places:
            child._orig_mod._compiled_call_impl = before
            setattr(parent, name, child)
