"""The command line on folders of diffusers pipelines."""

from functools import partial

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import twosides as ts
from pipelines import WIDE, dit, of, plain_unet2d, sd3, vae
from text_pipelines import saved
from twosides.integrations.diffusers import Scheduler, load_denoiser
from twosides.integrations.diffusers.pipelines import load_pipeline
from twosides.storage import devices

# The schedulers of diffusers make arrays of tensors in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


classes = of(
    diffusers.DiTPipeline, "dit", transformer=partial(dit, diffusers.DiTTransformer2DModel), vae=vae
)
plain = of(diffusers.DDPMPipeline, "flow", unet=plain_unet2d)
mute = of(diffusers.StableDiffusion3Pipeline, "sd3", transformer=sd3, vae=WIDE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    with torch.random.fork_rng():
        for name, build in (("classes", classes), ("plain", plain), ("mute", mute)):
            torch.manual_seed(0)
            build().save_pretrained(root / name)
    saved("sd", root / "text")
    return root


WORDS = ("--steps", 2, "--seed", 5)


def test_a_prompt_becomes_the_pipelines_picture(cli, folders):
    """The same as in Python: our scheduler, one generator per picture."""
    asked = ("--prompt", "a red hat", "--negative-prompt", "mud", "--guidance-scale", 3.0)
    code, out, err = cli(
        "sample", folders / "text", *asked, *WORDS, "--sampler", "dpmpp-2m", "--out", "a.npy"
    )
    assert code == 0 and "(1, 3, 16, 16), dpmpp-2m, 2 steps, seed 5" in out, err
    heard = []
    pipe = load_pipeline(folders / "text")
    pipe.scheduler = Scheduler.from_pipeline(pipe, "dpmpp-2m")
    state = np.random.SeedSequence((5, 0)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0]))
    images = pipe(
        "a red hat",
        negative_prompt="mud",
        guidance_scale=3.0,
        num_inference_steps=2,
        generator=generator,
        output_type="np",
        callback_on_step_end=lambda pipe, i, t, state: heard.append(float(t)) or {},
    ).images
    assert np.abs(np.load("a.npy") - (2 * images.transpose(0, 3, 1, 2) - 1)).max() < 1e-5
    assert len(heard) == 2


def test_every_wish_counts_and_a_picture_depends_on_its_number_only(cli, folders):
    base = {"--prompt": "a red hat", "--negative-prompt": "mud", "--guidance": 4.0, "--seed": 5}
    base |= {"--steps": 3, "--sampler": "ddim"}
    changes = [
        {},
        {"--prompt": "a green bat"},
        {"--negative-prompt": "zoo"},
        {"--guidance": 9.0},
        {"--seed": 6},
        {"--sampler": "ddpm"},
        {"--sampler": "dpmpp-2m"},
        {"--grid": "karras"},
        {"--noise": "eta(1)"},
        {"--count": 2},
    ]
    pictures = []
    for change in changes:
        words = [word for pair in (base | change).items() for word in pair]
        code, _, err = cli("sample", folders / "text", *words, "--out", "a.npy")
        assert code == 0, err
        pictures.append(np.load("a.npy"))
    *alone, both = pictures
    assert np.abs(both[:1] - alone[0]).max() < 1e-5 and both.shape == (2, 3, 16, 16)
    for i, a in enumerate(alone):
        assert all(np.abs(a - b).max() > 1e-4 for b in alone[:i]), changes[i]


@pytest.mark.parametrize("name", ["classes", "plain"])
def test_pictures_are_written_as_png(cli, folders, name):
    labels = ("--labels", "3,7") if name == "classes" else ()
    drawn = ("sample", folders / name, *WORDS, "--sampler", "ddpm", "--count", 2, *labels)
    for out in ("a.npy", "b.png", "pngs"):
        code, _, err = cli(*drawn, "--out", out)
        assert code == 0, err
    x = np.load("a.npy")
    pixels = np.round((x.clip(-1, 1) + 1) * 127.5).transpose(0, 2, 3, 1).astype(np.uint8)
    for number in range(2):
        with Image.open(f"pngs/0000{number}.png") as picture:
            assert np.array_equal(np.asarray(picture), pixels[number])
    side = x.shape[-1]
    with Image.open("b.png") as picture:
        assert picture.size == (2 * side + 3, side + 2)
        assert np.array_equal(np.asarray(picture)[1:-1, side + 2 : -1], pixels[1])
    cli("sample", folders / name, *WORDS, *(("--labels", "3") if labels else ()), "--out", "c.png")
    with Image.open("c.png") as picture:
        assert picture.size == (side, side)


def test_convert_writes_the_network_in_another_notation(cli, folders):
    code, out, err = cli("convert", folders / "plain", "v", "--output", "v", "--schedule", "cosine")
    assert code == 0 and "u on FlowMatching() -> v on Cosine" in out, err
    before, after = load_denoiser(folders / "plain"), ts.load("v")
    assert after.output.name == "v" and after.schedule == ts.Cosine()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    level = ts.FlowMatching().at(torch.tensor([0.3, 0.7]))
    with torch.no_grad():
        assert torch.allclose(before(x, level).x, after(x, level).x, atol=1e-5)


def test_explain_prints_the_report(cli, folders):
    code, out, err = cli("explain", folders / "mute", "--steps", 4)
    assert code == 0 and "applied twice" in out and "SD3Transformer2DModel predicts u" in out, err
    code, out, _ = cli("explain", folders / "plain")
    assert code == 0 and "traps: none found" in out
    code, _, err = cli("explain", "/no/such/folder")
    assert code == 2 and "neither a folder nor a name" in err


def test_an_accelerator_runs_the_precision_that_is_stored(folders, tmp_path, monkeypatch):
    with torch.random.fork_rng():
        plain().to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert load_pipeline(tmp_path / "half").unet.dtype == torch.float32
    monkeypatch.setattr(devices, "accelerator", lambda: torch.device("meta"))
    assert load_pipeline(tmp_path / "half").unet.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("mute", ("--prompt", "a hat"), "no tokenizer"),
        ("text", (), "needs a prompt"),
        ("plain", ("--prompt", "a hat"), "takes no prompt"),
        ("plain", ("--guidance", 2.0), "takes no guidance scale"),
        ("plain", ("--labels", "3"), "takes no class labels"),
        ("classes", ("--labels", "dog"), "--labels 207,360"),
        ("classes", (), "--labels 207,360"),
        ("plain", ("--schedule", "cosine"), "leave --schedule out"),
        ("plain", ("--out", "a.gif"), "not '.gif'"),
        ("plain", ("--sampler", "dimm"), "did you mean 'ddim'"),
        ("nowhere", ("--prompt", "a hat"), "holds no config.json"),
    ],
)
def test_errors_are_one_clear_line(cli, folders, name, words, message):
    code, out, err = cli("sample", folders / name, *WORDS, *words)
    assert code == 2 and message in err + out and "Traceback" not in err


def test_pickles_are_not_read(cli, folders, tmp_path):
    with torch.random.fork_rng():
        plain().save_pretrained(tmp_path / "pickled", safe_serialization=False)
    code, _, err = cli("sample", tmp_path / "pickled", *WORDS)
    assert code == 2 and "safetensors" in err and "Traceback" not in err
    code, _, err = cli("convert", tmp_path / "pickled", tmp_path / "out")
    assert code == 2 and "allow_pickle" in err and not (tmp_path / "out").exists()
