"""Trees, nested dictionaries and lists with tensors in them, as a JSON file and safetensors."""

import itertools
import json
import math
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from twosides.storage.files import TENSORS, TREE, Records, _record, _write
from twosides.storage.reading import MAX_DEPTH, MAX_JSON, CorruptFolder, Tree, read_json
from twosides.storage.tensors import _DTYPES, load_tensors, open_tensors, save_tensors

SHARDS = "shard-{:05}.safetensors"


_DICTS: dict[type, str] = {
    dict: "dict",
    OrderedDict: "dict",
    defaultdict: "dict",
    Counter: "counter",  # torch's MultiStepLR needs a Counter again
}


_TENSORS = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


def save_tree(folder: str | Path, tree: Tree, rank: int = 0) -> Records:
    """Write a tree, which `load_tree` reads back equal; return the records of its files.

        tree.json                 everything but the tensors
        tensors.safetensors       the tensors
        shard-00003.safetensors   the rows of sharded tensors (DTensors) of process number 3

    OrderedDict and defaultdict come back as dict; tensors come back contiguous, on the CPU, without
    gradient and without sharing memory. Anything else is a TypeError. Nothing is gathered: all
    processes with shards save the same tree.

    folder: the folder, which is made if it is missing.
    tree: None, bool, int, float, str, tensors, and lists, tuples and dicts of these.
    rank: the number of this process; process 0 writes the parts that are not sharded.
    """
    tensors: dict[str, Tensor] = {}
    node = _encode(tree, (), tensors)
    document = {"format": "twosides tree", "version": 1, "tree": node}
    data = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    if len(data) > MAX_JSON:
        raise ValueError(
            f"the tree without its tensors takes {len(data)} bytes of JSON, more than {MAX_JSON}; "
            "store long lists of numbers as tensors"
        )
    folder, written = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    if shards := {name: _rows_of(t) for name, t in tensors.items() if hasattr(t, "to_local")}:
        written.append(folder / SHARDS.format(rank))
        save_tensors(written[-1], shards)
    if rank == 0:
        written += [folder / TENSORS, folder / TREE]
        save_tensors(folder / TENSORS, {n: t for n, t in tensors.items() if n not in shards})
        _write(folder / TREE, [data])
    return {path.name: _record(path) for path in written}


def _rows_of(tensor: Any) -> Tensor:
    """The part of a DTensor that this process has."""
    if [str(placement) for placement in tensor.placements] not in (["S(0)"], ["Shard(dim=0)"]):
        raise TypeError(f"only tensors sharded by rows can be stored, not by {tensor.placements}")
    return tensor.detach().to_local()


class Rows:
    """A tensor whose rows are in several files, in their order; `rows[a:b]` reads what it needs."""

    def __init__(self, parts: list[Any]) -> None:
        """Join slices of safetensors; ValueError if they are no parts of one tensor."""
        self.parts, shapes = parts, [part.get_shape() for part in parts]
        kinds = {(part.get_dtype(), *shape[1:]) for part, shape in zip(parts, shapes, strict=True)}
        if len(kinds) > 1 or not all(shapes):
            raise ValueError(f"shards of shapes {shapes} and kinds {kinds} are not of one tensor")
        self.ends = list(itertools.accumulate(shape[0] for shape in shapes))
        self.shape = torch.Size([self.ends[-1], *shapes[0][1:]])

    def __deepcopy__(self, memo: object) -> "Rows":
        return self  # files do not change

    def __getitem__(self, rows: slice) -> Tensor:
        """The rows of a slice without a step."""
        start, stop, _ = rows.indices(self.shape[0])
        begins = [0, *self.ends]
        cuts = [
            part[max(start - begin, 0) : stop - begin]
            for part, begin, end in zip(self.parts, begins, self.ends, strict=False)
            if start < end and begin < stop
        ]
        return torch.cat(cuts or [self.parts[0][0:0]])


def load_tree(folder: str | Path, *, copy: bool = True) -> Tree:
    """Read the tree that `save_tree` wrote; `CorruptFolder` if it is not that.

    folder: the folder.
    copy: whether to copy the tensors into memory. Without, they are views of the file, and sharded
        ones are `Rows`, which are read when they are used: for a reader that takes small parts of
        them at once.
    """
    folder = Path(folder).absolute()
    document = read_json(folder / TREE, MAX_JSON)
    if document.get("format") != "twosides tree" or document.get("version") != 1:
        found = (document.get("format"), document.get("version"))
        raise CorruptFolder(folder, TREE, f"is {found}, but ('twosides tree', 1) is read here")
    tensors = _load_shards(folder, load_tensors(folder / TENSORS, copy=copy), copy)
    try:
        tree = _decode(document.get("tree"), tensors)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptFolder(folder, TREE, f"is not a tree: {error!r}") from None
    if tensors:
        raise CorruptFolder(folder, TENSORS, f"has {min(tensors)!r}, which {TREE} does not name")
    return tree


def _load_shards(folder: Path, tensors: dict[str, Tensor], copy: bool) -> dict[str, Tensor | Rows]:
    """The tensors, with those whose rows are in the files of several processes."""
    found: dict[str, Tensor | Rows] = {**tensors}
    parts: defaultdict[str, list[Any]] = defaultdict(list)
    for rank in itertools.count():
        path = folder / SHARDS.format(rank)
        if not path.exists():
            break
        file = open_tensors(path)
        for name in file.keys():
            parts[name].append(file.get_slice(name))
    for name, slices in parts.items():
        try:
            rows = Rows(slices)
        except ValueError as error:
            raise CorruptFolder(folder, SHARDS.format(0), f"has {name!r}: {error}") from None
        if name in found:
            raise CorruptFolder(folder, SHARDS.format(0), f"has {name!r}, as has {TENSORS}")
        found[name] = rows[:] if copy else rows
    return found


def _encode(value: Tree, path: tuple[str, ...], tensors: dict[str, Tensor]) -> Tree:
    if len(path) > MAX_DEPTH:
        raise ValueError(f"{'/'.join(path)} is nested deeper than {MAX_DEPTH} levels; flatten it")
    kind = cast(Any, type(value))
    if value is None or kind in (bool, str):
        return value
    if kind is int:  # a JSON reader may round beyond 2^53, and Python refuses beyond 4300 digits
        return value if abs(value) < 2**53 else {"int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if kind in (list, tuple):
        items = [_encode(item, (*path, str(i)), tensors) for i, item in enumerate(value)]
        return items if kind is list else {"tuple": items}
    if kind in _DICTS:
        return {_DICTS[kind]: [_encode_item(key, value[key], path, tensors) for key in value]}
    if (kind in _TENSORS or hasattr(kind, "full_tensor")) and _can_store(value):
        name = _put(value, path, tensors)
        return {"sharded": [name, len(value)]} if hasattr(kind, "to_local") else {"tensor": name}
    raise TypeError(_refusal(value, path))


def _encode_item(key: Tree, value: Tree, path: tuple[str, ...], tensors: dict[str, Tensor]) -> Tree:
    if type(key) not in (str, int):
        raise TypeError(
            f"{'/'.join(path) or 'the tree'} has the key {key!r}, a {type(key).__name__}; "
            "only str and int keys can be stored"
        )
    return [_encode(key, path, tensors), _encode(value, (*path, str(key)), tensors)]


def _can_store(tensor: Tensor) -> bool:
    dense = tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_nested
    return dense and tensor.dtype in _DTYPES


def _refusal(value: Tree, path: tuple[str, ...]) -> str:
    kind = type(value).__name__
    if isinstance(value, Tensor):
        kind += f" of {value.dtype}, {value.layout}, on {value.device}"
    return (
        f"{'/'.join(path) or 'the tree'} is a {kind}; only None, bool, int, float, str, "
        "dense tensors, and lists, tuples and dicts of these can be stored"
    )


def _put(tensor: Tensor, path: tuple[str, ...], tensors: dict[str, Tensor]) -> str:
    name = base = "/".join(path).encode(errors="replace").decode()
    while name in tensors or name in ("", "__metadata__"):
        name = f"{base}#{len(tensors)}" if name == base else name + "#"
    tensors[name] = tensor
    return name


def _decode(node: Tree, tensors: dict[str, Any], depth: int = 0) -> Tree:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(node, list):
        return [_decode(item, tensors, depth + 1) for item in cast(list[Tree], node)]
    if not isinstance(node, dict):
        return node
    ((tag, body),) = cast(dict[str, Tree], node).items()
    return _decode_tag(tag, body, tensors, depth + 1)


def _decode_tag(tag: str, body: Tree, tensors: dict[str, Any], depth: int) -> Tree:
    match tag:
        case "tuple":
            return tuple(_decode(item, tensors, depth) for item in body)
        case "dict":
            return {_decode(k, {}): _decode(v, tensors, depth) for k, v in body}
        case "counter":
            return Counter(cast(dict[str, int], _decode_tag("dict", body, tensors, depth)))
        case "int":
            return int(body, 16)
        case "float":
            return float(body)
        case "tensor":
            return tensors.pop(body)
        case "sharded":
            name, rows = body
            if tensors[name].shape[:1] != (rows,):
                raise ValueError(f"{name!r} has shape {[*tensors[name].shape]}, not {rows} rows")
            return tensors.pop(name)
        case _:
            raise ValueError(f"unknown tag {tag!r}")
