"""Files that are either complete or absent, and trees of tensors inside them.

A checkpoint is a folder that appears in one step, so that a process killed at any instant
leaves the previous checkpoint or the next one, never half of one:

    .tmp-step-00000007-4242/  write, manifest.json, flush every file, flush the folder
    step-00000007/            rename, flush the parent folder, only then prune older ones

The manifest holds the size and the SHA-256 of every file: safetensors has no checksum, and a
flipped bit in a weight would otherwise load silently. What is stored is a tree of dicts, lists,
tuples, numbers, strings and tensors; nothing is ever pickled, so loading runs no code.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoints = Checkpoints(folder, keep=2)
    ...     _ = checkpoints.save(7, {"weights": torch.ones(2), "betas": (0.9, 0.99)})
    ...     checkpoints.newest()
    (7, {'weights': tensor([1., 1.]), 'betas': (0.9, 0.99)})
"""

import errno
import glob
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import sys
import warnings
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

if sys.platform != "win32":
    import fcntl

MANIFEST, TREE, TENSORS = "manifest.json", "tree.json", "tensors.safetensors"
SHARDS = "shard-{:05}.safetensors"
MAX_HEADER = 8 << 20
MAX_JSON = 64 << 20
MAX_DEPTH = 64

Tree: TypeAlias = Any
"""None, bool, int, float, str, tensor, or a list, tuple or dict (str or int keys) of trees."""

Records: TypeAlias = dict[str, dict[str, int | str]]
"""What a manifest says of each file: its size and its SHA-256."""

T = TypeVar("T")

_DICTS: dict[type, str] = {
    dict: "dict",
    OrderedDict: "dict",
    defaultdict: "dict",
    Counter: "counter",  # torch's MultiStepLR needs its own back
}
_TENSORS = (Tensor, torch.nn.Parameter, torch.nn.Buffer)
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
_REMEDIES = {
    errno.ENOSPC: "free space on that disk or choose another folder",
    errno.EDQUOT: "free space in your quota or choose another folder",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) or choose another file system",
    errno.EROFS: "choose a folder on a file system that can be written",
    errno.EACCES: "change the permissions of the folder or choose another one",
}


class CorruptFolder(ValueError):
    """A file that is not what was written: `.folder`, `.file` and `.reason` say which and why."""

    def __init__(self, folder: Path, file: str, reason: str) -> None:
        """The message is the file's path followed by the reason."""
        super().__init__(folder, file, reason)
        self.folder, self.file, self.reason = folder, file, reason

    def __str__(self) -> str:
        """The file's path and what is wrong with it."""
        return f"{self.folder / self.file} {self.reason}"


# --- Durable files and folders ---------------------------------------------------------------


def write_file(path: str | Path, data: bytes) -> None:
    """Replace the file at `path` by `data`, completely or not at all, and flush it to the disk.

    Folders that lead there are made.
    """
    path = Path(path).absolute()
    temporary = _beside(path, "tmp")
    with _explained("file", path):
        _make_folder(path.parent)
        try:
            _write(temporary, [data])
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def commit_folder(path: str | Path, write: Callable[[Path], Records | None]) -> None:
    """Make the folder `path` out of the files that `write(folder)` puts into a temporary one.

    The folder appears complete, with its manifest and flushed to the disk, or not at all: an
    error leaves what was there. A folder that is replaced steps aside as `.old-<name>-<pid>`
    until the new one stands in its place; `recover` brings it back after a kill in between.
    `write` may return the records of files that are flushed already, by other processes too.
    """
    path = Path(path).absolute()
    with _explained("folder", path):
        _make_folder(path.parent)
        with _lock(path.parent, wait=True):
            _recover(path)
            _refuse_file(path)
            temporary = _beside(path, "tmp")
            try:
                os.mkdir(temporary)
                _seal(temporary, write(temporary) or {})
                _swap(temporary, path)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise


def verify_folder(path: str | Path) -> None:
    """Check every file of a committed folder against its manifest; raise `CorruptFolder`."""
    folder = Path(path).absolute()
    if not folder.is_dir():
        recover(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, f"{folder} is not a folder; pass one that commit_folder has written"
        )
    manifest = _read_manifest(folder)
    found = {entry.name: entry for entry in os.scandir(folder) if entry.name != MANIFEST}
    for name in sorted(manifest.keys() | found.keys()):
        if name not in found:
            raise CorruptFolder(folder, name, "is missing")
        if name not in manifest or not found[name].is_file(follow_symlinks=False):
            raise CorruptFolder(folder, name, f"is not a file that {MANIFEST} lists")
        _verify_file(folder, name, manifest[name])


def remove_folder(path: str | Path) -> None:
    """Remove a committed folder so that a kill on the way leaves no half of it in its place."""
    path = Path(path).absolute()
    with _lock(path.parent, wait=True):
        temporary = _beside(path, "tmp")
        os.rename(path, temporary)
        shutil.rmtree(temporary)


def recover(path: str | Path) -> None:
    """Undo what a killed `commit_folder(path)` left, unless one is at work there now.

    The folder that was being replaced comes back if the new one did not get into its place.
    """
    path = Path(path).absolute()
    with suppress(OSError), _lock(path.parent, wait=False) as free:
        if free:
            _recover(path)


def _recover(path: Path) -> None:
    for old in _leftovers(path, "old"):
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, path)
    for temporary in _leftovers(path, "tmp"):
        shutil.rmtree(temporary, ignore_errors=True)


def _leftovers(path: Path, kind: str) -> list[Path]:
    candidates = path.parent.glob(f".{kind}-{glob.escape(path.name)}-*")
    return [c for c in candidates if re.fullmatch(r"\d+", c.name[len(path.name) + 6 :])]


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{kind}-{path.name}-{os.getpid()}")


def _swap(new: Path, path: Path) -> None:
    old = _beside(path, "old")
    replaced = path.exists()
    if replaced:
        os.rename(path, old)
    try:
        os.rename(new, path)
        _flush(path.parent)
    except BaseException:
        if not new.exists():
            os.rename(path, new)
        if replaced:
            os.rename(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _seal(folder: Path, known: Records) -> None:
    manifest: Records = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not entry.is_file(follow_symlinks=False) or entry.name == MANIFEST:
            raise ValueError(f"{entry.path} cannot be committed; write plain files only")
        manifest[entry.name] = known.get(entry.name) or _record(Path(entry.path))
    _write(folder / MANIFEST, [json.dumps(manifest, indent=1).encode()])
    _flush(folder / MANIFEST)
    _flush(folder)


def _record(path: Path) -> dict[str, int | str]:
    """Size and checksum of a file, which is flushed to the disk."""
    _flush(path)
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def _verify_file(folder: Path, name: str, record: dict[str, Any]) -> None:
    size = (folder / name).stat().st_size
    if size != record["size"]:
        raise CorruptFolder(folder, name, f"has {size} bytes, {MANIFEST} says {record['size']}")
    if _sha256(folder / name) != record["sha256"]:
        raise CorruptFolder(folder, name, f"was changed: its SHA-256 is not that in {MANIFEST}")


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    manifest = read_json(folder / MANIFEST)
    try:
        if all(record.keys() == {"size", "sha256"} for record in manifest.values()):
            return manifest
    except AttributeError:
        pass
    raise CorruptFolder(folder, MANIFEST, "does not map names to a size and a SHA-256")


def read_json(path: Path) -> dict[str, Tree]:
    """A JSON object in a file of finite numbers and modest depth; `CorruptFolder` if it is none.

    JSON is the only text format that is read: it has no references to expand.
    """
    folder, name = path.absolute().parent, path.name
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_JSON + 1)
        if len(data) > MAX_JSON:
            raise ValueError(f"it is longer than {MAX_JSON} bytes")
        document = json.loads(data, parse_constant=_finite, parse_float=_finite)
        _check_depth(document)
    except FileNotFoundError:
        raise CorruptFolder(folder, name, "is missing") from None
    except (ValueError, RecursionError) as error:
        raise CorruptFolder(folder, name, f"is not readable JSON: {error}") from None
    if not isinstance(document, dict):
        raise CorruptFolder(folder, name, "is not a JSON object")
    return cast(dict[str, Tree], document)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a finite number")
    return value


def _check_depth(document: Tree) -> None:
    layer, depth = [document], 0
    while layer := [
        item
        for node in layer
        if isinstance(node, dict | list)
        for item in cast(Iterable[Tree], node.values() if isinstance(node, dict) else node)
    ]:
        depth += 1
        if depth > 4 * MAX_DEPTH:  # of a tree of MAX_DEPTH, with a tag and a pair for each key
            raise ValueError(f"it is nested deeper than {4 * MAX_DEPTH} levels")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, 0o666)
    try:
        for chunk in chunks:
            rest = memoryview(chunk)  # one call writes 2 GB at most
            while rest:
                rest = rest[os.write(handle, rest) :]
    finally:
        os.close(handle)


def _flush(path: Path) -> None:
    if sys.platform == "win32":  # can flush neither a folder nor a handle for reading
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        with suppress(FileExistsError):
            os.mkdir(folder)
        _flush(folder.parent)


def _refuse_file(path: Path) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ValueError(f"{path} is a file or a link, not a folder; move it away or rename")


@contextmanager
def _lock(folder: Path, *, wait: bool) -> Generator[bool, None, None]:
    """Hold the folder against other writers; yields whether that succeeded.

    The kernel lets go when the process dies, so a lock that can be had means that every
    temporary folder is stale, whatever process ids have been used again since.
    """
    if sys.platform == "win32":
        yield True
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield _locked(handle, wait)
    finally:
        with suppress(OSError):  # not left to close: a forked child may hold the handle too
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _locked(handle: int, wait: bool) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: one writer has to be enough
        return True
    return True


@contextmanager
def _explained(what: str, path: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = _REMEDIES.get(error.errno or 0, "check the disk and the folder")
        message = f"could not write the {what} {path}: {reason}; no half of it was left; {remedy}"
        raise OSError(error.errno, message) from error


# --- Trees of tensors ------------------------------------------------------------------------


def save_tree(folder: str | Path, tree: Tree, rank: int = 0) -> Records:
    """Write a tree, which `load_tree` reads back equal; the records of its files.

    OrderedDict and defaultdict come back as dict; tensors come back contiguous, on the CPU,
    without gradient and without sharing memory. Anything else is a TypeError.

        tree.json                 everything but the tensors
        tensors.safetensors       the tensors
        shard-00003.safetensors   of sharded tensors (DTensors), the rows of process number 3

    All processes that hold shards save the same tree, each with its `rank`, and nothing is
    gathered; what is not sharded is written by rank 0.
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
    """This process's part of a DTensor."""
    if [str(placement) for placement in tensor.placements] not in (["S(0)"], ["Shard(dim=0)"]):
        raise TypeError(f"only tensors sharded by rows can be stored, not by {tensor.placements}")
    return tensor.detach().to_local()


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, gathered if it is sharded: then all processes must ask for it."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


class Rows:
    """A tensor whose rows lie in several files, in their order; `rows[a:b]` reads what it needs."""

    def __init__(self, parts: list[Any]) -> None:
        """From safetensors' slices; ValueError if they are no parts of one tensor."""
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
    """Read what `save_tree` wrote; raise `CorruptFolder` if it is not that.

    Without `copy` the tensors are views of the file, and sharded ones are `Rows`, read when they
    are used: for a reader that takes small parts of them at once and lets go.
    """
    folder = Path(folder).absolute()
    document = read_json(folder / TREE)
    if document.get("format") != "twosides tree" or document.get("version") != 1:
        found = (document.get("format"), document.get("version"))
        raise CorruptFolder(folder, TREE, f"is {found}, this is a reader of ('twosides tree', 1)")
    tensors = _load_shards(folder, load_tensors(folder / TENSORS, copy=copy), copy)
    try:
        tree = _decode(document.get("tree"), tensors)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptFolder(folder, TREE, f"is not a tree: {error!r}") from None
    if tensors:
        raise CorruptFolder(folder, TENSORS, f"has {min(tensors)!r}, which {TREE} does not name")
    return tree


def _load_shards(folder: Path, tensors: dict[str, Tensor], copy: bool) -> dict[str, Tensor | Rows]:
    """`tensors` and those whose rows are in files of several processes."""
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
    if kind is int:  # beyond 2^53 a JSON reader may round, beyond 4300 digits Python refuses
        return value if abs(value) < 2**53 else {"int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if kind in (list, tuple):
        items = [_encode(item, (*path, str(i)), tensors) for i, item in enumerate(value)]
        return items if kind is list else {"tuple": items}
    if kind in _DICTS:
        return {_DICTS[kind]: [_encode_item(key, value[key], path, tensors) for key in value]}
    if (kind in _TENSORS or hasattr(kind, "full_tensor")) and _storable(value):
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


def _storable(tensor: Tensor) -> bool:
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
    return _decode_tagged(tag, body, tensors, depth + 1)


def _decode_tagged(tag: str, body: Tree, tensors: dict[str, Any], depth: int) -> Tree:
    match tag:
        case "tuple":
            return tuple(_decode(item, tensors, depth) for item in body)
        case "dict":
            return {_decode(k, {}): _decode(v, tensors, depth) for k, v in body}
        case "counter":
            return Counter(cast(dict[str, int], _decode_tagged("dict", body, tensors, depth)))
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
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
        if length > min(MAX_HEADER, size - 8):
            reason = f"of {size} bytes claims a header of {length}; at most {MAX_HEADER}"
            raise CorruptFolder(path.parent, path.name, f"{reason} are accepted")
        try:
            json.loads(file.read(length), object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            reason = f"is not a safetensors file: {error}"
            raise CorruptFolder(path.parent, path.name, reason) from None


def _unique(pairs: list[tuple[str, Tree]]) -> dict[str, Tree]:
    """Of a name that is there twice, safetensors takes one in silence."""
    names = Counter(name for name, _ in pairs)
    if len(names) < len(pairs):
        raise ValueError(f"{names.most_common(1)[0][0]!r} is there twice")
    return dict(pairs)


# --- Checkpoints -----------------------------------------------------------------------------


class Checkpoints:
    """The checkpoints of one run: `root/step-00001234/`, the newest `keep` good ones.

    One process writes, any number may read. `newest` skips a damaged checkpoint with a warning
    that names it, and raises if none is good: a run never starts from nothing in silence.
    """

    def __init__(self, root: str | Path, keep: int = 2) -> None:
        """`root` is made by the first `save`; `keep` is at least 2."""
        if keep < 2:
            raise ValueError(f"keep={keep} was asked; keep at least 2, one may turn out damaged")
        self.root, self.keep = Path(root).absolute(), keep
        self._good: set[Path] = set()

    def folder(self, step: int) -> Path:
        """Where the checkpoint of this step is or would be."""
        if step < 0:
            raise ValueError(f"step {step} was asked; steps count from 0")
        return self.root / f"step-{step:08d}"

    def save(self, step: int, tree: Tree) -> Path:
        """Commit the tree as the checkpoint of this step, prune older ones, return its folder."""
        folder = self.folder(step)
        commit_folder(folder, lambda temporary: save_tree(temporary, tree))
        self.prune(step)
        return folder

    def newest(self) -> tuple[int, Tree] | None:
        """The newest good checkpoint as (step, tree), or None if there is none at all."""
        return self._first_good(load_tree)

    def newest_folder(self) -> Path | None:
        """The folder of the newest good checkpoint, or None if there is none at all."""
        found = self._first_good(lambda folder: folder)
        return found and found[1]

    def prune(self, step: int) -> None:
        """Remove what is older than `keep` good checkpoints, the just committed `step` included."""
        self._good.add(self.folder(step))
        self._tidy()
        good = 0
        for found, folder in self._present():
            if good >= self.keep:
                self._discard(folder)
            elif found <= step:
                good += self._is_good(folder)

    def _first_good(self, read: Callable[[Path], T]) -> tuple[int, T] | None:
        self._tidy()
        reasons: list[str] = []
        for step, folder in self._present():
            try:
                verify_folder(folder)
                return step, read(folder)
            except (CorruptFolder, OSError) as error:
                warnings.warn(f"skipped the checkpoint {folder}: {error}", stacklevel=3)
                reasons.append(f"\n  {error}")
        if reasons:
            found = f"has {len(reasons)} checkpoints and none is good:{''.join(reasons)}\n"
            raise CorruptFolder(self.root, "", f"{found}restore one, or move them away to restart")
        return None

    def _present(self) -> list[tuple[int, Path]]:
        """Newest first; what steps aside for a replacement counts while that is not in place."""
        if not self.root.is_dir():
            return []
        found: dict[int, Path] = {}
        for name in sorted(os.listdir(self.root)):  # ".old-" before "step-"
            if match := re.fullmatch(r"\.old-step-(\d{8,})-\d+|step-(\d{8,})", name):
                found[int(match[1] or match[2])] = self.root / name
        return sorted(found.items(), reverse=True)

    def _tidy(self) -> None:
        names = os.listdir(self.root) if self.root.is_dir() else []
        matches = [re.fullmatch(r"\.(?:tmp|old)-(step-\d{8,})-\d+", name) for name in names]
        for name in {match[1] for match in matches if match}:
            recover(self.root / name)

    def _is_good(self, folder: Path) -> bool:
        if folder not in self._good:
            try:
                verify_folder(folder)
            except (CorruptFolder, OSError):
                return False
            self._good.add(folder)
        return True

    def _discard(self, folder: Path) -> None:
        self._good.discard(folder)
        try:
            remove_folder(folder)
        except OSError as error:
            warnings.warn(f"could not prune {folder}: {error}; remove it by hand", stacklevel=4)
