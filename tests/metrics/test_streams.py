"""`evaluate`: classes as frequent as in the data, memory that does not grow, files of all kinds."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from twosides.data.stored import Stored
from twosides.denoiser import Denoiser
from twosides.generation.request import Request
from twosides.metrics.sources import Yardstick
from twosides.oracle import GaussianMixture
from twosides.storage import models, networks

MEANS, STD, RARE = ((-3.0, 0.0), (3.0, 1.0)), 0.5, 0.1


# ---------------------------------------------------------------------------- classes


class ByClass(nn.Module):
    """The exact x-prediction of N(mean of the class, STD^2) on flow matching."""

    def __init__(self):
        super().__init__()
        self.config = {}
        self.register_buffer("means", torch.tensor(MEANS))

    def forward(self, z, t, class_labels):
        mean, t = self.means[class_labels], t.reshape(-1, 1)
        alpha, sigma = 1 - t, t
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return mean + gain * (z - alpha * mean)


@pytest.fixture
def perfect(tmp_path, monkeypatch):
    """A perfect model of data of which 90 % are of one class, and the data."""
    monkeypatch.setitem(networks.NETWORKS, "ByClass", ByClass)
    models.save(Denoiser(ByClass(), "x"), tmp_path / "model", shape=[2], classes=["a", "b"])
    (tmp_path / "unequal.py").write_text(
        "import torch\n"
        "from torch.utils.data import TensorDataset\n"
        "from twosides.data.tasks import Task\n"
        "class Rows(TensorDataset):\n"
        "    def __getitem__(self, i):\n"
        "        x, label = super().__getitem__(i)\n"
        '        return {"x": x, "class_labels": label}\n'
        "def data():\n"
        "    g = torch.Generator().manual_seed(3)\n"
        f"    label = (torch.rand(20000, generator=g) < {RARE}).long()\n"
        f"    x = torch.tensor({MEANS})[label] + {STD} * torch.randn(20000, 2, generator=g)\n"
        '    return Task(Rows(x, label), (2,), {}, classes=("a", "b"))\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "unequal", raising=False)
    return tmp_path / "model"


@pytest.mark.parametrize("seed", range(3))
def test_a_perfect_model_of_unequal_classes_measures_what_data_do(perfect, cli, tmp_path, seed):
    """After DiT's issue 16: classes drawn equally often put the frechet at 12."""
    words = ("--data", "unequal:data", "--metrics", "frechet", "mmd", "--sampler", "dpmpp-2m")
    more = ("--count", 2000, "--steps", 25, "--seed", seed, "--json", tmp_path / "e.json")
    code, _, err = cli("evaluate", perfect, *words, *more)
    assert code == 0, err
    numbers = json.loads((tmp_path / "e.json").read_text())
    for name in ("frechet", "mmd"):
        value, data = numbers["metrics"][name], numbers["data_against_data"][name]
        error = (value["error"] ** 2 + data["error"] ** 2) ** 0.5
        assert abs(value["value"] - data["value"]) < 3 * error, numbers
        assert value["value"] < 0.2


def test_labels_are_those_of_the_other_rows(perfect):
    stick = Yardstick.of("unequal:data", 500, seed=1)
    assert len(stick.labels) == 500 and 0.05 < stick.labels.count("b") / 500 < 0.15
    # The label goes with its row: the two classes lie on either side of the line x_0 = 0.
    assert [name == "b" for name in stick.labels] == (stick.other[:, 0] > 0).tolist()
    few = Yardstick.of("unequal:data", 15_000, seed=1)
    assert few.other is None and len(few.labels) == 15_000
    assert [name == "b" for name in few.labels] == (few.reference[:, 0] > 0).tolist()


def test_data_without_the_models_classes_are_said_to_be(perfect, cli):
    with pytest.warns(UserWarning, match="equally often"):
        code, _, err = cli("evaluate", perfect, "--data", "ring", "--count", 60, "--steps", 2)
    assert code == 0, err


# ---------------------------------------------------------------------------- memory

MEASURE = """
import resource, sys
from pathlib import Path
from twosides.generation.request import Request
from twosides.metrics.command import evaluate
source, data, count = sys.argv[1:4]
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
options = {"metrics": ["frechet"], "extractor": "eight:features", "trust_code": True}
evaluate(Path(source), data, Request(count=40, steps=1), **options)
before = peak()
evaluate(Path(source), data, Request(count=int(count), steps=1), **options)
print(peak() - before)
"""

EIGHT = """
import torch
from torch import nn
def features(x):
    return x.flatten(1)[:, :8]
class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = {}
        self.scale = nn.Parameter(torch.ones(()))
    def forward(self, z, t):
        return self.scale * z / 2
"""


@pytest.mark.parametrize("source", ["model", "pictures.npy", "pictures.npz"])
def test_pictures_are_not_kept(tmp_path, monkeypatch, source):
    """1,500 pictures of 3 x 80 x 80 are 115 MB on each side; memory grows by less than a third."""
    (tmp_path / "eight.py").write_text(EIGHT)
    monkeypatch.syspath_prepend(str(tmp_path))
    from eight import Small

    sys.modules.pop("eight")
    count, shape = 1500, (3, 80, 80)
    models.save(Denoiser(Small(), "x"), tmp_path / "model", shape=list(shape))
    x = np.random.default_rng(0).standard_normal((2 * count, *shape), np.float32)
    np.save(tmp_path / "data.npy", x)
    np.save(tmp_path / "pictures.npy", x[:count])
    np.savez(tmp_path / "pictures.npz", x=x[:count])
    del x
    command = [sys.executable, "-c", MEASURE, tmp_path / source, tmp_path / "data.npy", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 40, done.stdout


# ---------------------------------------------------------------------------- files


def test_files_of_all_kinds_hold_the_same_samples(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    (tmp_path / "pngs").mkdir()
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"pngs/{number}.png")
    np.savez(tmp_path / "bytes.npz", arr_0=pixels, arr_1=np.arange(5))  # as guided-diffusion does
    np.savez_compressed(tmp_path / "one.npz", anything=x.numpy())
    np.save(tmp_path / "bytes.npy", pixels.transpose(0, 3, 1, 2))
    np.save(tmp_path / "big-endian.npy", x.numpy().astype(">f4"))
    for name in ("pngs", "bytes.npz", "one.npz", "bytes.npy", "big-endian.npy"):
        stored = Stored(tmp_path / name)
        assert len(stored) == 5 and stored.shape == (3, 8, 8), name
        # Backwards, as packed files are not made for.
        read = torch.stack([stored[number]["x"] for number in reversed(range(5))]).flip(0)
        torch.testing.assert_close(read, x, rtol=0, atol=1e-6, msg=name)
    grey = tmp_path / "grey"
    grey.mkdir()
    Image.fromarray(pixels[0, :, :, 0]).save(grey / "a.png")
    assert Stored(grey).shape == (1, 8, 8)
    Image.fromarray(pixels[0]).save(grey / "b.png")
    with pytest.raises(ValueError, match="keep one kind in a folder"):
        _ = Stored(grey)[1]
    Image.fromarray(pixels[0, :4]).save(grey / "a.png")
    with pytest.raises(ValueError, match="8 x 4 and not square"):
        Stored(grey)


def test_one_file_against_another(tmp_path, cli):
    ring = GaussianMixture.ring(8)
    np.save(tmp_path / "a.npy", ring.sample(200, seed=0).float().numpy())
    np.savez(tmp_path / "b.npz", ring.sample(500, seed=1).float().numpy())
    words = ("--metrics", "mmd", "--json", tmp_path / "e.json")
    code, out, err = cli("evaluate", tmp_path / "a.npy", "--data", tmp_path / "b.npz", *words)
    assert code == 0 and "200 rows of" in out, err
    numbers = json.loads((tmp_path / "e.json").read_text())
    found = numbers["metrics"]["mmd"]
    assert abs(found["value"]) < 4 * found["error"] and numbers["data_against_data"]
    code, _, err = cli("evaluate", tmp_path / "b.npz", "--data", tmp_path / "a.npy", *words)
    assert code == 2 and "measure fewer samples, --count 200" in err
    code, _, err = cli("evaluate", tmp_path / "a.npy", "--data", tmp_path / "c.npy", *words)
    assert code == 2 and "there is no file or folder" in err


def broken(folder):
    x = np.zeros((50, 2), np.float32)
    np.save(folder / "short.npy", x)
    (folder / "short.npy").write_bytes((folder / "short.npy").read_bytes()[:-4])
    np.save(folder / "columns.npy", np.asfortranarray(x))
    np.savez(folder / "two.npz", a=x, b=x)
    (folder / "no.npz").write_bytes(b"PK")
    np.savez(folder / "pickled.npz", np.array([{}] * 50))
    (folder / "no.png").write_bytes(b"\x89PNG")
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 2), }"
    (folder / "huge.npy").write_bytes(header.ljust(127) + b"\n" + bytes(64))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short.npy", "are not (50, 2)"),
        ("columns.npy", "columns, not rows"),
        ("two.npz", "which of a, b are the samples? Call them x"),
        ("no.npz", "cannot be read"),
        ("pickled.npz", "not unpickled"),
        ("no.png", "cannot be read"),
        ("huge.npy", "of its header"),
        ("absent", "there is no file or folder"),
    ],
)
def test_files_that_hold_no_samples(tmp_path, cli, name, message):
    broken(tmp_path)
    code, _, err = cli("evaluate", tmp_path / name, "--data", "ring")
    assert code == 2 and message in err and str(tmp_path / name) in err


def test_a_request_keeps_its_own_labels(perfect):
    from twosides.generation.notes import read_notes

    stick = Yardstick.of("unequal:data", 60)
    asked = stick.ask_alike(Request(labels="a"), read_notes(perfect))
    assert asked.labels == "a" and asked.count == 60
