"""Latents of a small pipeline: what is stored, drawn, resumed and trained on."""

import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import twosides.data.encode as encoding
from pipelines import SCHEDULERS, unet
from text_pipelines import PIPELINES, clip_tokenizer
from twosides.data.latents import Latents
from twosides.data.named import task_named
from twosides.data.summary import summary
from twosides.storage.files import CorruptFolder

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

MADE = 18


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = PIPELINES["sd"]()
        pipe.vae.register_to_config(scaling_factor=0.25, shift_factor=0.5)
        pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(MADE):
        path = folder / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        values = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(values).save(path)
        path.with_suffix(".txt").write_text("aab" if i % 2 else "c")
    (folder / "a" / "08.png").write_bytes(b"no")
    return folder


def encode(photos, pipeline, out, options="", **more):
    name = f"folder:{photos}?size=16{options}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return encoding.encode_latents(task_named(name).data, name, pipeline, out, batch=4, **more)


def test_sizes_that_do_not_fit_the_vae_are_refused(photos, pipeline, tmp_path):
    name = f"folder:{photos}?size=15"
    with pytest.raises(ValueError, match="images of 15 pixels.* 2 by 2: take size=14"):
        encoding.encode_latents(task_named(name).data, name, pipeline, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def encoded(photos, pipeline, tmp_path_factory):
    out = tmp_path_factory.mktemp("latents") / "plain"
    encode(photos, pipeline, out, ",flip")
    return out


def truth(photos, pipeline):
    """Mean and std of the VAE's posterior, in diffusers' own words, for the good images."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        model = AutoencoderKL.from_pretrained(pipeline, subfolder="vae").eval()
    paths = [p for p in sorted(photos.rglob("*.png")) if p.name != "08.png"]
    values = torch.stack([torch.from_numpy(np.array(Image.open(p))) for p in paths])
    images = values.permute(0, 3, 1, 2) / 127.5 - 1
    images = torch.cat([images, images.flip(-1)])
    with torch.no_grad():
        dist = model.encode(images).latent_dist
    return (dist.mean - 0.5) * 0.25, dist.std * 0.25


def test_the_posterior_is_stored_in_the_networks_units(encoded, photos, pipeline):
    mean, std = truth(photos, pipeline)
    data = Latents(encoded, mean=True)
    assert len(data) == 2 * (MADE - 1) and data.shape == (4, 8, 8)
    found = torch.stack([data[i]["x"] for i in range(len(data))])
    torch.testing.assert_close(found, mean, rtol=0, atol=1e-5)
    labels = [int(data[i]["class_labels"]) for i in range(len(data))]
    assert labels == ([0] * 8 + [1] * 9) * 2 and data.classes == ("a", "b")
    assert len(data.bad) == 1 and "a/08.png is no PNG" in data.bad[0]
    second = (mean.double() ** 2 + std.double() ** 2).mean((0, 2, 3))
    first = mean.double().mean((0, 2, 3))
    torch.testing.assert_close(data.data_mean.flatten(), first, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        data.data_std.flatten(), (second - first**2).sqrt(), atol=1e-6, rtol=0
    )


def test_draws_belong_to_seed_and_index(encoded, photos, pipeline):
    mean, std = truth(photos, pipeline)
    draws = []
    for seed in range(60):
        data = Latents(encoded, seed=seed)
        draws.append(torch.stack([data[i]["x"] for i in range(0, len(data), 3)]))
    noise = (torch.stack(draws) - mean[::3]).double() / std[::3]
    count = noise.numel()  # some 180,000 standard normal numbers: 5 standard deviations
    assert abs(float(noise.mean())) < 5 / count**0.5
    assert abs(float(noise.var()) - 1) < 5 * (2 / count) ** 0.5
    assert torch.equal(Latents(encoded, seed=7)[30]["x"], draws[7][10])


def test_a_killed_encoding_goes_on(encoded, photos, pipeline, tmp_path, monkeypatch):
    out = tmp_path / "latents"
    monkeypatch.setattr(encoding, "ROWS", 8)
    real, calls = encoding._shard, []

    def killed(data, rows, *rest):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(data, rows, *rest)

    monkeypatch.setattr(encoding, "_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        encode(photos, pipeline, out, ",flip")
    with pytest.raises(FileNotFoundError, match="continues where it was interrupted"):
        Latents(out)
    data = encode(photos, pipeline, out, ",flip")
    assert [rows.start for rows in calls] == [0, 8, 16, 16, 24, 32]  # no shard twice
    assert data.bad and len(data) == 2 * (MADE - 1)
    whole = Latents(encoded)
    for i in range(len(data)):
        torch.testing.assert_close(data[i]["x"], whole[i]["x"], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="holds another run.*flip True, not False"):
        encode(photos, pipeline, out)


def test_captions_are_embedded_by_the_pipeline(photos, pipeline, tmp_path):
    from transformers import CLIPTextModel

    data = encode(photos, pipeline, tmp_path / "latents", captions=True)
    with torch.random.fork_rng(devices=[]):
        model = CLIPTextModel.from_pretrained(pipeline / "text_encoder").eval()

    def embedded(words):
        ids = clip_tokenizer()(words, padding="max_length", truncation=True, return_tensors="pt")
        with torch.no_grad():
            return model(ids.input_ids)[0][0]

    assert data.classes == ()
    null = data.null["encoder_hidden_states"][0]
    torch.testing.assert_close(null, embedded(""), atol=1e-5, rtol=0)
    for i, words in ((0, "c"), (8, "aab")):
        assert set(data[i]) == {"x", "encoder_hidden_states"}
        torch.testing.assert_close(
            data[i]["encoder_hidden_states"], embedded(words), atol=1e-5, rtol=0
        )


def test_training_drops_captions_to_the_null_prompt(photos, pipeline, tmp_path):
    from twosides.losses.recipes import recipe_named
    from twosides.randomness import PerSample
    from twosides.training.fit import Module, Settings
    from twosides.training.run import train_task

    encode(photos, pipeline, tmp_path / "latents", captions=True)
    task = task_named(f"latents:{tmp_path / 'latents'}")
    null = task.null["encoder_hidden_states"]
    recipe = recipe_named("flow-matching")
    module = Module(
        recipe.denoiser(torch.nn.Identity()),
        recipe.objective(),
        Settings(null=task.null, dropout=0.5),
    )
    texts = torch.stack([task.data[i]["encoder_hidden_states"] for i in range(12)])
    draw = PerSample(0, range(12))
    gone = (PerSample(0, range(12)).uniform() < 0.5).tolist()
    dropped = module._drop({"encoder_hidden_states": texts}, draw)["encoder_hidden_states"]
    assert 0 < sum(gone) < 12
    for row in range(12):
        assert torch.equal(dropped[row], null[0] if gone[row] else texts[row])
    denoiser = train_task(task, tmp_path / "run", "flow-matching", steps=2, batch=3)
    assert denoiser.network.config["cross_attention_dim"] == 16


@pytest.mark.parametrize("damage", ["flipped", "shorter", "more"])
def test_damage_is_named(encoded, tmp_path, damage):
    out = tmp_path / "latents"
    shutil.copytree(encoded, out)
    path = out / "shard-00000" / "latents.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-3] ^= 1
    path.write_bytes(data[:-9] if damage == "shorter" else data + b"1" * (damage == "more"))
    with pytest.raises(CorruptFolder, match=r"latents\.safetensors"):
        Latents(out)[0]


def test_what_cannot_be_encoded_is_refused(photos, tmp_path):
    import diffusers

    with torch.random.fork_rng(devices=[]):
        pipe = diffusers.DDPMPipeline(unet=unet(), scheduler=SCHEDULERS["sd"]())
        pipe.save_pretrained(tmp_path / "ddpm")
    with pytest.raises(ValueError, match="DDPMPipeline without a VAE"):
        encode(photos, tmp_path / "ddpm", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_the_summary_says_what_is_there(encoded, photos, tmp_path, capsys):
    said = summary(f"latents:{encoded}", tmp_path / "a.png")
    assert "34 samples, each (4, 8, 8)" in said and "a 16, b 18" in said and "bad       1" in said
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = summary(f"folder:{photos}?size=16", tmp_path / "b.png")
    data = np.stack(
        [np.array(Image.open(p)) for p in sorted(photos.rglob("*.png")) if p.stem != "08"]
    )
    wanted = np.concatenate([data[:4], data[4:5], data[4:]]) / 127.5 - 1  # 08 stands for the next
    mean = next(line.split()[1:] for line in said.splitlines() if line.startswith("mean"))
    np.testing.assert_allclose(np.float64(mean), wanted.mean((0, 1, 2)), atol=1e-4)
    with Image.open(tmp_path / "b.png") as picture:
        assert picture.mode == "RGB" and picture.width > 8 * 16
    with pytest.raises(ValueError, match="no pictures"):
        summary("ring", tmp_path / "c.png", most=5)
    assert "5 were read" in summary("ring", most=5)
