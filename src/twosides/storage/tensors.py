"""Tensors in one safetensors file, whose header is checked before anything is read."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from twosides.storage.files import _write
from twosides.storage.reading import CorruptFolder, Tree, open_file, unique

MAX_HEADER = 8 << 20


_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, gathered if it is sharded; all processes then have to call this."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    header: dict[str, Tree] = {"__metadata__": {"format": "pt"}}  # transformers requires this
    end = 0
    for name, tensor in _by_width(tensors):
        start, end = end, end + tensor.nbytes
        dtype, shape = _DTYPES[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    data = json.dumps(header, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)
    if len(data) > MAX_HEADER:
        raise ValueError(
            f"the names and shapes of {len(tensors)} tensors take {len(data)} bytes, "
            f"more than the {MAX_HEADER} that load_tree accepts; stack small tensors"
        )
    return data


def _by_width(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """The tensors with the widest elements first, so that each begins at a multiple of them."""
    return sorted(tensors.items(), key=lambda item: -item[1].element_size())


def _chunks(header: bytes, tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The content of the file, piece by piece.

    The writer of safetensors hides the errno of a full disk, and its `save` doubles the memory.
    """
    yield len(header).to_bytes(8, "little")
    yield header
    for _, tensor in _by_width(tensors):
        if tensor.numel():
            plain = whole(tensor.detach()).resolve_conj().resolve_neg().cpu().contiguous()
            yield plain.reshape(-1).view(torch.uint8).numpy().data


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a safetensors file and flush it."""
    _write(Path(path), _chunks(_header(tensors), tensors))


def help_save_tensors(parts: Iterable[Mapping[str, Tensor]]) -> None:
    """Take part, in the other processes, while one process saves the same sharded tensors.

    `save_tensors` gathers DTensors one at a time, and all processes with shards must take part. The
    writer has one whole tensor at a time in memory, and no process has them all.
    """
    for tensors in parts:
        for _, tensor in _by_width(tensors):
            if tensor.numel():
                whole(tensor.detach())


def load_tensors(path: str | Path, *, copy: bool = True) -> dict[str, Tensor]:
    """Read a safetensors file; `CorruptFolder` says what is wrong with it.

    path: the file.
    copy: whether to copy the tensors into memory; without, they are views of the file.
    """
    with open_tensors(path) as file:
        # The tensors are views of the file and would change with it, so they are copied.
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return {name: t.clone() for name, t in tensors.items()} if copy else tensors


def open_tensors(path: str | Path) -> Any:
    """The `safe_open` of safetensors for a file whose header is not long; `CorruptFolder` else."""
    path = Path(path).absolute()
    try:
        _check_header(path)
        return cast(Any, safe_open(path, framework="pt", device="cpu"))
    except FileNotFoundError:
        raise CorruptFolder(path.parent, path.name, "is missing") from None
    except SafetensorError as error:
        reason = f"is not a safetensors file: {error}"
        raise CorruptFolder(path.parent, path.name, reason) from None


def _check_header(path: Path) -> None:
    """Refuse a long header, whose parsing takes time and memory in proportion to its length."""
    with open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
        if length > min(MAX_HEADER, size - 8):
            reason = f"of {size} bytes claims a header of {length}; at most {MAX_HEADER}"
            raise CorruptFolder(path.parent, path.name, f"{reason} are accepted")
        try:
            header = json.loads(file.read(length), object_pairs_hook=unique)
            entries = [header[name]["data_offsets"][1] for name in header if name != "__metadata__"]
            if (total := 8 + length + max(entries, default=0)) != size:
                raise ValueError(f"it has {size} bytes, but {total} by its header")
        except (ValueError, RecursionError, TypeError, LookupError) as error:
            reason = f"is not a safetensors file: {error}"
            raise CorruptFolder(path.parent, path.name, reason) from None
