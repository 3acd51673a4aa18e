import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; sys.argv = ['twosides', '--help']\n"
        "from twosides.cli import main\n"
        "try:\n    main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'lightning', 'diffusers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("train", "sample", "recipes", "convert", "compare", "verify", "demo"):
        assert command in done.stdout


def test_compare(cli):
    code, out, _ = cli("compare", "ddim", "flow-euler", "--steps", 10)
    assert code == 0 and "identical" in out and "10 steps on FlowMatching()" in out
    code, out, _ = cli("compare", "flow-matching", "v-cosine")
    assert code == 0 and "factor 1.5708" in out
    code, out, _ = cli("compare", "pf-euler", "ddim", "--schedule", "cosine(-9, 9)")
    assert code == 0 and "different" in out


def test_compare_recipes_for_their_data_and_draw_them(cli, tmp_path):
    from PIL import Image

    code, out, _ = cli("compare", "sd3", "edm", "--data-std", 1, 0.5)
    assert code == 0 and "total variation of w 0.21" in out and "unit-variance" in out
    code, out, _ = cli("compare", "sd3", "sd3+adaptive")
    assert code == 0 and "identical weighting" in out
    for other in ("edm", "flow-matching"):
        path = tmp_path / "new" / f"{other}.png"
        code, out, err = cli("compare", "sd3", other, "--plot", path)
        assert code == 0 and str(path) in out, err
        with Image.open(path) as picture:
            assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 20)) > 50


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("compare", "dimm", "ddim"), "did you mean 'ddim'"),
        (("compare", "ddim", "sd3"), "not of one kind"),
        (("compare", "ddim", "ddpm", "--schedule", "cosin"), "did you mean 'cosine'"),
        (("compare", "ddim", "ddpm", "--schedule", "cosine(1,x)"), "must be numbers"),
        (("compare", "ddim", "ddpm", "--step", "3"), "--step"),
        (("compare", "ddim", "ddpm", "--steps", "0"), "steps must be"),
        (("compare", "ddim", "ddpm", "--plot", "x.png"), "are for recipes"),
        (("compare", "sd3", "edm", "--data-std", "0", "1"), "standard deviation"),
        (("compare", "sd3", "edm", "--steps", "5"), "are for samplers"),
        (("compare", "sd3", "edm", "--plot", "x.jpg"), "written as .png, not '.jpg'"),
        (("sample", "/nowhere"), "holds no config.json"),
        (("sample", "/nowhere", "--out", "x.gif"), "not '.gif'"),
        (("sample", "/nowhere", "--out", "x.npy", "--count", "0"), "--count must be at least 1"),
        (
            ("sample", "/nowhere", "--out", "x.npy", "--count", "200000"),
            "in a folder take any number: --out FOLDER",
        ),
        (("train", "ring", "--out", "x", "--nodes", "2"), "no launcher has started this process"),
        (("train", "ring", "--out", "x", "--minutes", "0"), "minutes must be positive"),
        (("train", "json:nothing", "--out", "x"), "unknown kind of data 'json:nothing'"),
        (("train", "ring", "--out", "x", "--learning-rate", "1e30"), "is not finite"),
        (("train", "glyfs", "--out", "x"), "did you mean 'glyphs'"),
        (("train", "ring", "--out", "x", "--recipe", "sd33"), "did you mean 'sd3'"),
        (("trian",), "trian"),
    ],
)
def test_errors_are_one_clear_line(cli, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*words)
    assert code == 2 and message in err + out and "Traceback" not in err


def test_a_folder_is_of_one_run(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.txt").write_text("mine")
    words = ("--steps", 4, "--batch", 8, "--checkpoint-every", 2)
    code, _, err = cli("train", "ring", "--out", "photos", *words)
    assert code == 2 and "holds no run" in err
    (tmp_path / "data.py").write_text(
        "from twosides.data.named import task_named\ndef again():\n    return task_named('ring')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert cli("train", "ring", "--out", "run", *words)[0] == 0
    model = (tmp_path / "run/model/model.safetensors").read_bytes()
    for data, steps, message in (
        ("data:again", 4, "about.data 'ring', not 'data:again'"),
        ("ring", 3, "has a model of 4 steps, more than the 3 that were asked"),
    ):
        code, _, err = cli("train", data, "--out", "run", "--steps", steps, *words[2:])
        assert code == 2 and message in err
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == model
    (tmp_path / "run/model/model.safetensors").write_bytes(model[:-1] + b"x")
    with pytest.warns(UserWarning, match="the model is damaged and is made again"):
        assert cli("train", "ring", "--out", "run", *words)[0] == 0
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == model


def test_a_run_that_cannot_begin_leaves_its_folder_and_warnings_are_lines(tmp_path):
    for name in ("a", "b"):
        values = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes(b"no picture")

    def train(options):
        words = f"train folder:{tmp_path}?size=8{options} --out {tmp_path / 'run'}"
        more = "--steps 1 --batch 3".split()
        code = [sys.executable, "-m", "twosides", *words.split(), *more]
        return subprocess.run(code, capture_output=True, text=True)

    first = train("")
    assert first.returncode == 2 and "c.png is no PNG" in first.stderr
    assert [each.name for each in (tmp_path / "run").iterdir()] in ([], [".lock"])
    second = train(",max_bad=0.5")
    assert second.returncode == 0, second.stderr
    said = [line for line in second.stderr.splitlines() if "c.png is no PNG" in line]
    assert len(said) == 1 and said[0].startswith("twosides: ")
    assert "warnings.warn" not in second.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_training_that_is_told_to_stop_says_that_it_has_not_finished(tmp_path, number, status):
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from twosides.cli import main; main()"
    )
    words = f"train ring --out {tmp_path / 'run'} --steps 1000000 --batch 8 --checkpoint-every 20"
    with open(tmp_path / "said.txt", "w") as said:
        child = subprocess.Popen(
            [sys.executable, "-c", code, *words.split()], stdout=said, stderr=said
        )
        while not list((tmp_path / "run").glob("checkpoints/step-*")):
            assert child.poll() is None, (tmp_path / "said.txt").read_text()
            time.sleep(0.05)
        child.send_signal(number)
        assert child.wait(60) == status, (tmp_path / "said.txt").read_text()
    assert "Traceback" not in (tmp_path / "said.txt").read_text()
    assert not (tmp_path / "run/model").exists()


def test_train_sample_convert(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(
        "train", "ring", "--out", "run", "--steps", 20, "--batch", 32, "--checkpoint-every", 10
    )
    assert code == 0 and "ready" in out, err
    code, _, err = cli("sample", "run", "--out", "a.npy", "--count", 6, "--steps", 5, "--seed", 1)
    assert code == 0, err
    code, _, err = cli(
        "convert", "run", "diffusion", "--output", "v", "--schedule", "cosine", "--time", "logsnr"
    )
    assert code == 0, err
    code, _, err = cli(
        "sample",
        "diffusion",
        "--schedule",
        "flow-matching",
        "--out",
        "b.npy",
        "--count",
        6,
        "--steps",
        5,
        "--seed",
        1,
    )
    assert code == 0, err
    a, b = np.load("a.npy"), np.load("b.npy")
    assert a.shape == (6, 2) and np.abs(a - b).max() < 1e-4
    code, _, err = cli(
        "sample",
        "run",
        "--out",
        "c.npy",
        "--sampler",
        "ddim",
        "--noise",
        "churn(0.4)",
        "--count",
        3,
    )
    assert code == 0, err
    code, _, err = cli("sample", "run", "--out", "c.png", "--count", 3)
    assert code == 2 and "no pictures" in err
    code, _, err = cli("sample", "run", "--out", "c.npy", "--guidance", "2")
    assert code == 2 and "dropped classes" in err
    assert not list(Path().glob("*.tmp*"))


def test_only_a_grid_from_pure_noise_needs_another_schedule():
    import twosides as ts
    from twosides.generation.samples import schedule_to_start_on

    network = torch.nn.Identity()
    score = ts.Denoiser(network, output="score", schedule=ts.FlowMatching(), time="logsnr")
    velocity = ts.Denoiser(network, output="u", schedule=ts.FlowMatching(), time="t")
    assert schedule_to_start_on(score, "ddim", 5) == ts.Cosine(-12.0, 12.0)
    assert schedule_to_start_on(score, "edm", 5) is None  # which begins at sigma = 80
    assert schedule_to_start_on(velocity, "ddim", 5) is None


def test_pictures_of_letters(cli, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("twosides.data.named.Glyphs", _few_letters)
    code, _, err = cli(
        "train", "glyphs", "--out", "run", "--steps", 2, "--batch", 4, "--picture-every", 2
    )
    assert code == 0, err
    with Image.open("run/samples/step-00000002.png") as picture:
        assert picture.width > 100
    score = ("--recipe", "sit-linear-score", "--steps", 2, "--batch", 4, "--picture-every", 2)
    assert cli("train", "glyphs", "--out", "score", *score)[0] == 0
    assert Path("score/samples/step-00000002.png").is_file()
    assert cli("sample", "score", "--steps", 2, "--count", 2, "--out", "score.npy")[0] == 0
    assert cli("sample", "score", "--steps", 2, "--count", 2, "--out", "score-shards")[0] == 0
    shard = np.load("score-shards/shard-00000.npy")
    np.testing.assert_allclose(shard, np.load("score.npy"), atol=1e-4)
    code, _, err = cli(
        "sample",
        "run",
        "--labels",
        "TWOSIDES",
        "--guidance",
        "1.5",
        "--steps",
        2,
        "--out",
        "word.png",
    )
    assert code == 0, err
    with Image.open("word.png") as picture:
        assert picture.height > 16
    code, _, err = cli(
        "sample", "run", "--labels", "AB", "--count", 5, "--steps", 2, "--out", "few.npy"
    )
    assert code == 0 and len(np.load("few.npy")) == 5, err
    code, _, err = cli("sample", "run", "--labels", "", "--out", "word.png")
    assert code == 2 and "no label was given" in err
    code, _, err = cli("sample", "run", "--labels", "two", "--out", "word.png")
    assert code == 2 and "unknown class 't'" in err


def _few_letters(size):
    from twosides.data.glyphs import Glyphs

    return Glyphs(size, 52)


def test_verify_exits_with_the_verdict(cli, monkeypatch):
    from twosides.reports import claims

    few = claims.CLAIMS[:2]
    monkeypatch.setattr(claims, "CLAIMS", few)
    code, out, _ = cli("verify")
    assert code == 0 and "2 of 2 claims hold" in out and out.count("PASS") == 2
    monkeypatch.setattr(claims, "CLAIMS", [*few, claims.Claim("no", lambda: 1.0, at_most=0.0)])
    code, out, _ = cli("verify")
    assert code == 1 and "FAIL" in out


def test_demo(cli, tmp_path, monkeypatch):
    """The whole demo, hardly trained; again, it tells what it found."""
    from dataclasses import replace

    from twosides.reports import demo

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("twosides.data.named.Glyphs", _few_letters)
    monkeypatch.setattr(demo, "COPIES", 1)
    monkeypatch.setattr(demo, "train_reader", _short_reader)
    monkeypatch.setattr(demo, "SETUPS", tuple(replace(s, steps=2) for s in demo.SETUPS[:3]))
    words = ("demo", "--out", "run", "--steps", 2)
    code, out, err = cli(*words)
    assert code == 0 and "0 of 6656 pixels differ" in out, out + err
    page = Path("run/report.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and page.count("<svg") == 1
    assert "{{" not in page and "http" not in page
    code, again, _ = cli(*words)
    assert code == 0 and "made before" in again and "training" not in again
    assert again.splitlines()[:2] == [
        line for line in out.splitlines() if "same noise" in line or "max |" in line
    ]


def _short_reader(size, seed):
    from twosides.data.reader import train_reader

    return train_reader(size, seed, steps=5)
