"""Hugging Face datasets from the disk: tables by number, streams from a number on."""

import io
from collections import Counter
from itertools import islice

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from twosides.data.decode import BadImage, Frame
from twosides.data.huggingface import Columns, Stream
from twosides.data.named import task_named

datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    """datasets waits five seconds after each pass over several Parquet files."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def png(i):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def table(count=30, bad=(), label="label"):
    images = [{"bytes": b"no" if i in bad else png(i), "path": None} for i in range(count)]
    names = datasets.ClassLabel(names=["even", "odd"])
    rows = {"image": images, label: [i % 2 for i in range(count)], "text": ["t"] * count}
    kinds = {"image": datasets.Image(), label: names, "text": datasets.Value("string")}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


def value(sample):
    """The grey value that stands for the row."""
    return int(((sample["x"].double() + 1) * 127.5).mean().round())


@pytest.fixture(params=["saved", "dictionary", "parquet", "arrow"])
def path(request, tmp_path):
    rows = table()
    if request.param == "parquet":
        rows.select(range(20)).to_parquet(tmp_path / "0.parquet")
        rows.select(range(20, 30)).to_parquet(tmp_path / "1.parquet")
    elif request.param == "dictionary":
        datasets.DatasetDict(train=rows, test=rows.select([0])).save_to_disk(tmp_path)
    else:
        rows.save_to_disk(tmp_path)
        if request.param == "arrow":
            (tmp_path / "state.json").unlink()
    return tmp_path


def test_rows_are_read_by_number(path):
    task = task_named(f"hf:{path}?size=8")
    assert task.classes == ("even", "odd") and task.null == {"class_labels": 2}
    assert len(task.data) == 30
    for i in (29, 0, 7):
        assert value(task.data[i]) == i and task.data[i]["class_labels"] == i % 2
    assert task.data.files[3].caption is None
    assert task_named(f"hf:{path}?text=text").data.files[3].caption == "t"


def test_a_stream_goes_on_from_any_number(path):
    stream = task_named(f"hf:{path}?size=8,stream,flip,seed=3").data
    first = list(islice(stream.items(0), 100))
    for start in (0, 1, 29, 30, 31, 75):
        for a, b in zip(first[start:], islice(stream.items(start), 20), strict=False):
            assert torch.equal(a["x"], b["x"]) and a["class_labels"] == b["class_labels"]
    epochs = [[value(s) for s in first[30 * e : 30 * e + 30]] for e in range(3)]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert all(s["class_labels"] == value(s) % 2 for s in first)


def test_bad_rows_of_a_stream_are_the_next_good_one(tmp_path):
    table(40, bad=(3, 4, 20)).save_to_disk(tmp_path)
    stream = Stream(str(tmp_path), Frame(8), Columns())
    with pytest.warns(UserWarning, match="without further warnings") as warned:
        values = [value(s) for s in islice(stream.items(0), 40)]
    assert len(warned) == 1 and len(stream.bad) >= 3
    good = set(range(40)) - {3, 4, 20}
    if stream.bad:  # each of 37 good ones, three of them once more, next to themselves
        counts = Counter(values)
        assert set(counts) <= good and len(values) == 40
    for start in range(0, 40, 7):
        assert values[start:] == [value(s) for s in islice(stream.items(start), 40 - start)]
    table(40, bad=range(30)).save_to_disk(tmp_path / "worse")
    worse = Stream(str(tmp_path / "worse"), Frame(8), Columns())
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match=r"are bad, and a share of max_bad=0\.1"),
    ):
        list(islice(worse.items(0), 400))


def test_flips_are_fair_and_belong_to_the_number(tmp_path):
    half = np.zeros((8, 8, 3), np.uint8)
    half[:, :4] = 255
    buffer = io.BytesIO()
    Image.fromarray(half).save(buffer, "PNG")
    rows = {"image": [{"bytes": buffer.getvalue(), "path": None}] * 5}
    datasets.Dataset.from_dict(
        rows, features=datasets.Features({"image": datasets.Image()})
    ).save_to_disk(tmp_path)
    stream = task_named(f"hf:{tmp_path}?size=8,stream,flip").data
    flipped = [float(s["x"][0, 0, 0]) < 0 for s in islice(stream.items(0), 400)]
    assert 150 < sum(flipped) < 250  # binomial: 5 standard deviations
    assert flipped[100:120] == [float(s["x"][0, 0, 0]) < 0 for s in islice(stream.items(100), 20)]


def test_columns_are_checked(tmp_path):
    table(label="kind").save_to_disk(tmp_path)
    assert task_named(f"hf:{tmp_path}").classes == ()
    assert task_named(f"hf:{tmp_path}?label=kind").classes == ("even", "odd")
    for options, words in (
        ("label=kinds", "did you mean 'kind'"),
        ("image=img", "unknown column 'img'"),
        ("image=kind", "has ClassLabel, not images"),
        ("label=text", "no names of classes"),
        ("seed=3", "seed sets the order of a stream"),
    ):
        with pytest.raises(ValueError, match=words):
            task_named(f"hf:{tmp_path}?{options}")
    datasets.DatasetDict(train=table()).save_to_disk(tmp_path / "several")
    with pytest.raises(ValueError, match="unknown split 'tran'; did you mean 'train'"):
        task_named(f"hf:{tmp_path / 'several'}?split=tran")
    with pytest.raises(ValueError, match="say folder:"):
        (tmp_path / "empty").mkdir()
        task_named(f"hf:{tmp_path / 'empty'}")
    with pytest.raises(FileNotFoundError, match="neither a folder nor a name"):
        task_named("hf:/no/such/folder")


def test_a_table_does_not_lead_out_of_its_folder(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "a.png").write_bytes(png(5))
    (tmp_path / "b.png").write_bytes(png(6))
    columns, folder = Columns(), tmp_path / "inside"

    def read(name):
        return columns.file({"image": {"bytes": None, "path": name}}, folder, "row").data

    assert read("a.png") == png(5) == read(str(folder / "a.png"))
    (folder / "link.png").symlink_to(tmp_path / "b.png")
    for name in ("../b.png", str(tmp_path / "b.png"), "link.png", "http://a/b.png", None, ""):
        with pytest.raises(BadImage, match="only files in it are read"):
            read(name)
