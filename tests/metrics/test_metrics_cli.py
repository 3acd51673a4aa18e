"""`twosides evaluate` and `twosides report`, extractors by name, and where samples come from."""

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from twosides import metrics
from twosides.conversion import convert
from twosides.data.named import task_named
from twosides.data.stored import Stored
from twosides.denoiser import Denoiser
from twosides.display import html
from twosides.generation.request import Request
from twosides.generation.samples import model_samples
from twosides.metrics import command
from twosides.metrics.sources import Yardstick
from twosides.oracle import GaussianMixture
from twosides.reports.side_by_side import LEVELS, eps_errors
from twosides.schedules import FlowMatching
from twosides.storage import models
from twosides.storage.networks import MLP
from twosides.training.fit import loss_curve

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import ten_recipes

RING = GaussianMixture.ring(8)


# ---------------------------------------------------------------------------- ten recipes


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    """Ten trained runs and their page."""
    out = tmp_path_factory.mktemp("ten")
    ten_recipes.main(["--data", "ring", "--steps", "20", "--count", "60", "--out", str(out)])
    return out


class Table(HTMLParser):
    """The cells of a page's first table, and what does not close."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def test_ten_recipes_train_and_stand_side_by_side(ten):
    for name in ten_recipes.TEN:
        steps, losses = loss_curve(ten / name)
        assert len(steps) == 2 and all(math.isfinite(loss) and loss > 0 for loss in losses)
    text = (ten / "report.html").read_text()
    table = Table(text)
    assert not table.open and "nan" not in text and "{{" not in text
    assert not re.search(r'http|(src|href)="(?!data:|#)|url\((?!#)|@import|<script', text)
    head, *rows = table.rows
    assert tuple(head[1:]) == ten_recipes.TEN
    assert all(len(row) == 11 for row in rows)
    cells = {row[0].split("data:")[0]: row[1:] for row in rows}
    assert cells["output"][:4] == ["u", "v", "eps", "F(0.5)"]
    assert cells["same weighting as (or nearest)"][0] == "v-cosine x 1.571"
    assert cells["levels p"][3] == "N(2.4, 2.4^2)"
    assert {"last losses", *metrics.METRICS} <= set(cells)
    assert "time" not in cells and "batch" not in cells  # what is common to all is said once
    assert "batch 32" in text and text.count('class="dots"') == 10
    for chart in ("weightings", "loss against step", "mean squared error against"):
        assert text.count(f'aria-label="{chart}') == 1


def test_a_report_of_other_runs(ten, tmp_path, cli):
    """Two folders of one recipe, and a model that no recipe of the table made."""
    runs = [ten / "sd3", ten / "sd3"]
    code, out, err = cli("report", *runs, "--out", tmp_path / "a.html", "--count", 3)
    assert code == 0 and "2 runs" in out, err
    text = (tmp_path / "a.html").read_text()
    assert Table(text).rows[0] == ["", str(runs[0]), str(runs[1])]
    assert "frechet" not in text and "Error of eps" not in text
    with torch.random.fork_rng(devices=[]):
        model = Denoiser(MLP(3), "x", "cosine")
    models.save(model, tmp_path / "own", shape=[3], recipe="<mine>")
    assert cli("report", tmp_path / "own", "--out", tmp_path / "b.html", "--count", 3)[0] == 0
    text = (tmp_path / "b.html").read_text()
    assert "&lt;mine&gt;" in text and "<mine>" not in text
    assert ["schedule", "Cosine()"] in Table(text).rows
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        broken = Denoiser(MLP(2), "x", "cosine")
        broken.network.leave.weight.fill_(float("nan"))
    models.save(broken, tmp_path / "nan", shape=[2])
    both = (ten / "sd3", tmp_path / "nan")
    with pytest.warns(UserWarning) as told:
        code, out, err = cli(
            "report", *both, "--data", "ring", "--out", tmp_path / "d.html", "--count", 60
        )
    assert code == 0 and "1 run\n" in out, err
    text = (tmp_path / "d.html").read_text()
    assert "is left out: 60 of 60 samples have NaN" in text
    assert any("is left out" in str(each.message) for each in told)
    code, _, err = cli("report", ten / "sd3", "--out", "report.pdf")
    assert code == 2 and "as .html" in err
    code, _, err = cli("report", "--out", tmp_path / "c.html")
    assert code == 2 and not (tmp_path / "c.html").exists()


def test_eps_errors_are_those_of_the_exact_denoiser():
    """Of any notation; the error of the exact one is that of the posterior mean."""
    task = task_named("ring")
    notations = [("u", "flow-matching"), ("v", "cosine"), ("F(0.5)", "edm")]
    found = [
        eps_errors(Denoiser(convert(RING, output, where), output, where), task, 0)
        for output, where in notations
    ]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-3, nan_ok=True)
    assert len(found[0]) == len(LEVELS) and found[0][0] < 0.01
    # Where the noise is far below the width of a mode, nothing of eps is left to see but
    # 1 - sigma^2 / (sigma^2 + 0.01 alpha^2) of it.
    snr = math.exp(LEVELS[-1])
    assert found[0][-1] == pytest.approx(1 - 1 / (1 + 0.01 * snr), rel=0.15)


# ---------------------------------------------------------------------------- evaluate


def everything(path):
    stored = Stored(path)
    return torch.stack([stored[number]["x"] for number in range(len(stored))])


def test_evaluate_a_model(ten, tmp_path, cli, monkeypatch):
    words = ("--data", "ring", "--count", 60, "--steps", 3, "--json", tmp_path / "e.json")
    code, out, err = cli("evaluate", ten / "edm", *words)
    assert code == 0 and "features: pixels" in out, err
    assert [line.split()[0] for line in out.splitlines()[2:]] == list(metrics.METRICS)
    told = json.loads((tmp_path / "e.json").read_text())
    x = model_samples(ten / "edm", Request(steps=3, count=60))
    exact = metrics.frechet(x, Yardstick.of("ring", 60).reference)
    assert told["metrics"]["frechet"]["value"] == exact
    assert told["metrics"]["frechet"]["samples"] == 60
    monkeypatch.setattr(command, "sample_batches", None)  # nothing is drawn to be refused
    code, _, err = cli("evaluate", ten / "edm", "--data", "ring", "--count", 3)
    assert code == 2 and "3 samples and 3 of reference are too few" in err
    # Untrained samples are further from the data than data are.
    assert told["data_against_data"]["frechet"]["value"] < exact


def test_uncertainty_level_by_level(tmp_path, cli):
    """Of a network that answers u = 0 at every state, x_hat = z, and the derivative is 1."""
    with torch.random.fork_rng(devices=[]):
        network = MLP(2, 8, 1)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    models.save(Denoiser(network), tmp_path / "model", shape=[2])
    words = ("evaluate", "model", "--data", "ring")
    code, out, err = cli(*words, "--uncertainty", "u.png", "--count", 64)
    assert code == 0 and Path("u.png").read_bytes()[:4] == b"\x89PNG", err
    rows = [line.split() for line in out.splitlines()[2:] if line]
    assert [float(row[0]) for row in rows] == list(range(-8, 11, 2))
    for logsnr, _, stated, *_ in rows:
        alpha, sigma = FlowMatching().level(float(logsnr)).floats()[1:]
        assert float(stated) == pytest.approx(sigma**2 / alpha, rel=2e-3)
    for more, said in (
        (("--uncertainty", "u.jpg"), "written as .png"),
        (("--uncertainty", "u.png", "--json", "n.json"), "leave --json out"),
        (("--uncertainty", "u.png", "--steps", 50), "leave --steps out"),
    ):
        code, _, err = cli(*words, *more)
        assert code == 2 and said in err


def test_batches_change_no_sample(ten):
    request = Request(steps=3, count=7)
    whole = model_samples(ten / "edm", request)
    parts = model_samples(ten / "edm", request, batch=3)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_evaluate_files_of_exact_samples(tmp_path, cli):
    """A folder of shards of both kinds; exact samples measure what data do."""
    x = RING.sample(300, seed=7).float()
    folder = tmp_path / "shards"
    folder.mkdir()
    np.save(folder / "part-0.npy", x[:100].numpy())
    save_file({"x": x[100:200].clone(), "label": torch.zeros(1)}, folder / "part-1.safetensors")
    save_file({"only": x[200:].clone()}, folder / "part-2.safetensors")
    assert torch.equal(everything(folder), x)
    chosen = ("--metrics", "mmd", "density")
    code, out, err = cli(
        "evaluate", folder, "--data", "ring", *chosen, "--json", tmp_path / "e.json"
    )
    assert code == 0 and "300 samples" in out and "frechet" not in out, err
    told = json.loads((tmp_path / "e.json").read_text())["metrics"]
    assert abs(told["mmd"]["value"]) < 4 * told["mmd"]["error"]
    assert abs(told["density"]["value"] - 1) < 4 * told["density"]["error"]
    code, out, _ = cli("evaluate", folder / "part-0.npy", "--data", "ring", "--count", 50, *chosen)
    assert code == 0 and "50 samples" in out


@pytest.mark.parametrize(
    ("files", "words", "message"),
    [
        ({}, (), "holds no samples"),
        ({"a.npy": np.zeros((50, 2), np.float32)}, ("--count", 60), "fewer than 60"),
        ({"a.npy": np.zeros((50, 2), np.float32)}, ("--count", 0), "at least 1"),
        ({"a.npy": np.zeros((50, 3), np.float32)}, (), "shape (3,), but the data (2,)"),
        ({"a.npy": np.zeros((50, 2), np.uint8)}, (), "must be floating point"),
        ({"a.npy": np.zeros((9, 2), np.float32)}, (), "at least 40"),
        ({"a.npy": np.float32(1)}, (), "holds no samples: its shape is ()"),
        ({"a.npy": np.array([{}])}, (), "cannot be read"),
        ({"a.npy": np.zeros((50, 2)), "b.npy": np.zeros((50, 3))}, (), "keep one kind"),
        ({"a.npy": np.zeros((50, 2)), "b.safetensors": b"{"}, (), "b.safetensors cannot be read"),
        ({"a.npy": np.zeros((50, 2))}, ("--metrics", "fid"), "unknown metric 'fid'"),
        ({"a.npy": np.zeros((50, 2))}, ("--extractor", "os:getcwd"), "--trust-code"),
        ({"a.npy": np.zeros((50, 2))}, ("--extractor", "reader"), "grey images"),
    ],
)
def test_evaluate_refuses(files, words, message, tmp_path, cli, monkeypatch):
    monkeypatch.setattr("twosides.data.reader.train_reader", lambda: None)
    for name, content in files.items():
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        else:
            np.save(tmp_path / name, content, allow_pickle=True)
    code, _, err = cli("evaluate", tmp_path, "--data", "ring", *words)
    assert code == 2 and message in err and "Traceback" not in err


def test_of_several_tensors_one_must_be_called_x(tmp_path):
    save_file({"a": torch.ones(2, 1), "b": torch.ones(2, 1)}, tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match="Call them x"):
        Stored(tmp_path / "s.safetensors")
    (tmp_path / "s.txt").write_text("1")
    with pytest.raises(ValueError, match=r"read from \.npy"):
        Stored(tmp_path / "s.txt")


def test_a_yardstick_needs_enough_rows():
    task = task_named("ring")
    with pytest.raises(ValueError, match="20001 rows"):
        Yardstick.of(task, 20_001)
    assert Yardstick.of(task, 10_001).perfect() == {}
    stick = Yardstick.of(task, 100)
    rows = {tuple(row) for row in torch.cat([stick.reference, stick.other]).tolist()}
    assert len(rows) == 200


# ---------------------------------------------------------------------------- extractors


def test_letters_are_read_by_the_reader(monkeypatch):
    from twosides.data.glyphs import Glyphs
    from twosides.data.reader import Reader

    with torch.random.fork_rng(devices=[]):
        reader = Reader()
    monkeypatch.setattr("twosides.data.named.Glyphs", lambda size: Glyphs(size, 104))
    monkeypatch.setattr("twosides.data.reader.train_reader", lambda: reader)
    stick = Yardstick.of("glyphs", 52)
    assert stick.name == "reader" and stick.reference.shape == (52, 128)
    squares = (stick.reference**2).mean(1)
    torch.testing.assert_close(squares, torch.ones_like(squares), rtol=1e-5, atol=0)


def test_an_extractor_from_an_import_path(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def halves(x):\n    return x.flatten(1) / 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = metrics.extractor_named("mine:halves", trust_code=True)
    assert torch.equal(found(torch.ones(2, 3)), torch.full((2, 3), 0.5))
    with pytest.raises(ValueError, match="no function called 'quarters'"):
        metrics.extractor_named("mine:quarters", trust_code=True)


def dino(folder):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    return Dinov2Model(config)


def clip(folder):
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision = {**small, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    text = {**small, "num_attention_heads": 2, "vocab_size": 20}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


@pytest.mark.parametrize(("make", "dims"), [(dino, 16), (clip, 8)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_transformers_folder(make, dims, tmp_path):
    """The features are the model's own, of images prepared as its file says."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make(tmp_path).eval()
    model.save_pretrained(tmp_path)
    said = {
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.4],
        "crop_size": {"height": 28},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    extractor = metrics.extractor_named(str(tmp_path))
    x = torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    got = metrics.extract(x, extractor)
    mean, std = (torch.tensor(said[key]).reshape(-1, 1, 1) for key in ("image_mean", "image_std"))
    images = ((x + 1) / 2 - mean) / std
    with torch.no_grad():
        if make is dino:
            want = model(pixel_values=images).pooler_output
        else:
            want = model.visual_projection(model.vision_model(pixel_values=images).pooler_output)
    assert got.shape == (3, dims)
    torch.testing.assert_close(got, want.double(), rtol=1e-4, atol=1e-5)
    grey = metrics.extract(x[:, :1], extractor)
    torch.testing.assert_close(grey, metrics.extract(x[:, :1].expand(-1, 3, -1, -1), extractor))
    assert "torchvision" not in sys.modules
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no preprocessor_config\.json"):
        metrics.extractor_named(str(tmp_path))


# ---------------------------------------------------------------------------- pages


def test_a_page_is_filled_once_and_escaped():
    made = html.page(
        "a < b",
        "reports/side_by_side.html",
        dict.fromkeys(
            ("title", "lead", "table", "notes", "weightings", "losses", "errors"), "{{title}}"
        ),
    )
    assert "<title>a &lt; b</title>" in made and made.count("{{title}}") == 7
    with pytest.raises(KeyError, match="lead"):
        html.page("a", "reports/side_by_side.html", {"title": "a"})
    rows = Table(html.table([("", "<b>"), ("c", "d & e")])).rows
    assert rows == [["", "<b>"], ["c", "d & e"]]


def test_charts_take_the_colour_of_the_page():
    figure, axes = html.axes(xlabel="step", ylabel="loss")
    axes.plot([0, 1], [1, 0])
    svg = html.chart(figure, "a chart")
    assert "#000000" not in svg and "currentColor" in svg and "#ffffff" not in svg.lower()
    assert svg == html.chart(figure, "a chart") and svg.count("<svg") == 1
    assert ">loss</text>" in svg
