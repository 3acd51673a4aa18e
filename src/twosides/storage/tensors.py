"""Tensors in one safetensors file; its header is checked before anything is read."""

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
    """The tensor itself, gathered if it is sharded: then all processes must ask for it."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    header: dict[str, Tree] = {"__metadata__": {"format": "pt"}}  # which transformers ask for
    end = 0
    for name, tensor in _aligned(tensors):
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


def _aligned(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Widest elements first, so that each tensor starts at a multiple of its element size."""
    return sorted(tensors.items(), key=lambda item: -item[1].element_size())


def _chunks(header: bytes, tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The file piece by piece.

    safetensors' own writer hides the errno of a full disk and its `save` doubles the memory.
    """
    yield len(header).to_bytes(8, "little")
    yield header
    for _, tensor in _aligned(tensors):
        if tensor.numel():
            plain = whole(tensor.detach()).resolve_conj().resolve_neg().cpu().contiguous()
            yield plain.reshape(-1).view(torch.uint8).numpy().data


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a safetensors file and flush it."""
    _write(Path(path), _chunks(_header(tensors), tensors))


def help_save_tensors(parts: Iterable[Mapping[str, Tensor]]) -> None:
    """The part of the other processes while one of them saves the same sharded tensors.

    `save_tensors` gathers DTensors one at a time, and all who hold shards must take part. The
    writer holds one whole tensor at a time, and nobody holds them all.
    """
    for tensors in parts:
        for _, tensor in _aligned(tensors):
            if tensor.numel():
                whole(tensor.detach())


def load_tensors(path: str | Path, *, copy: bool = True) -> dict[str, Tensor]:
    """Read a safetensors file; `CorruptFolder` names what is wrong with it."""
    with open_tensors(path) as file:
        # cloned, because the tensors are views of the file and would change and end with it
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        return {name: t.clone() for name, t in tensors.items()} if copy else tensors


def open_tensors(path: str | Path) -> Any:
    """safetensors' `safe_open` of a file whose header is of modest length; `CorruptFolder`."""
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
    """Parsing a header takes time and memory in proportion to the length that it claims."""
    with open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
        if length > min(MAX_HEADER, size - 8):
            reason = f"of {size} bytes claims a header of {length}; at most {MAX_HEADER}"
            raise CorruptFolder(path.parent, path.name, f"{reason} are accepted")
        try:
            header = json.loads(file.read(length), object_pairs_hook=unique)
            entries = [header[name]["data_offsets"][1] for name in header if name != "__metadata__"]
            if (whole := 8 + length + max(entries, default=0)) != size:  # before it is mapped
                raise ValueError(f"it has {size} bytes, its header says {whole}")
        except (ValueError, RecursionError, TypeError, LookupError) as error:
            reason = f"is not a safetensors file: {error}"
            raise CorruptFolder(path.parent, path.name, reason) from None
