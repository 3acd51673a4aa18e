"""Tar shards: read as Python's tarfile reads them, or refused."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from twosides.data.decode import Frame
from twosides.data.images import Images
from twosides.data.tars import Tars, expand, members


def png(i):
    buffer = io.BytesIO()
    values = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def npy(values):
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def write(path, files, kind=tarfile.PAX_FORMAT, **fields):
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5  # a fraction makes an extended header
            for key, value in fields.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_are_those_that_tarfile_finds(tmp_path, kind):
    long = "x" * 120 + "é" if kind != tarfile.USTAR_FORMAT else "x" * 90
    names = ["a.png", "folder/b.cls", f"{long}/{long[:60]}.png", "empty.txt"]
    files = {name: name.encode() * 40 * (name != "empty.txt") for name in names}
    path = write(tmp_path / "a.tar", files, kind)
    with tarfile.open(path, "a") as tar:
        tar.add(tmp_path, "folder", recursive=False)
    with tarfile.open(path) as tar:
        wanted = [(m.name, m.offset_data, m.size) for m in tar.getmembers() if m.isfile()]
    found = list(members(path))
    assert [tuple(member) for member in found] == wanted
    for member in found:
        assert path.read_bytes()[member.offset :][: member.size] == files[member.name]


def test_samples_are_read_by_number(tmp_path):
    for shard in range(3):
        files = {}
        for i in range(4):
            key = f"{shard}/{i:03d}"
            files[f"{key}.png"] = png(4 * shard + i)
            files[f"{key}.cls"] = str(i % 3).encode() + b"\n"
            files[f"{key}.txt"] = f"number {i}".encode()
        write(tmp_path / f"{shard:02d}.tar", files)
    files = Tars(str(tmp_path / "{00..02}.tar"))
    assert len(files) == 12 and files.classes == ("0", "1", "2")
    data, frame = Images(files, Frame(8)), Frame(8)
    for i in np.random.default_rng(0).permutation(12):
        sample = data[int(i)]
        assert torch.equal(sample["x"], frame.read(png(int(i))))
        assert sample["class_labels"] == i % 4 % 3
        assert files[int(i)].caption == f"number {i % 4}"
    assert Tars(str(tmp_path / "*.tar"), labels=False).classes == ()


def test_json_and_arrays(tmp_path):
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    notes = {"label": 1, "caption": "grey", "other": [1]}
    files = {"a.npy": npy(values), "a.json": json.dumps(notes).encode()}
    files |= {"b.npy": npy(values[..., None]), "b.json": b'{"label": 0}', "b.seg.png": b"?"}
    path = write(tmp_path / "a.tar", files)
    tars = Tars(str(path), ignore=("seg.png",))
    assert [tars[i].label for i in (0, 1)] == [1, 0] and tars[0].caption == "grey"
    x = Images(tars, Frame(8, grey=True))[1]["x"]
    np.testing.assert_allclose((x[0].double() + 1) * 127.5, values, atol=1e-4)


def test_patterns(tmp_path):
    for name in ("a-0", "a-1", "b-0"):
        (tmp_path / f"{name}.tar").touch()
    found = expand(str(tmp_path / "{b,a}-*.tar"))
    assert [path.stem for path in found] == ["b-0", "a-0", "a-1"]
    with pytest.raises(FileNotFoundError, match=r"b-1\.tar"):
        expand(str(tmp_path / "{a,b}-{0..1}.tar"))
    with pytest.raises(ValueError, match="counts from"):
        expand("{3..1}.tar")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.png": png(0), "a.cls": b"cat"}, "class b'cat'"),
        ({"a.png": png(0), "a.json": b'{"label": -1}'}, "class -1"),
        ({"a.png": png(0), "a.cls": b"1", "b.png": png(1)}, "b.png' has no class"),
        ({"a.cls": b"1"}, "0 images"),
        ({"a.png": png(0), "a.jpg": png(1)}, "2 images"),
        ({"a.png": png(0), "a.seg.png": b""}, "ignore=seg.png"),
    ],
)
def test_samples_that_are_none(tmp_path, files, words):
    with pytest.raises(ValueError, match=words):
        Tars(str(write(tmp_path / "a.tar", files)))


def test_a_bad_image_is_replaced_here_too(tmp_path):
    path = write(tmp_path / "a.tar", {"a.png": png(0), "b.png": b"no", "c.png": png(2)})
    data = Images(Tars(str(path)), Frame(8), max_bad=0.5)
    with pytest.warns(UserWarning, match=r"a\.tar/b\.png is no PNG"):
        assert torch.equal(data[1]["x"], data[2]["x"])
