import errno
import json
import math
import os
import pickle
import random
import re
import resource
import subprocess
import sys
import tempfile
import warnings
from collections import Counter, OrderedDict, defaultdict, namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from twosides.storage import checkpoints as checkpoints_files
from twosides.storage import files
from twosides.storage import tensors as tensor_files
from twosides.storage import trees as tree_files
from twosides.storage.checkpoints import Checkpoints
from twosides.storage.files import (
    CorruptFolder,
    commit_folder,
    recover,
    remove_folder,
    verify_folder,
    write_file,
)
from twosides.storage.tensors import save_tensors
from twosides.storage.trees import load_tree, save_tree

DTYPES = sorted(tensor_files._DTYPES, key=str)  # pyright: ignore[reportPrivateUsage]


def tree(step: int) -> dict[str, Any]:
    """The last tensor spans a few pages, so that a kill can hit the middle of its write."""
    return {
        "step": step,
        "optimizer": {0: {"betas": (0.9, math.inf)}, 1: [None, True, "x"]},
        "weights": torch.full((3,), float(step), dtype=torch.float64),
        "noise": torch.full((5000,), step, dtype=torch.int32),
    }


def same(a: Any, b: Any) -> bool:
    """Equality that tells apart types, dtypes, the signs of zeros, and takes nan for equal."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        raw = [x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)
    if isinstance(a, dict):
        keys = [(type(k), k) for k in a] == [(type(k), k) for k in b]
        return keys and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# --- Trees -----------------------------------------------------------------------------------


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    width = torch.empty((), dtype=dtype).element_size()
    count = math.prod(shape) * width
    data = draw(st.binary(min_size=count, max_size=count))
    if dtype is torch.bool:
        data = bytes(byte & 1 for byte in data)
    flat = torch.tensor(list(data), dtype=torch.uint8).view(dtype).reshape(shape)
    return flat.mT if len(shape) > 1 and draw(st.booleans()) else flat


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | tensors()
)
keys = st.text(st.characters(), max_size=5) | st.integers()
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(trees)
def test_every_tree_comes_back_equal(value: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_tree(folder, value)
        assert same(load_tree(folder), value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_the_scalar_and_the_empty_tensor(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    value = {
        "scalar": torch.ones((), dtype=torch.float32).to(dtype),
        "empty": torch.empty(0, 2, dtype=dtype),
        "many": torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype),
    }
    save_tree(tmp_path, value)
    assert same(load_tree(tmp_path), value)


def test_views_shared_storage_and_lazy_bits_are_stored_by_value(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    number = torch.tensor([1 + 2j, 3 - 1j])
    value = [
        base,
        base,
        base[:, 1],
        base.T,
        base[0].expand(5, 4),
        number.conj(),
        number.conj().imag,
    ]
    value.append(torch._neg_view(base))  # pyright: ignore
    save_tree(tmp_path, value)
    loaded = load_tree(tmp_path)
    assert all(torch.equal(a, b) and b.is_contiguous() for a, b in zip(value, loaded, strict=True))
    loaded[0].zero_()
    assert torch.equal(loaded[1], base)


def test_a_parameter_comes_back_as_a_plain_tensor(tmp_path: Path) -> None:
    save_tree(tmp_path, torch.nn.Parameter(torch.ones(2)))
    loaded = load_tree(tmp_path)
    assert type(loaded) is Tensor and not loaded.requires_grad


def test_kinds_of_dicts(tmp_path: Path) -> None:
    value = [OrderedDict(b=1, a=2), defaultdict(list, {3: [4]}), Counter({5: 2})]
    save_tree(tmp_path, value)
    assert same(load_tree(tmp_path), [{"b": 1, "a": 2}, {3: [4]}, Counter({5: 2})])


def test_integers_beyond_any_reader(tmp_path: Path) -> None:
    value = [2**53 - 1, 2**53, -(2**64), 10**5000, {2**70: 0}]
    save_tree(tmp_path, value)
    assert load_tree(tmp_path) == value


def test_names_that_could_collide(tmp_path: Path) -> None:
    one = torch.ones(1)
    value = {0: one, "0": one * 2, "a": {"b": one * 3}, "a/b": one * 4, "__metadata__": one * 5}
    value |= {"a/b#2": one * 6, "": one * 7, "\ud800": one * 8, "?": one * 9}
    save_tree(tmp_path, value)
    assert same(load_tree(tmp_path), value)


def test_other_readers_understand_the_tensors(tmp_path: Path) -> None:
    value = {"odd": torch.tensor([1], dtype=torch.uint8), "net": {"w": torch.arange(3.0)}}
    save_tree(tmp_path, value)
    read = load_file(tmp_path / "tensors.safetensors")
    assert same(dict(sorted(read.items())), {"net/w": torch.arange(3.0), "odd": value["odd"]})


def test_tensors_start_at_multiples_of_their_element_size(tmp_path: Path) -> None:
    save_tree(tmp_path, [torch.ones(3).to(dtype) for dtype in DTYPES])
    data = (tmp_path / "tensors.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    for i, entry in header.items():
        assert entry["data_offsets"][0] % DTYPES[int(i)].itemsize == 0


def test_a_loaded_tensor_does_not_depend_on_the_file(tmp_path: Path) -> None:
    save_tree(tmp_path, torch.ones(1000))
    loaded = load_tree(tmp_path)
    with open(tmp_path / "tensors.safetensors", "r+b") as file:
        file.write(bytes(4000))
    assert torch.equal(loaded, torch.ones(1000))


class Foo:
    pass


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"callbacks": {"EMA": {"foo": Foo()}}}, "^callbacks/EMA/foo is a Foo; only"),
        (Foo(), "^the tree is a Foo"),
        ([0, {3: (Foo,)}], "^1/3/0 is a type"),
        ({"a": {1.5: 0}}, "^a has the key 1.5, a float"),
        ({True: 0}, "^the tree has the key True, a bool"),
        ({"a": Pair(1, 2)}, "^a is a Pair"),
        ({"a": {1, 2}}, "^a is a set"),
        ({"a": b"x"}, "^a is a bytes"),
        ({"a": torch.eye(2).to_sparse()}, "^a is a Tensor of torch.float32, torch.sparse_coo"),
        ({"a": torch.empty(2, device="meta")}, "^a is a Tensor of .* on meta"),
        ({"a": torch.ones(1, dtype=torch.complex128)}, "^a is a Tensor of torch.complex128"),
        ({"a": torch.ones(1).numpy()[0]}, "^a is a float32"),
        ({"a": lambda: 0}, "^a is a function"),
    ],
)
def test_anything_else_is_refused_by_its_path(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        commit_folder(tmp_path / "x", lambda folder: save_tree(folder, value))
    assert names(tmp_path) == []


def test_depth_and_sizes_are_capped_when_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(ValueError, match="deeper than 64"):
        save_tree(tmp_path, endless)
    monkeypatch.setattr(tree_files, "MAX_JSON", 100)
    with pytest.raises(ValueError, match="bytes of JSON, more than 100; store long lists"):
        save_tree(tmp_path, ["x" * 100])
    monkeypatch.undo()
    monkeypatch.setattr(tensor_files, "MAX_HEADER", 100)
    with pytest.raises(ValueError, match="more than the 100 that load_tree accepts"):
        save_tree(tmp_path, torch.ones(2).split(1) * 4)
    assert names(tmp_path) == []


# --- Hostile files ---------------------------------------------------------------------------


def hostile(folder: Path, node: object, data: bytes | None = None) -> Path:
    save_tree(folder, {"a": torch.ones(2)})
    document = {"format": "twosides tree", "version": 1, "tree": node}
    (folder / "tree.json").write_text(json.dumps(document))
    if data is not None:
        (folder / "tensors.safetensors").write_bytes(data)
    return folder


@pytest.mark.parametrize(
    "node",
    [
        {},
        {"dict": [["a", {"tensor": "a"}]], "tuple": []},
        {"call": ["os.system", "true"]},
        {"dict": [[["a"], 1]]},
        {"dict": [["a"]]},
        {"dict": 3},
        {"int": "zz"},
        {"int": 5},
        {"float": "one"},
        {"tensor": "b"},
        {"tensor": ["a"]},
        {"sharded": "a"},
        {"sharded": ["a", 10**6]},
        {"sharded": [["a"], 1]},
        [{"tensor": "a"}, {"tensor": "a"}],
        "the tensor is not used",
    ],
    ids=str,
)
def test_a_tree_that_is_none_is_corrupt(tmp_path: Path, node: object) -> None:
    with pytest.raises(CorruptFolder) as caught:
        load_tree(hostile(tmp_path, node))
    assert caught.value.folder == tmp_path
    assert caught.value.file in ("tree.json", "tensors.safetensors")


def sharded(folder: Path, *parts: dict[str, torch.Tensor], rows: int = 7) -> Path:
    """A tree with "a" in shards, as several processes write it."""
    hostile(folder, {"dict": [["w", {"tensor": "w"}], ["a", {"sharded": ["a", rows]}]]})
    save_tensors(folder / "tensors.safetensors", {"w": torch.ones(3)})
    for rank, part in enumerate(parts):
        save_tensors(folder / f"shard-{rank:05}.safetensors", part)
    return folder


WHOLE = torch.arange(14.0).reshape(7, 2)
CUTS = ((0, 3), (3, 6), (6, 7), (7, 7))  # as four processes share seven rows


def test_shards_are_read_whole_or_by_rows(tmp_path: Path) -> None:
    sharded(tmp_path, *({"a": WHOLE[a:b].clone()} for a, b in CUTS))
    tree = load_tree(tmp_path)
    assert torch.equal(tree["a"], WHOLE) and torch.equal(tree["w"], torch.ones(3))
    lazy = load_tree(tmp_path, copy=False)["a"]
    assert not isinstance(lazy, torch.Tensor) and lazy.shape == WHOLE.shape
    for start in range(8):
        for stop in range(8):
            assert torch.equal(lazy[start:stop], WHOLE[start:stop]), (start, stop)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([{"a": WHOLE[:3].clone()}], "has shape [3, 2], not 7 rows"),
        ([], "is not a tree: KeyError('a')"),
        ([{"a": WHOLE[:3].clone()}, {"a": torch.ones(4, 3)}], "are not of one tensor"),
        ([{"a": WHOLE[:3].clone()}, {"a": WHOLE[3:].double()}], "are not of one tensor"),
        ([{"a": torch.tensor(1.0)}], "are not of one tensor"),
        ([{"a": WHOLE, "w": WHOLE}], "has 'w', as has tensors.safetensors"),
        ([{"a": WHOLE, "b": WHOLE}], "has 'b', which tree.json does not name"),
    ],
)
def test_shards_that_do_not_fit_are_corrupt(
    tmp_path: Path, parts: list[dict[str, torch.Tensor]], reason: str
) -> None:
    for copy in (True, False):
        with pytest.raises(CorruptFolder, match=re.escape(reason)):
            load_tree(sharded(tmp_path, *parts), copy=copy)


@pytest.mark.parametrize("depth", [70, 5_000, 1_000_000])
def test_deep_json_is_refused(tmp_path: Path, depth: int) -> None:
    save_tree(tmp_path, {})
    text = '{"format": "twosides tree", "version": 1, "tree": ' + "[" * depth + "]" * depth + "}"
    (tmp_path / "tree.json").write_text(text)
    with pytest.raises(CorruptFolder, match=r"tree\.json"):
        load_tree(tmp_path)


@pytest.mark.parametrize("text", [b"", b"\xff", b"[]", b"{}", b'{"format": "twosides tree"}', b"3"])
def test_other_json_is_refused(tmp_path: Path, text: bytes) -> None:
    save_tree(tmp_path, {})
    (tmp_path / "tree.json").write_bytes(text)
    with pytest.raises(CorruptFolder, match=r"tree\.json"):
        load_tree(tmp_path)
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(CorruptFolder):
        verify_folder(tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    save_tree(tmp_path, {})
    text = (tmp_path / "tree.json").read_text()
    (tmp_path / "tree.json").write_text(text.replace('"version":1', '"version":2'))
    with pytest.raises(
        CorruptFolder, match=r"is \('twosides tree', 2\), but \('twosides tree', 1\) is read"
    ):
        load_tree(tmp_path)


def test_long_json_is_refused_before_parsing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tree(tmp_path, ["x" * 1000])
    monkeypatch.setattr(tree_files, "MAX_JSON", 1000)
    monkeypatch.setattr(json, "loads", None)
    with pytest.raises(CorruptFolder, match="at most 1000 are read"):
        load_tree(tmp_path)


@pytest.mark.parametrize("length", [(8 << 20) + 1, 100_000_000, 2**63, 2**64 - 1])
def test_a_long_header_is_refused_before_parsing(
    tmp_path: Path, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile(tmp_path, None, length.to_bytes(8, "little"))
    if length < 2**30:
        os.truncate(tmp_path / "tensors.safetensors", length + 100)  # sparse, all zeros
    monkeypatch.setattr(tensor_files, "safe_open", None)
    with pytest.raises(CorruptFolder, match=f"claims a header of {length}; at most 8388608"):
        load_tree(tmp_path)


@pytest.mark.parametrize(
    "data", [b"", b"\x02", b"\x03" + bytes(7) + b"{}", b"\x02" + bytes(7) + b"[]"]
)
def test_a_short_or_wrong_header_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(CorruptFolder, match=r"tensors\.safetensors"):
        load_tree(hostile(tmp_path, None, data))


def test_a_pickle_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle, "Unpickler", None)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(CorruptFolder):
        load_tree(hostile(tmp_path, None, pickle.dumps({"a": 1})))


def test_the_error_survives_a_process_pool() -> None:
    error = pickle.loads(pickle.dumps(CorruptFolder(Path("x"), "y", "is z")))
    assert str(error) == str(Path("x/y")) + " is z"


# --- Damage ----------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(1, tree(1))
    checkpoints.save(2, tree(2))
    return checkpoints


FILES = ["manifest.json", "tree.json", "tensors.safetensors"]


def falls_back(checkpoints: Checkpoints, file: str) -> None:
    with pytest.warns(UserWarning, match=rf"skipped .*step-00000002: .*00000002/{file} .") as seen:
        found = checkpoints.newest()
    assert found is not None and found[0] == 1 and same(found[1], tree(1))
    assert len(seen) == 1


@pytest.mark.parametrize("file", FILES)
def test_every_truncation_falls_back_with_a_warning(pair: Checkpoints, file: str) -> None:
    path = pair.folder(2) / file
    data = path.read_bytes()
    for length in {0, 1, 7, 8, 9, len(data) // 2, len(data) - 1}:
        path.write_bytes(data[:length])
        falls_back(pair, file if file != "manifest.json" else ".*")
    path.write_bytes(data)
    assert same(pair.newest(), (2, tree(2)))


@pytest.mark.parametrize("file", FILES)
def test_any_flipped_bit_is_found(tmp_path: Path, file: str) -> None:
    commit_folder(tmp_path / "x", lambda f: save_tree(f, {"a": torch.ones(9), "b": (1, "two")}))
    path = tmp_path / "x" / file
    data = path.read_bytes()
    with open(path, "r+b", buffering=0) as handle:
        for bit in range(8 * len(data)):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            os.pwrite(handle.fileno(), flipped, 0)
            with pytest.raises(CorruptFolder):
                verify_folder(tmp_path / "x")
        os.pwrite(handle.fileno(), data, 0)
    verify_folder(tmp_path / "x")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("place", [0.0, 0.3, 0.9999])
def test_a_flipped_bit_falls_back_with_a_warning(
    pair: Checkpoints, file: str, place: float
) -> None:
    data = bytearray((pair.folder(2) / file).read_bytes())
    data[int(place * len(data))] ^= 4
    (pair.folder(2) / file).write_bytes(data)
    falls_back(pair, file if file != "manifest.json" else ".*")


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_falls_back_with_a_warning(pair: Checkpoints, file: str) -> None:
    (pair.folder(2) / file).unlink()
    falls_back(pair, file)


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_anything_extra_falls_back_with_a_warning(pair: Checkpoints, kind: str) -> None:
    extra = pair.folder(2) / "extra"
    if kind == "file":
        extra.touch()
    elif kind == "link":
        extra.symlink_to("tree.json")
    else:
        extra.mkdir()
    falls_back(pair, "extra")


def test_a_listed_file_may_not_be_a_link(pair: Checkpoints) -> None:
    path = pair.folder(2) / "tree.json"
    path.rename(pair.root / "elsewhere")
    path.symlink_to(pair.root / "elsewhere")
    falls_back(pair, "tree.json")


def test_it_never_restarts_in_silence(pair: Checkpoints) -> None:
    assert Checkpoints(pair.root / "none").newest() is None
    for step in (1, 2):
        (pair.folder(step) / "tree.json").unlink()
    with (
        pytest.warns(UserWarning),
        pytest.raises(CorruptFolder, match="2 checkpoints and none is good") as caught,
    ):
        pair.newest()
    for what in (
        "step-00000001/tree.json is missing",
        "00000002/tree.json is missing",
        "move them",
    ):
        assert what in str(caught.value)


# --- Pruning ---------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [2, 3])
def test_it_keeps_the_newest(tmp_path: Path, keep: int) -> None:
    checkpoints = Checkpoints(tmp_path, keep)
    for step in (1, 5, 20, 100_000_000):
        checkpoints.save(step, step)
    expected = ["step-00000001", "step-00000005", "step-00000020", "step-100000000"]
    assert names(tmp_path) == expected[-keep:]
    assert checkpoints.newest() == (100_000_000, 100_000_000)
    assert checkpoints.newest_folder() == tmp_path / "step-100000000"


def test_a_damaged_one_does_not_count_as_kept(tmp_path: Path) -> None:
    for step in (1, 2):
        Checkpoints(tmp_path).save(step, step)
    (tmp_path / "step-00000002" / "tree.json").unlink()
    Checkpoints(tmp_path).save(3, 3)
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]
    Checkpoints(tmp_path).save(4, 4)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_going_back_to_an_older_step_prunes_no_newer_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (8, 9, 4, 5):
        checkpoints.save(step, step)
    assert len(names(tmp_path)) == 4


def test_a_step_can_be_saved_again(pair: Checkpoints) -> None:
    pair.save(2, "again")
    assert pair.newest() == (2, "again")
    assert names(pair.root) == ["step-00000001", "step-00000002"]


def test_what_cannot_be_pruned_is_a_warning(
    pair: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoints_files, "remove_folder", refuse)
    with pytest.warns(UserWarning, match="could not prune .*step-00000001: .*Permission denied"):
        pair.save(3, 3)
    assert pair.newest() == (3, 3)


def test_what_is_asked_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep is at least 2.*got 1"):
        Checkpoints(tmp_path, keep=1)
    with pytest.raises(ValueError, match="steps count from 0, got -1"):
        Checkpoints(tmp_path).save(-1, {})
    with pytest.raises(FileNotFoundError, match="is not a folder; pass one"):
        verify_folder(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file or a link, not a folder"):
        commit_folder(tmp_path / "file", lambda folder: None)
    with pytest.raises(ValueError, match="sub cannot be committed; write plain files only"):
        commit_folder(tmp_path / "x", lambda folder: (folder / "sub").mkdir())
    assert names(tmp_path) == ["file"]


# --- Leftovers -------------------------------------------------------------------------------


def test_leftovers_of_the_dead_are_removed_and_nothing_else(pair: Checkpoints) -> None:
    for name in (".tmp-step-00000003-12", f".tmp-step-00000003-{os.getpid()}", ".tmp-other-1"):
        (pair.root / name).mkdir()
        (pair.root / name / "tree.json").touch()
    (pair.root / ".old-step-00000002-12").mkdir()
    found = pair.newest()
    assert found is not None and found[0] == 2
    assert names(pair.root) == [".tmp-other-1", "step-00000001", "step-00000002"]


def test_a_folder_that_stepped_aside_comes_back(pair: Checkpoints) -> None:
    pair.folder(2).rename(pair.root / ".old-step-00000002-12")
    (pair.root / ".tmp-step-00000002-12").mkdir()
    assert same(pair.newest(), (2, tree(2)))
    assert names(pair.root) == ["step-00000001", "step-00000002"]
    pair.folder(2).rename(pair.root / ".old-step-00000002-12")
    verify_folder(pair.folder(2))
    pair.folder(2).rename(pair.root / ".old-step-00000002-12")
    pair.save(2, "again")
    assert pair.newest() == (2, "again")


def test_a_reader_leaves_a_writer_at_work_alone(pair: Checkpoints) -> None:
    pair.folder(2).rename(pair.root / ".old-step-00000002-12")

    def write(folder: Path) -> None:
        recover(pair.folder(2))
        assert same(Checkpoints(pair.root).newest(), (2, tree(2)))
        assert folder.is_dir() and not pair.folder(2).exists()
        save_tree(folder, 3)

    commit_folder(pair.folder(3), write)
    assert pair.newest() == (3, 3)


def test_removal_is_whole(pair: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path) -> None:
        (path / "tree.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(pair.folder(2))
    assert same(pair.newest(), (1, tree(1)))
    assert names(pair.root) == ["step-00000001"]
    remove_folder(pair.folder(1))
    assert names(pair.root) == []


def test_files_have_the_usual_permissions(pair: Checkpoints) -> None:
    usual = pair.root / "usual"
    usual.touch()
    for file in pair.folder(2).iterdir():
        assert file.stat().st_mode == usual.stat().st_mode


# --- Faults ----------------------------------------------------------------------------------


class Faulty:
    """The `os` module, except that call number `at` fails: or all from there on, or by a kill."""

    CALLS = ("open", "write", "fsync", "rename", "replace", "mkdir")

    def __init__(self, at: int, error: int | None, *, lasting: bool = False) -> None:
        self.at, self.error, self.lasting, self.calls = at, error, lasting, 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.CALLS:
            return real

        def call(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls == self.at or (self.lasting and self.calls > self.at):
                if name == "write":
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                if self.error is None:
                    os.kill(os.getpid(), 9)
                raise OSError(self.error, os.strerror(self.error or 0))
            return real(*arguments)

        return call


ERRORS = [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO]


def failures(
    monkeypatch: pytest.MonkeyPatch,
    error: int,
    lasting: bool,
    work: Any,
) -> Iterator[int]:
    """Do the work with call number 1, 2, ... failing, until it succeeds; yields after each."""
    for at in range(1, 1000):
        faulty = Faulty(at, error, lasting=lasting)
        with monkeypatch.context() as patch:
            patch.setattr(files, "os", faulty)
            try:
                work()
            except OSError as caught:
                assert caught.errno == error
                assert "could not write the f" in str(caught) and os.strerror(error) in str(caught)
                assert files._REMEDIES.get(error, "check the disk") in str(caught)  # pyright: ignore
        if faulty.calls < at:
            return
        yield at


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("step", [2, 3])
def test_any_failing_call_leaves_the_last_checkpoint(
    pair: Checkpoints, monkeypatch: pytest.MonkeyPatch, step: int, lasting: bool, error: int
) -> None:
    """Step 3 is new, step 2 replaces.

    Only where the last flush fails and the renames that take it back fail too, the new one stays.
    """

    def work() -> None:
        commit_folder(pair.folder(step), lambda folder: save_tree(folder, tree(30)))

    count, stayed = 0, 0
    for count in failures(monkeypatch, error, lasting, work):  # noqa: B007
        assert lasting or names(pair.root) == ["step-00000001", "step-00000002"]
        found = pair.newest()
        assert found is not None and names(pair.root)[:2] == ["step-00000001", "step-00000002"]
        if same(found, (2, tree(2))):
            assert len(names(pair.root)) == 2
        else:
            assert same(found, (step, tree(30)))
            stayed += 1
            remove_folder(pair.folder(step))
            commit_folder(pair.folder(2), lambda folder: save_tree(folder, tree(2)))
    assert count >= 20 and stayed == (2 if lasting else 0)
    assert same(pair.newest(), (step, tree(30)))


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_any_failing_call_of_a_save_loses_nothing(
    pair: Checkpoints, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """With the pruning, a failure of which is a warning."""
    last = 2

    def work() -> None:
        nonlocal last
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pair.save(last + 1, tree(last + 1))
        last += 1

    for _ in failures(monkeypatch, error, False, work):
        assert same(pair.newest(), (last, tree(last)))
        assert f"step-{last - 1:08d}" in names(pair.root)
        assert not any(name.startswith(".") for name in names(pair.root))


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("lasting", [False, True])
def test_any_failing_call_leaves_the_old_file_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lasting: bool, error: int
) -> None:
    path = tmp_path / "log"
    write_file(path, b"old")
    replaced = 0
    for _ in failures(monkeypatch, error, lasting, lambda: write_file(path, b"new" * 100)):
        assert names(tmp_path) == ["log"]
        assert path.read_bytes() in (b"old", b"new" * 100)
        replaced += path.read_bytes() != b"old"
        path.write_bytes(b"old")
    assert replaced <= 2  # only when the flush of the parent, the very last step, has failed
    assert path.read_bytes() == b"new" * 100


def test_everything_is_flushed_before_the_rename_and_the_parent_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[tuple[str, str]] = []

    class Recording(Faulty):
        def __getattr__(self, name: str) -> Any:
            real = getattr(os, name)
            if name not in ("fsync", "rename"):
                return real

            def call(first: Any, *rest: Any) -> Any:
                path = os.readlink(f"/proc/self/fd/{first}") if name == "fsync" else str(rest[0])
                log.append((name, Path(path).name))
                return real(first, *rest)

            return call

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc")
    monkeypatch.setattr(files, "os", Recording(0, 0))
    commit_folder(tmp_path / "x", lambda folder: save_tree(folder, {}))
    assert log == [
        ("fsync", "tensors.safetensors"),
        ("fsync", "tree.json"),
        ("fsync", "manifest.json"),
        ("fsync", f".tmp-x-{os.getpid()}"),
        ("rename", "x"),
        ("fsync", tmp_path.name),
    ]


class Full:
    """`os` on a disk with room for so many more bytes; the last write is cut short."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, handle: int, data: memoryview) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = os.write(handle, data[: self.room])
        self.room -= written
        return written

    def fsync(self, handle: int) -> None:
        """As if: thousands of real ones take minutes."""


def test_a_disk_full_at_any_byte_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {"step": 1, "weights": torch.arange(200.0), "names": ["a", "b"]}
    checkpoints = Checkpoints(tmp_path)
    folder = checkpoints.save(1, first)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert 1000 < size < 4000
    for room in range(size):
        monkeypatch.setattr(files, "os", Full(room))
        with pytest.raises(OSError, match="could not write the folder .*No space left"):
            checkpoints.save(2, {**first, "step": 2})
        monkeypatch.setattr(files, "os", os)
        assert names(tmp_path) == ["step-00000001"]
        assert same(Checkpoints(tmp_path).newest(), (1, first))
    monkeypatch.setattr(files, "os", Full(size))
    checkpoints.save(2, {**first, "step": 2})
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_a_full_disk_as_the_kernel_says_it(pair: Checkpoints) -> None:
    """A limit on the size of files stands in for it: the write stops half way, for real."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(
            OSError, match=r"could not write the folder .*3: File too large; .*ulimit"
        ):
            pair.save(3, {"a": torch.ones(1 << 16)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(pair.root) == ["step-00000001", "step-00000002"]
    assert same(pair.newest(), (2, tree(2)))


def test_an_error_of_the_writer_leaves_nothing(pair: Checkpoints) -> None:
    def write(folder: Path) -> None:
        save_tree(folder, 3)
        raise KeyboardInterrupt

    for step in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            commit_folder(pair.folder(step), write)
    assert names(pair.root) == ["step-00000001", "step-00000002"]
    assert same(pair.newest(), (2, tree(2)))


# --- Kills -----------------------------------------------------------------------------------

CHILDREN = """
import os, sys
import test_storage
from twosides.storage import files
from twosides.storage.checkpoints import Checkpoints

root, mode = sys.argv[1:]
for line in sys.stdin:
    number = int(line)
    child = os.fork()
    if child == 0:
        checkpoints = Checkpoints(root)
        if mode == "crash":
            files.os = test_storage.Faulty(number, None)
            checkpoints.save(2, test_storage.tree(20))
            checkpoints.save(3, test_storage.tree(3))
            os._exit(0)
        while True:
            checkpoints.save(number, test_storage.tree(number))
            os.write(1, b"%d\\n" % number)
            number += 1
    os.write(1, b"pid %d\\n" % child)
    os.write(1, b"dead %d\\n" % os.waitpid(child, 0)[1])
"""


@pytest.fixture
def children(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A process that imports torch once; a number on its input forks a child that saves."""
    paths = [str(Path(__file__).parent), *sys.path]
    with subprocess.Popen(
        [sys.executable, "-c", CHILDREN, str(tmp_path / "run"), request.param],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def ask(process: subprocess.Popen[str], number: int) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{number}\n")
    process.stdin.flush()


def answer(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the process has ended"
    return line.split()


@pytest.mark.parametrize("children", ["loop"], indirect=True)
def test_kills_at_random_moments_never_lose_a_checkpoint(
    tmp_path: Path, children: subprocess.Popen[str]
) -> None:
    draw, last = random.Random(), 0
    for _ in range(15):
        ask(children, last + 1)
        child, saves, reported = 0, draw.randrange(1, 12), last
        while not (child and reported >= last + saves):
            match answer(children):
                case ["pid", pid]:
                    child = int(pid)
                case line:
                    reported = int(line[0])
        for _ in range(draw.randrange(100_000)):
            pass
        os.kill(child, 9)
        while (line := answer(children))[0] != "dead":
            reported = int(line[0])
        found = Checkpoints(tmp_path / "run").newest()
        assert found is not None and found[0] >= reported > last
        assert same(found[1], tree(found[0]))
        assert len(names(tmp_path / "run")) in (1, 2, 3)
        last = found[0]


@pytest.mark.parametrize("children", ["crash"], indirect=True)
def test_a_kill_at_any_call_leaves_the_old_or_the_new(
    tmp_path: Path, children: subprocess.Popen[str]
) -> None:
    """In a save that replaces step 2, then in one that adds step 3 and prunes step 1."""
    checkpoints = Checkpoints(tmp_path / "run")
    seen: list[str] = []
    status = -1
    for number in range(1, 1000):
        for step in (1, 2):
            checkpoints.save(step, tree(step))
        ask(children, number)
        while (line := answer(children))[0] != "dead":
            pass
        status = int(line[1])
        found = checkpoints.newest()
        assert found is not None and not any(n.startswith(".") for n in names(checkpoints.root))
        values = {"old": tree(2), "replaced": tree(20), "added": tree(3)}
        seen += [name for name, value in values.items() if same(found[1], value)]
        assert len(seen) == number and found[0] == (3 if seen[-1] == "added" else 2)
        if status == 0:
            break
        for folder in checkpoints.root.iterdir():
            remove_folder(folder)
    assert status == 0 and seen[-1] == "added"
    assert seen == sorted(seen, key=["old", "replaced", "added"].index) and len(set(seen)) == 3
