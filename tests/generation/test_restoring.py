"""`twosides restore` and `sample --reward` on a small network of pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from program import run
from twosides.denoiser import Denoiser
from twosides.posteriors.operators import blur, crop, downsample, inpaint
from twosides.storage import models


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from diffusers import UNet2DModel

    folder = tmp_path_factory.mktemp("models") / "model"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet2DModel(
            8, 1, 1, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
            num_class_embeds=3, add_attention=False,
            down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        )  # fmt: skip
    denoiser = Denoiser(network, output="u", time="1000t")
    models.save(denoiser, folder, shape=[1, 8, 8], classes="ab", null={"class_labels": 2})
    return folder


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return lambda *words: run(capsys, monkeypatch, *words)


def picture(name, values):
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(name)
    return name


HALF = [[255] * 4 + [0] * 4] * 8
GREY = np.full((8, 8), 160)


@pytest.mark.parametrize(
    ("operator", "given"),
    [
        ("inpaint:mask.png", GREY),
        ("downsample:4", np.full((2, 2), 160)),
        ("blur:1.5", GREY),
        ("crop:4", np.full((4, 4), 160)),
        ("inpaint:mask.png --particles 4", GREY),
        ("downsample:4 --method diffpir --labels b", np.full((2, 2), 160)),
    ],
)
def test_a_picture_is_restored_to_what_was_seen(cli, model, operator, given):
    """The operator's output of the result is the damaged picture, up to the noise; by any prior."""
    picture("mask.png", HALF), picture("damaged.png", given)
    words = ("--operator", *operator.split(), "--steps", 10, "--noise", 0.05, "--count", 2)
    code, out, err = cli("restore", model, "damaged.png", *words, "--out", "x.npy")
    assert code == 0, err
    x = torch.from_numpy(np.load("x.npy"))
    assert x.shape == (2, 1, 8, 8) and "ddpm, 10 steps" in out
    kind, _, _ = operator.split()[0].partition(":")
    made = {"inpaint": inpaint(torch.tensor(HALF) > 0), "downsample": downsample(4),
            "blur": blur(1.5), "crop": crop(4)}[kind]  # fmt: skip
    seen = made(x)
    wanted = made(torch.full((1, 1, 8, 8), 160 / 127.5 - 1))
    assert float((seen - wanted).square().mean().sqrt()) < 0.15
    assert float((x[0] - x[1]).abs().max()) > 0.1  # of many possibilities


def test_an_operator_of_ones_own_is_code_from_outside(cli, model, tmp_path):
    (tmp_path / "halves.py").write_text("def left(x):\n    return x[..., :4]\n")
    np.save("y.npy", np.zeros((1, 8, 4), dtype=np.float32))
    words = ("restore", model, "y.npy", "--operator", "halves:left", "--steps", 5)
    code, _, err = cli(*words)
    assert code == 2 and "--trust-code" in err
    code, out, err = cli(*words, "--trust-code")
    assert code == 0 and "restored.png: (4, 1, 8, 8)" in out, err
    with Image.open("restored.png") as sheet:
        # What was damaged, enlarged, and the four restored: rows of three.
        assert sheet.size == (3 * (3 * 9 + 1), 3 * (2 * 9 + 1))


def test_rewards_steer_and_are_code_from_outside(cli, model, tmp_path):
    (tmp_path / "likes.py").write_text("def bright(x):\n    return 40 * x.mean((1, 2, 3))\n")
    words = ("sample", model, "--sampler", "ddpm", "--steps", 8, "--count", 6, "--out", "x.npy")
    code, _, err = cli(*words, "--reward", "likes:bright")
    assert code == 2 and "--trust-code" in err
    code, out, err = cli(*words, "--reward", "likes:bright", "--trust-code", "--particles", 12)
    assert code == 0 and "of 12 particles" in out, err
    steered = np.load("x.npy")
    assert cli(*words)[0] == 0
    assert steered.mean() > np.load("x.npy").mean() + 0.05


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--operator", "downsmple:4"), "did you mean|module named|outside this library"),
        (("--operator", "downsmple"), "did you mean 'downsample:4'"),
        (("--operator", "downsample:3"), "not divided by 3"),
        (("--operator", "downsample:x"), "takes a number"),
        (("--operator", "downsample:2"), "has 8 x 8 pixels, and must have 4 x 4"),
        (("--operator", "inpaint:none.png"), "none.png"),
        (("--operator", "crop:9"), "9 x 9 pixels are not in"),
        (("--operator", "blur:0"), "positive"),
        (("--operator", "blur:1", "--noise", -1), "at least 0"),
        (("--operator", "blur:1", "--labels", "z"), "unknown class"),
        (("--operator", "blur:1", "--out", "x.jpg"), "as .png or .npy"),
        (("--operator", "blur:1", "--sampler", "ddim", "--particles", 4), "stochastic sampler"),
        (("--operator", "blur:1", "--particles", 0), "at least 1"),
    ],
)
def test_bad_input_is_named(cli, model, words, message):
    import re

    picture("damaged.png", GREY)
    code, _, err = cli("restore", model, "damaged.png", "--steps", 2, *words)
    assert code == 2 and re.search(message, err), err


def test_operators_say_what_they_take():
    for make in (lambda: downsample(1), lambda: crop(0), lambda: inpaint(torch.zeros(2, 2))):
        with pytest.raises(ValueError, match="at least|knows one"):
            make()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(blur(1.0)(torch.ones(1, 1, 8, 8)), torch.ones(1, 1, 8, 8))
    assert float(blur(2.0)(x).std()) < 0.5 * float(x.std())
