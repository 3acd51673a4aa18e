"""Arrays in files, data sets by import path, and rows that are held out."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import TensorDataset

from twosides.data.arrays import task_of
from twosides.data.named import task_named

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(5, 3, (100, 2)).astype("f4")
PICTURES, CLASSES = RANDOM.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8), np.arange(12) % 4


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_rows_of_numbers_are_standardised(here):
    np.save("moons.npy", ROWS)
    task = task_named("moons.npy")
    assert task.shape == (2,) and task.size == 100 and task.network["class"] == "MLP"
    mean, std = task.moments
    assert np.allclose(mean, ROWS.mean(0), atol=1e-5) and np.allclose(std, ROWS.std(0), atol=1e-5)
    assert all(np.array_equal(task.data[i]["x"], ROWS[i]) for i in (0, 99))


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pt"])
def test_pictures_and_classes_in_one_file(here, suffix):
    if suffix == "npz":
        np.savez_compressed("data.npz", x=PICTURES, y=CLASSES)
    else:
        x = torch.from_numpy(PICTURES).permute(0, 3, 1, 2).contiguous() / 127.5 - 1
        columns = {"x": x, "class_labels": torch.from_numpy(CLASSES)}
        (save_file if suffix == "safetensors" else torch.save)(columns, f"data.{suffix}")
    task = task_named(f"array:data.{suffix}")
    assert task.shape == (3, 16, 16) and task.classes == ("0", "1", "2", "3")
    assert task.null == {"class_labels": 4} and task.moments is None
    assert task.network["config"]["num_class_embeds"] == 5
    row = task.data[7]
    assert int(row["class_labels"]) == 3
    want = torch.from_numpy(PICTURES[7]).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(torch.as_tensor(row["x"]), want, atol=1e-6)


def test_a_file_of_torch_that_runs_code_is_refused(here):
    class Evil:
        def __reduce__(self):
            return open, ("ran", "w")

    torch.save({"x": Evil()}, "evil.pt")
    with pytest.raises(ValueError, match="save the tensors alone"):
        task_named("evil.pt")
    assert not (here / "ran").exists()


def test_rows_are_held_out_of_any_data(here):
    np.save("moons.npy", ROWS)
    for words, count in (("holdout=0.1", 10), ("holdout=25", 25)):
        task, again = task_named(f"moons.npy?{words}"), task_named(f"moons.npy?{words}")
        unseen = task.validation()
        assert (len(unseen), task.size) == (count, 100 - count)
        rows = [
            tuple(part[i]["x"].tolist()) for part in (task.data, unseen) for i in range(len(part))
        ]
        assert sorted(rows) == sorted(map(tuple, ROWS.tolist()))
        assert torch.equal(again.validation()[0]["x"], unseen[0]["x"])
    for words in ("holdout=0.001", "holdout=100", "holdout=1.5", "holdout=-3"):
        with pytest.raises(ValueError, match=r"holdout=.* of 100 rows"):
            task_named(f"moons.npy?{words}")


def test_a_data_set_by_import_path(here, monkeypatch):
    (here / "mine_of_tests.py").write_text(
        "import torch\n"
        "from torch.utils.data import TensorDataset\n"
        "def points(): return TensorDataset(torch.arange(12.).view(6, 2), torch.arange(6) % 2)\n"
        "def number(): return 3\n"
    )
    monkeypatch.syspath_prepend(here)
    task = task_named("mine_of_tests:points")
    assert task.classes == ("0", "1") and task.shape == (2,)
    with pytest.raises(TypeError, match=r"builtins\.int is no data"):
        task_named("mine_of_tests:number")


def test_classes_keep_the_names_they_have():
    data = TensorDataset(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
    data.classes = ["cat", "dog"]
    assert task_of(data).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("save", "name", "message"),
    [
        (lambda: np.save("i.npy", np.arange(20).reshape(10, 2)), "i.npy", "save floats"),
        (lambda: np.savez("l.npz", x=ROWS, y=ROWS[:, 0]), "l.npz", "a whole number for each"),
        (lambda: np.savez("s.npz", x=ROWS, y=CLASSES), "s.npz", "holds 100 samples, and labels"),
        (lambda: np.save("n.npy", np.where(ROWS > 8, np.nan, ROWS)), "n.npy", "row 1 of the data"),
        (lambda: None, "nope.npy", "there is no file or folder nope.npy"),
    ],
)
def test_what_is_wrong_is_said(here, save, name, message):
    save()
    if name == "n.npy":
        bad = int(np.argmax((ROWS > 8).any(1)))
        message = f"row {bad} of the data holds NaN"
    with pytest.raises((ValueError, OSError), match=message):
        task_named(name)


def test_a_folder_is_told_its_kind(here):
    (here / "shapes").mkdir()
    with pytest.raises(ValueError, match="folder:shapes of pictures"):
        task_named("shapes")
