"""What `fit` takes as data, and what it says of everything else."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from twosides.data.named import task_named
from twosides.data.tasks import Points, Stream, as_row, dataset_of, first_row, is_stream
from twosides.training.batches import Batches
from twosides.training.settings import Settings

X = torch.arange(12.0).view(6, 2)
LABELS = torch.arange(6) % 3


class Items(Dataset):
    """A data set whose samples are in a list called `items`."""

    def __init__(self):
        self.items = [{"x": x} for x in X]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Method(Items):
    """And one with a method of that name."""

    def __init__(self):
        self.rows = [{"x": x} for x in X]

    def items(self):
        return self.rows

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return self.rows[index]


class Iterable(IterableDataset):
    def __iter__(self):
        return iter(X)


class Numbered:
    def items(self, start):
        for number in itertools.count(start):
            yield {"x": X[number % 6]}


def hugging_face():
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"x": X.tolist(), "class_labels": LABELS.tolist()})


def loader():
    with pytest.warns(UserWarning, match="only the data set of the DataLoader is used"):
        return dataset_of(DataLoader(TensorDataset(X), batch_size=3))


GIVEN = {
    "a tensor": lambda: X,
    "an array": lambda: X.numpy(),
    "columns": lambda: {"x": X, "class_labels": LABELS},
    "a tuple": lambda: (X, LABELS),
    "one column": lambda: (X.numpy(),),
    "TensorDataset": lambda: TensorDataset(X),
    "TensorDataset with labels": lambda: TensorDataset(X, LABELS),
    "a list": lambda: [{"x": x} for x in X],
    "a list of tuples": lambda: [(x, 1) for x in X],
    "a DataLoader": loader,
    "IterableDataset": Iterable,
    "a Hugging Face dataset": hugging_face,
    "an attribute items": Items,
    "a method items": Method,
    "a stream": Numbered,
    "points": lambda: Points(X),
}


@pytest.mark.parametrize("name", GIVEN)
def test_what_people_have_gives_batches(name):
    """All six samples in a batch of six, whatever holds them, with labels where there are some."""
    data = dataset_of(GIVEN[name]())
    batch = next(iter(Batches(data, Settings(batch=6), 0)))["batch"]
    order = batch["x"][:, 0].argsort()
    assert batch["x"].dtype == torch.float32 and torch.equal(batch["x"][order], X)
    if name in ("columns", "a tuple", "TensorDataset with labels", "a Hugging Face dataset"):
        assert torch.equal(batch["class_labels"][order], LABELS)
    assert is_stream(data) == (name in ("IterableDataset", "a stream"))
    assert dataset_of(data) is data and "x" in first_row(data)


def test_what_is_iterated_over_begins_anywhere_and_again():
    data = dataset_of(Iterable())
    assert isinstance(data, Stream)
    rows = [row["x"] for row in itertools.islice(data.items(4), 5)]
    assert torch.equal(torch.stack(rows), X[[4, 5, 0, 1, 2]])
    with pytest.raises(ValueError, match="workers is 2, but data that can only be iterated"):
        Batches(data, Settings(workers=2), 0)


class Named(Items):
    def __init__(self, row):
        self.items = [row]


BAD = {
    "image": (Named({"image": X[0], "label": 1}), 'has image, label, but no "x"'),
    "image tensors": ([(X[0], X[1])], r'rows are dictionaries with "x", or tuples \(x,\)'),
    "text": (["a cat"], "a row of the data is builtins.str"),
    "a number": ([3], "a row of the data is builtins.int"),
    "bytes": (torch.zeros(4, 3, dtype=torch.uint8), "dtype torch.uint8; scale it to floats"),
    "picture": ([{"x": object()}], '"x" of the data is builtins.object'),
    "no list": ([], "the data are empty: builtins.list of length 0"),
    "no tensor": (torch.zeros(0, 2), "the data are empty"),
    "no stream": (
        Named.__mro__ and type("No", (), {"items": lambda s, n: iter([])})(),
        "are empty",
    ),
    "no rows": (type("None_", (IterableDataset,), {"__iter__": lambda s: iter([])})(), "are empty"),
    "a generator": (({"x": x} for x in X), "can be read only once"),
    "a name": ("glyphs", "'glyphs' is a name, not data; pass task_named"),
    "lengths": ((X, LABELS[:2]), "different lengths: 0: 6, 1: 2"),
    "nothing": (None, "builtins.NoneType is no data"),
    "a value": ({"x": 3.0}, "'x' has no rows"),
    "no batch": ([{"x": X[0], "more": object()}], "make no batch"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_data_is_refused_in_words(name):
    data, message = BAD[name]
    with pytest.raises((ValueError, TypeError), match=message):
        dataset_of(data)


def test_rows_keep_what_they_hold():
    row = as_row({"x": np.ones((2, 2), np.float16)[::-1], "text": "a", "n": [1, 2]})
    assert row["x"].dtype == torch.float16 and row["text"] == "a"
    assert row["n"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "name",
    ["h5:photos.h5", "npy:x.npy", "C:\\photos", "csv:table", "csv:table.csv", "json:x", "h5:x"],
)
def test_terratorch_236_a_kind_of_data_that_there_is_not(name):
    with pytest.raises(ValueError, match="There are: .*folder:.*hf:.*latents:.*tar:"):
        task_named(name)
