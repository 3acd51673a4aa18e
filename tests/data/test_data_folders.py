"""What lies in a folder of images is read, or said: links, tables, files of other kinds."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from twosides.data.decode import Frame
from twosides.data.images import Folder, Images


def picture(path, value, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path, **options)
    return path


def value_of(sample):
    return round(float((sample["x"].mean() + 1) * 127.5))


def test_class_folders_that_are_links_are_read(tmp_path):
    """torchvision #1580: they were dropped without a word."""
    for number, name in enumerate(["cat", "dog"]):
        picture(tmp_path / "elsewhere" / name / "a.png", 50 * number)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (photos / "cat").symlink_to("../elsewhere/cat")
    picture(photos / "eel" / "a.png", 100)
    (photos / "eel" / "b.png").symlink_to(tmp_path / "elsewhere" / "dog" / "a.png")
    data = Images(Folder(photos), Frame(8))
    assert data.classes == ("cat", "dog", "eel")
    assert [value_of(sample) for sample in data] == [0, 50, 100, 50]
    assert [int(sample["class_labels"]) for sample in data] == [0, 1, 2, 2]


def test_a_link_that_leads_back_is_refused_by_name(tmp_path):
    picture(tmp_path / "a" / "x.png", 0)
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"a/again is a link that leads back to .*; remove it"):
        Folder(tmp_path)


def test_a_link_to_nothing_is_a_bad_image(tmp_path):
    picture(tmp_path / "x.png", 0)
    (tmp_path / "y.png").symlink_to("gone.png")
    data = Images(Folder(tmp_path), Frame(8), max_bad=0.5)
    with pytest.warns(UserWarning, match=r"y\.png, a link to nothing"):
        assert value_of(data[1]) == 0


def test_arrays_and_avif_are_read(tmp_path):
    np.save(tmp_path / "a.npy", np.full((8, 8), 30, np.uint8))
    picture(tmp_path / "b.avif", 120, quality=100)
    data = Images(Folder(tmp_path), Frame(8))
    assert value_of(data[0]) == 30
    assert abs(value_of(data[1]) - 120) <= 2


def test_arrays_that_are_no_pictures_are_named(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((8, 8), np.float32))
    picture(tmp_path / "b.png", 1)
    with pytest.raises(ValueError, match=r"a\.npy has <f4 \(8, 8\), not uint8"):
        Images(Folder(tmp_path), Frame(8))[0]


def test_what_is_left_out_is_said_once_with_counts(tmp_path):
    picture(tmp_path / "a.png", 1)
    for name in ("b.heic", "c.HEIC", "d.mp4", "README", ".hidden.gz", "a.txt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.warns(UserWarning, match="left out are 2 files .heic; 1 files") as told:
        Folder(tmp_path)
    (said,) = told
    assert "1 files .mp4" in str(said.message) and "1 files without a suffix" in str(said.message)
    assert ".gz" not in str(said.message)


ROWS = [("x.png", "a red fox", "fox"), ("sub/y.png", "an owl", "owl")]


def table(folder, kind, rows=ROWS, head=("file_name", "text", "label")):
    if kind == "jsonl":
        lines = [json.dumps(dict(zip(head, row, strict=True))) for row in rows]
    else:
        lines = [",".join(head), *(",".join(map(str, row)) for row in rows)]
    (folder / f"metadata.{kind}").write_text("\n".join(lines) + "\n")


@pytest.fixture
def photos(tmp_path):
    picture(tmp_path / "x.png", 10)
    picture(tmp_path / "sub" / "y.png", 20)
    return tmp_path


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_table_beside_pictures_is_read(photos, kind):
    """diffusers #6445: it was ignored without a word."""
    table(photos, kind)
    data = Images(Folder(photos), Frame(8))
    assert data.classes == ("fox", "owl")
    read = {file.name: file for _, file in (data.read(place) for place in range(2))}
    assert read["x.png"].caption == "a red fox" and read["sub/y.png"].caption == "an owl"
    assert read["x.png"].label == 0 and read["sub/y.png"].label == 1
    assert Folder(photos, labels=False).classes == ()


def test_a_table_may_lie_in_a_subfolder_and_hold_numbers(photos):
    table(photos / "sub", "csv", [("y.png", 2)], ("file_name", "label"))
    table(photos, "jsonl", [("x.png", 0)], ("file_name", "label"))
    files = Folder(photos)
    assert files.classes == ("0", "1", "2")
    assert sorted(files[place].label for place in range(2)) == [0, 2]


@pytest.mark.parametrize(
    ("rows", "head", "words"),
    [
        ([("z.png", "a", "b")], ("file_name", "text", "label"), "names 'z.png', which is no image"),
        ([("../x.png", "a")], ("file_name", "text"), "which is no image below"),
        ([("x.png", "a")] * 2, ("file_name", "text"), "'x.png' is there twice"),
        ([("x.png", "a")], ("name", "text"), "a row has no file_name"),
        ([("x.png", "a", "b")], ("file_name", "text", "caption"), "needs one text"),
        ([("x.png", "fox")], ("file_name", "label"), "do not fit: some images"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_table_that_does_not_fit_is_refused_by_name(photos, kind, rows, head, words):
    table(photos, kind, rows, head)
    with pytest.raises(ValueError, match=words) as caught:
        Folder(photos)
    assert str(photos) in str(caught.value)


def test_columns_that_are_not_read_are_said(photos):
    table(photos, "jsonl", [("x.png", "a", [1, 2])], ("file_name", "text", "bbox"))
    with pytest.warns(UserWarning, match="the columns bbox of its tables"):
        assert Folder(photos, labels=False)[1].caption == "a"


def test_two_captions_of_one_image_are_refused(photos):
    table(photos, "jsonl")
    (photos / "x.txt").write_text("another")
    data = Images(Folder(photos), Frame(8), max_bad=0.5)
    with pytest.warns(UserWarning, match=r"has two captions, in x\.txt and in a table"):
        assert torch.is_tensor(data[1]["x"])
