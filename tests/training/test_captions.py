"""Captions as what each pipeline's network hears, trained on and prompted; latents as images."""

import functools
import math
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import twosides as ts
from pipelines import SCHEDULERS, dit, vae
from text_pipelines import PIPELINES, saved
from twosides.conditioning import flat, nested
from twosides.data.encode import encode_latents
from twosides.data.latents import SHARD, Latents, shard_folder
from twosides.data.named import task_named
from twosides.guidance import classifier_free
from twosides.integrations.diffusers.networks import in_dtype, load_denoiser
from twosides.integrations.diffusers.texts import Texts
from twosides.losses.recipes import recipe_named, recipes
from twosides.randomness import PerSample
from twosides.storage import models
from twosides.storage.files import CorruptFolder, commit_folder
from twosides.storage.tensors import load_tensors
from twosides.storage.trees import load_tree, save_tree
from twosides.training.finetune import Tuning, finetune_task
from twosides.training.fit import Module, Settings, loss_curve
from twosides.training.run import train_task

# The schedulers of diffusers make arrays of tensors in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

WORDS = ("a red hat", "zoo", "", "far too many words for the tokens that there are")
NAMES = [name for name in PIPELINES if name != "flux"]


def size(name):
    return 32 if name == "sana" else 16


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, words in enumerate(WORDS):
        values = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(words)
    return folder


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    """(pipeline's folder, folder of latents) by name, made when first asked for."""
    root = tmp_path_factory.mktemp("made")

    @functools.cache
    def make(name, captions=True):
        folder, out = root / name, root / f"{name}-{captions}"
        if not folder.exists():
            saved(name, folder)
        encode(photos, name, folder, out, captions=captions)
        return folder, out

    return make


def encode(photos, name, folder, out, **options):
    data = f"folder:{photos}?size={size(name)}"
    return encode_latents(task_named(data).data, data, folder, out, **options)


def loaded(folder):
    with torch.random.fork_rng(devices=[]):
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def heard(pipe, name, guidance, prompt):
    """What the real network is told in the calls of two steps, flat, as a user calls the pipeline."""
    calls, part = [], "unet" if hasattr(pipe, "unet") else "transformer"
    network = getattr(pipe, part)

    def listen(module, args, kwargs):
        calls.append({k: v for k, v in flat(kwargs).items() if isinstance(v, torch.Tensor)})

    hook = network.register_forward_pre_hook(listen, with_kwargs=True)
    more = {"use_resolution_binning": False} if name.startswith(("pixart", "sana")) else {}
    pipe(
        prompt,
        guidance_scale=guidance,
        num_inference_steps=2,
        height=size(name),
        width=size(name),
        output_type="latent",
        generator=torch.Generator().manual_seed(3),
        **more,
    )
    hook.remove()
    told = ("hidden_states", "timestep")
    return [{k: v for k, v in call.items() if k not in told} for call in calls]


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_what_the_network_hears(made, name):
    folder, out = made(name)
    pipe, stored = loaded(folder), load_tensors(shard_folder(out, 0) / SHARD)
    data = Latents(out)
    assert data.classes == () and len(data) == len(WORDS)
    for row, words in enumerate(WORDS):
        wanted = heard(pipe, name, 1.0, words)[0]
        assert wanted.keys() == data.null.keys()
        given = flat({k: v for k, v in data[row].items() if k != "x"})
        assert given.keys() == wanted.keys()
        for key, value in wanted.items():
            assert stored[key].dtype == value.dtype and torch.equal(stored[key][row], value[0])
            assert torch.equal(given[key], value[0])
    assert any(not torch.equal(value[0], value[1]) for k, value in stored.items() if k in data.null)


@pytest.mark.parametrize("name", NAMES)
def test_the_null_is_the_other_side_of_the_pipelines_guidance(made, name):
    folder, out = made(name)
    calls = heard(loaded(folder), name, 3.0, "a red hat")
    # Most ask for both at once, what they lead away from first; Lumina afterwards.
    wanted = calls[1] if name == "lumina2" else {k: v[:1] for k, v in calls[0].items()}
    assert len(next(iter(wanted.values()))) == 1
    null = Latents(out).null
    assert null.keys() == wanted.keys()
    assert all(torch.equal(null[key], value) for key, value in wanted.items())


@pytest.mark.parametrize("name", NAMES)
def test_on_a_row_the_denoiser_answers_as_in_the_pipeline(made, name):
    """At the first timestep, under the clock that the scheduler's config tells."""
    folder, out = made(name)
    pipe, answers = loaded(folder), []
    part = "unet" if hasattr(pipe, "unet") else "transformer"

    def listen(module, args, kwargs, answer):
        answers.append((args[0] if args else kwargs["hidden_states"], answer[0]))

    hook = getattr(pipe, part).register_forward_hook(listen, with_kwargs=True)
    heard(pipe, name, 1.0, WORDS[0])
    hook.remove()
    z, wanted = answers[0]
    time, row = pipe.scheduler.timesteps[0], Latents(out)[0]
    given = nested({k: v[None] for k, v in flat(row).items() if k != "x"})
    with torch.no_grad():
        found = load_denoiser(folder).predict(z, time.float().expand(1), **given)
    sign = -1 if name == "lumina2" else 1  # whose clock and output are turned round here
    torch.testing.assert_close(found, sign * wanted[:, : z.shape[1]])


def test_xls_null_is_as_its_index_says(tmp_path, made):
    folder, out = made("sdxl")
    null = Latents(out).null
    assert not null["encoder_hidden_states"].any()
    assert not null["added_cond_kwargs.text_embeds"].any()
    assert null["added_cond_kwargs.time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]]
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    index = other / "model_index.json"
    text = index.read_text().replace(
        '"force_zeros_for_empty_prompt": true', '"force_zeros_for_empty_prompt": false'
    )
    assert text != index.read_text()
    index.write_text(text)
    texts = Texts(other, 16)
    assert texts.null["encoder_hidden_states"].any()
    assert all(torch.equal(value, texts.null[key]) for key, value in texts("").items())


def test_a_row_does_not_depend_on_the_others(photos, made, tmp_path):
    folder, out = made("pixart-alpha")
    encode(photos, "pixart-alpha", folder, tmp_path / "single", captions=True, batch=1)
    together, alone = (
        load_tensors(shard_folder(each, 0) / SHARD) for each in (out, tmp_path / "single")
    )
    for name in Latents(out).null:
        assert torch.equal(together[name], alone[name])


def test_half_precision_is_stored_and_handed_out_in_single(photos, tmp_path, monkeypatch):
    """On an accelerator pipelines run in the precision of their files, and training in float32."""
    with torch.random.fork_rng(devices=[]):
        PIPELINES["sd3"]().to(torch.bfloat16).save_pretrained(tmp_path / "half")
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            tmp_path / "half", **in_dtype(torch.bfloat16)
        )
    pipe.set_progress_bar_config(disable=True)
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: cpu)
    data = encode(photos, "sd3", tmp_path / "half", tmp_path / "out", captions=True)
    stored = load_tensors(shard_folder(tmp_path / "out", 0) / SHARD)
    for key, value in heard(pipe, "sd3", 1.0, WORDS[0])[0].items():
        assert stored[key].dtype == value.dtype == torch.bfloat16
        assert torch.equal(stored[key][0], value[0])
        assert torch.equal(data[0][key], value[0].float()) and data[0][key].dtype == torch.float32
        assert data.null[key].dtype == torch.float32


def test_texts_of_unequal_lengths_are_refused(photos, made, tmp_path, monkeypatch):
    folder, _ = made("sd", captions=False)
    real = diffusers.StableDiffusionPipeline.encode_prompt

    def shorter(self, prompt, *args, **kwargs):  # as if it padded to the longest text
        positive, negative = real(self, prompt, *args, **kwargs)
        return (x if x is None else x[:, : 2 + len(prompt[0])] for x in (positive, negative))

    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "encode_prompt", shorter)
    with pytest.raises(ValueError, match="make no batch"):
        Texts(folder, 16)("zoo")


def test_what_rows_cannot_hold_is_refused_by_name(photos, made, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"beside latents for FluxPipeline.*latents as \(1, 16"):
        encode(photos, "flux", saved("flux", tmp_path / "flux"), out, captions=True)
    with torch.random.fork_rng(devices=[]):
        classes = diffusers.DiTPipeline(
            dit(diffusers.DiTTransformer2DModel), vae(), SCHEDULERS["dit"]()
        )
        classes.save_pretrained(tmp_path / "dit")
    with pytest.raises(ValueError, match="DiTPipeline takes no prompt"):
        encode(photos, "dit", tmp_path / "dit", out, captions=True)
    folder, _ = made("sd", captions=False)
    for extra, said in ((torch.zeros(5, 2), r"ids, \(5, 2\)"), ("loud", "ids, str")):
        more = property(lambda self, extra=extra: {"ids": extra})
        monkeypatch.setattr(diffusers.StableDiffusionPipeline, "cross_attention_kwargs", more)
        with pytest.raises(ValueError, match=f"cross_attention_kwargs.{said}, without a row"):
            encode(photos, "sd", folder, out, captions=True)
    assert not out.exists()


# ---------------------------------------------------------------------------- folders


def rewritten(out, folder, **changes):
    """A copy of latents whose summary says something else, with its checksums."""
    shutil.copytree(out, folder)
    summary = {**load_tree(folder / "summary"), **changes}
    commit_folder(folder / "summary", lambda target: save_tree(target, summary))
    return folder


ROW = torch.zeros(1, 8, 16)


@pytest.mark.parametrize(
    ("null", "reason"),
    [
        ({"encoder_hidden_states": ROW[:, 1:]}, r"has encoder_hidden_states \[4, 8, 16\], not"),
        ({"encoder_attention_mask": ROW}, "has encoder_attention_mask missing"),
        ({"encoder_hidden_states": torch.zeros(2, 8, 16)}, "describes no latents"),
        ({"encoder_hidden_states": torch.tensor(1.0)}, "describes no latents"),
        ({"mean": ROW}, "describes no latents"),
        ({"x": ROW}, "describes no latents"),
        ({"x.y": ROW}, "describes no latents"),
        ({"a": ROW, "a.b": ROW}, "describes no latents"),
        ({"a.b": ROW, "a": ROW}, "describes no latents"),
        ({3: ROW}, "describes no latents"),
        (None, "describes no latents"),
    ],
)
def test_folders_that_do_not_fit_are_refused(made, tmp_path, null, reason):
    _, out = made("sd")
    with pytest.raises(CorruptFolder, match=reason):
        Latents(rewritten(out, tmp_path / "l", null=null))[0]


def test_a_changed_text_encoder_makes_other_latents(photos, made, tmp_path):
    folder, out = made("sdxl")
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    path = other / "text_encoder_2/config.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(ValueError, match="holds another run: it has texts"):
        encode(photos, "sdxl", other, out, captions=True)


# ---------------------------------------------------------------------------- training


@pytest.mark.parametrize("name", NAMES)
def test_networks_are_tuned_on_them(made, name, tmp_path):
    """All that the network hears is dropped together, and what is trained is the pipeline's."""
    folder, out = made(name)
    task = task_named(f"latents:{out}")
    rows = {k: torch.stack([flat(task.data[i])[k] for i in range(4)]) for k in task.null}
    settings = Settings(null=task.null, dropout=0.5, batch=4)
    module = Module(
        recipe_named("sd3").denoiser(torch.nn.Identity()), recipes["sd3"].objective(), settings
    )
    dropped = flat(module._drop(nested(rows), PerSample(1, range(4))))
    gone = (PerSample(1, range(4)).uniform() < 0.5).tolist()
    assert 0 < sum(gone) < 4 and dropped.keys() == rows.keys()
    for key, value in dropped.items():
        for row, lost in enumerate(gone):
            assert torch.equal(value[row], task.null[key][0] if lost else rows[key][row])
    run = tmp_path / "run"
    finetune_task(folder, task, run, Tuning(), steps=2, batch=4, learning_rate=1e-3)
    assert all(np.isfinite(loss_curve(run)[1]))
    before, after = loaded(folder), loaded(run / "pipeline")
    part = "unet" if hasattr(before, "unet") else "transformer"
    pairs = zip(*(getattr(p, part).parameters() for p in (before, after)), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("recipe", "std"), [("edm", 0.5), ("sd3", 1.0)])
def test_training_is_on_data_that_the_recipe_is_made_for(made, recipe, std, tmp_path):
    """EDM's preconditioning and levels are for data of standard deviation 0.5, others for 1."""
    _, out = made("sd3", captions=False)
    task = task_named(f"latents:{out}")
    denoiser = train_task(task, tmp_path / "run", recipe, steps=1, batch=2)
    stored = load_tensors(shard_folder(out, 0) / SHARD)
    mean = denoiser.standardise(stored["mean"].double())
    noise = (stored["std"].double() / denoiser.data_std) ** 2
    torch.testing.assert_close(mean.mean((0, 2, 3)), torch.zeros(16, dtype=torch.float64))
    second = (mean**2 + noise).mean((0, 2, 3))
    torch.testing.assert_close(second.sqrt(), torch.full_like(second, std))
    assert recipes[recipe].data_std == std
    assert train_task("ring", tmp_path / "ring", recipe, steps=1, batch=2).data_std == 1


def test_a_network_is_named_where_no_small_one_hears_the_captions(made, tmp_path):
    with pytest.raises(ValueError, match="pooled_projections.*--network"):
        train_task(f"latents:{made('sd3')[1]}", tmp_path / "run", "sd3", steps=1, batch=2)


# ---------------------------------------------------------------------------- samples


@pytest.fixture(scope="module")
def runs(made, tmp_path_factory):
    """Networks trained for a step: of no captions, of XL's; and a fine-tuned Stable Diffusion 3."""
    root = tmp_path_factory.mktemp("runs")
    for name, captions in (("sd", False), ("sdxl", True)):
        _, out = made(name, captions)
        few = {"steps": 1, "batch": 2, "picture_every": 1}
        train_task(f"latents:{out}", root / name, "flow-matching", **few)
    folder, out = made("sd3")
    finetune_task(folder, f"latents:{out}", root / "sd3", Tuning(), steps=1, batch=2)
    return root


def pixels(x):
    return np.round((x.clip(-1, 1) + 1) * 127.5).transpose(0, 2, 3, 1).astype(np.uint8)


def of_sheet(path, count, side, zoom=3):
    """The pictures on a sheet: 13 in a row, or as many as there are rows."""
    with Image.open(path) as picture:
        sheet = np.asarray(picture)[::zoom, ::zoom]
    columns = 13 if count % 13 == 0 else math.ceil(count**0.5)
    corners = [(1 + k // columns * (side + 1), 1 + k % columns * (side + 1)) for k in range(count)]
    return np.stack([sheet[top:, left:][:side, :side] for top, left in corners])


def test_samples_are_decoded_by_the_vae_that_encoded(cli, runs, made):
    folder, _ = made("sd", captions=False)
    words = ("sample", runs / "sd", "--steps", 2, "--count", 9)
    for out in (
        ("a.npy",),
        ("b.npy", "--pipeline", folder),
        ("c.png",),
        ("d.png", "--vae", folder),
    ):
        code, _, err = cli(*words, "--out", *out)
        assert code == 0, err
    latents, images = np.load("a.npy"), np.load("b.npy")
    assert latents.shape == (9, 4, 8, 8) and images.shape == (9, 3, 16, 16)
    kl = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae")
    with torch.no_grad():
        scale, shift = kl.config.scaling_factor, kl.config.shift_factor or 0.0
        truth = kl.decode(torch.from_numpy(latents) / scale + shift).sample.numpy()
    np.testing.assert_allclose(images, truth, atol=1e-5, rtol=0)
    assert np.array_equal(of_sheet("c.png", 9, 16), pixels(images))
    assert Path("c.png").read_bytes() == Path("d.png").read_bytes()


def test_without_the_pipeline_it_is_said_what_to_pass(cli, runs, made, tmp_path):
    folder, _ = made("sd", captions=False)
    shutil.copytree(runs / "sd", "run")
    path = Path("run/model/config.json")
    config = path.read_text().replace(str(folder), str(tmp_path / "p"))
    write_again(Path("run/model"), config)
    words = ("sample", "run", "--steps", 1, "--count", 2, "--out")
    code, _, err = cli(*words, "a.png")
    assert code == 2 and "no longer there" in err and "--pipeline FOLDER" in err
    assert cli(*words, "a.png", "--pipeline", folder)[0] == 0 and cli(*words, "a.npy")[0] == 0
    shutil.copytree(folder, "p")
    assert cli(*words, "a.png")[0] == 0
    weights = Path("p/vae/diffusion_pytorch_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"1")
    code, _, err = cli(*words, "b.png")
    assert code == 2 and "is changed" in err and not Path("b.png").exists()
    code, _, err = cli("report", "run", "--count", 4, "--steps", 1, "--out", "r.html")
    assert code == 0 and "which is changed" in Path("r.html").read_text(), err
    code, _, err = cli(*words, "b.png", "--pipeline", "run")
    assert code == 2 and "no diffusers pipeline with a VAE" in err
    for more in (("--out", "many", "--pipeline", folder), ("--prompt", "a hat", "--out", "b.npy")):
        code, _, err = cli("sample", "run", *more)
        assert code == 2 and "leave it out" in err and not Path("many").exists()


def test_prompts_need_the_same_text_encoders(cli, runs, made, tmp_path):
    folder, _ = made("sdxl")
    shutil.copytree(runs / "sdxl", "run")
    shutil.copytree(folder, "p")
    config = Path("run/model/config.json").read_text().replace(str(folder), str(tmp_path / "p"))
    write_again(Path("run/model"), config)
    words = ("sample", "run", "--prompt", "a hat", "--steps", 1, "--out")
    assert cli(*words, "a.npy")[0] == 0
    path = Path("p/tokenizer_2/tokenizer_config.json")
    path.write_text(path.read_text() + " ")
    code, _, err = cli(*words, "b.npy")
    assert code == 2 and "is changed" in err and not Path("b.npy").exists()
    assert cli(*words, "b.npy", "--pipeline", folder)[0] == 0


def write_again(folder, config):
    """A model's folder with another config.json, and its checksums."""
    weights = (folder / "model.safetensors").read_bytes()

    def write(target):
        (target / "model.safetensors").write_bytes(weights)
        (target / "config.json").write_text(config)

    commit_folder(folder, write)


def test_pictures_of_training_and_reports_are_decoded(cli, runs, made):
    folder, _ = made("sd", captions=False)
    (path,) = (runs / "sd/samples").glob("*.png")
    words = ("--count", 26, "--out", "a.npy", "--pipeline", folder)
    assert cli("sample", runs / "sd", *words)[0] == 0
    with Image.open(path) as picture:
        assert picture.size == (3 * (13 * 17 + 1), 3 * (2 * 17 + 1))
    assert np.array_equal(of_sheet(path, 13, 16), pixels(np.load("a.npy")[:13]))
    assert not (runs / "sdxl/samples").exists()  # of which caption?
    assert cli("report", runs / "sd", "--count", 4, "--steps", 1, "--out", "r.html")[0] == 0
    assert 'alt="samples of' in Path("r.html").read_text()


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_a_prompt_is_drawn(cli, runs, made, name):
    folder, _ = made(name)
    words = ("sample", runs / name, "--prompt", "a red hat", "--count", 2, "--steps", 2)
    guided = ("--guidance", 3)
    for out, more in (("a", ()), ("b", guided), ("c", (*guided, "--negative-prompt", "zoo"))):
        code, _, err = cli(*words, *more, "--out", f"{out}.npy")
        assert code == 0, err
    pipe, denoiser = loaded(folder), ts.load(runs / name)
    told, other = (heard(pipe, name, 1.0, text)[0] for text in ("a red hat", "zoo"))
    told, other = (
        nested({k: v.repeat(2, *[1] * (v.ndim - 1)) for k, v in each.items()})
        for each in (told, other)
    )
    null = heard(pipe, name, 3.0, "a red hat")[0]
    null = nested({k: v[:1].repeat(2, *[1] * (v.ndim - 1)) for k, v in null.items()})
    shape = (2, *models.read_notes(runs / name)["shape"])
    truth = {
        "a": denoiser,
        "b": classifier_free(denoiser, 3.0, null=null),
        "c": classifier_free(denoiser, 3.0, null=other),
    }
    for out, network in truth.items():
        x = ts.sample(network, shape, steps=2, seed=0, **told).numpy()
        np.testing.assert_allclose(np.load(f"{out}.npy"), x, atol=1e-5, rtol=0)
    assert np.abs(np.load("a.npy") - np.load("b.npy")).max() > 1e-4
    assert cli(*words, "--out", "a.png")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--out", "a.npy"), "trained on captions"),
        (("--out", "many"), "trained on captions"),
        (("--out", "many", "--prompt", "a hat"), "name one: --out FILE"),
        (("--out", "a.npy", "--negative-prompt", "a hat"), "what guidance leads away from"),
        (("--out", "a.npy", "--prompt", "a", "--negative-prompt", "b"), "--guidance"),
    ],
)
def test_prompts_that_would_not_be_heard_are_refused(cli, runs, words, message):
    code, _, err = cli("sample", runs / "sdxl", *words)
    assert code == 2 and message in err and not list(Path.cwd().iterdir())
