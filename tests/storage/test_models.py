import json
import math

import pytest
import torch

from instances import CLOSED
from twosides.clocks import CNoise, Index, LogSNR, Time
from twosides.conversion import convert
from twosides.denoiser import Denoiser
from twosides.outputs import F, Output
from twosides.schedules import Cosine, FlowMatching, FromFunctions, ScaledLinear, VPLinear
from twosides.storage import models, parts
from twosides.storage.files import CorruptFolder
from twosides.storage.networks import MLP

Z = torch.linspace(-2, 2, 10).reshape(5, 2)


def mlp(seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MLP(width=16, depth=1, **options)


def unet():
    from diffusers import UNet2DModel

    from twosides.data.tasks import unet as describe

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel.from_config(describe(8, (8, 16), 3)["config"])


def same(a, b, z=Z, **conditioning):
    level = FlowMatching().at(0.4)
    with torch.no_grad():
        return all(
            torch.equal(p, q)
            for p, q in zip(a(z, level, **conditioning), b(z, level, **conditioning), strict=True)
        )


def test_a_model_folder_brings_the_denoiser_back(tmp_path):
    source = Denoiser(
        mlp(), "v", Cosine(-15, 15), CNoise(), data_mean=0.3, data_std=torch.tensor([1.0, 2.0])
    )
    models.save(source, tmp_path / "m", recipe="v-cosine", ema={"sigma_rel": 0.1})
    back = models.load(tmp_path / "m")
    assert same(source, back) and not back.training
    assert (back.output.name, back.schedule, back.clock) == ("v", Cosine(-15.0, 15.0), CNoise())
    assert torch.equal(back.data_std, source.data_std) and float(back.data_mean) == pytest.approx(
        0.3
    )
    config = models.read_config(tmp_path / "m")
    assert config["logsnr_range"] == [-15, 15] and config["recipe"] == "v-cosine"
    assert models.read_notes(tmp_path / "m") == {
        "recipe": "v-cosine",
        "ema": {"sigma_rel": 0.1},
    }
    card = (tmp_path / "m" / "README.md").read_text()
    assert "library_name: twosides" in card and "Cosine" in card


def test_diffusers_models_are_built_from_their_configuration(tmp_path):
    source = Denoiser(unet().eval(), "u", time="1000t")
    models.save(source, tmp_path / "m")
    z = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3])
    assert same(source, models.load(tmp_path / "m"), z, class_labels=labels)
    assert models.read_config(tmp_path / "m")["network"]["class"] == "diffusers.UNet2DModel"


def test_a_converted_model_is_a_model(tmp_path):
    source = Denoiser(mlp(), "u")
    other = Denoiser(convert(source, "eps", VPLinear(), LogSNR()), "eps", VPLinear(), LogSNR())
    models.save(other, tmp_path / "m")
    back = models.load(tmp_path / "m")
    assert same(other, back)
    level = FlowMatching().at(0.4)
    assert torch.allclose(back(Z, level).x, source(Z, level).x, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in CLOSED if n != "vp-custom"])
def test_schedules_and_clocks_survive_json(name):
    schedule = CLOSED[name]
    assert parts.restore(json.loads(json.dumps(parts.describe(schedule)))) == schedule
    for clock in (
        Time(1000, reversed=True),
        Index(500, nearest=True, clamp=True),
        CNoise(),
        LogSNR(),
    ):
        assert parts.restore(json.loads(json.dumps(parts.describe(clock)))) == clock


def test_code_is_not_written_and_not_run(tmp_path):
    own = FromFunctions(lambda t: 1 - t, lambda t: t)
    for denoiser in (Denoiser(mlp(), schedule=own), Denoiser(mlp(), time=lambda level: level.sigma),
                     Denoiser(torch.nn.Identity()), Denoiser(lambda z, t: z)):  # fmt: skip
        with pytest.raises(TypeError):
            models.save(denoiser, tmp_path / "m")
        assert not list(tmp_path.iterdir())
    for wrong in ("os:system", "diffusers.DiffusionPipeline", "diffusers.nothing", "nothing"):
        with pytest.raises(ValueError, match="trust|no model|unknown network"):
            models.build_network({"class": wrong, "config": {}})
    linear = models.build_network({"class": "torch.nn:Identity", "config": {}}, trust_code=True)
    assert isinstance(linear, torch.nn.Identity)


def break_config(**change):
    def change_it(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        seal(folder)

    return change_it


def seal(folder):
    """A manifest that fits: what a hostile author would ship."""
    from twosides.storage.files import _seal

    (folder / "manifest.json").unlink()
    _seal(folder, {})


def truncate(name):
    def cut(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return cut


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate("model.safetensors"), "model.safetensors"),
        (truncate("config.json"), "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (break_config(version=2), "version 2"),
        (break_config(format="other"), "does not describe"),
        (break_config(schedule={"type": "Evil"}), "unknown part"),
        (break_config(schedule={"type": "Cosine", "speed": 3}), "no Cosine"),
        (break_config(output="w"), "unknown output"),
        (break_config(network={"class": "MLP", "config": {"width": 8, "depth": 1}}), "does not fit"),
        (break_config(network={"class": "os:system", "config": {}}), "trust"),
        (lambda folder: ((folder / "model.safetensors").write_bytes(b"\xff" * 99), seal(folder)), "header"),
    ],
)  # fmt: skip
def test_broken_models_are_refused_with_the_reason(tmp_path, damage, words):
    models.save(Denoiser(mlp()), tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises((ValueError, CorruptFolder), match=words):
        models.load(tmp_path / "m")


def test_missing_models_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a model folder"):
        models.load(tmp_path)


def test_zero_terminal_ends_are_written_as_infinite(tmp_path):
    source = Denoiser(mlp(), "v", ScaledLinear(zero_terminal_snr=True), Index(1000))
    models.save(source, tmp_path / "m")
    text = (tmp_path / "m" / "config.json").read_text()
    assert "Infinity" not in text and '"-inf"' in text
    assert models.load(tmp_path / "m").schedule.logsnr_min == -math.inf


def test_what_is_not_a_model_is_not_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text.txt").write_text("years of work")
    for target in ("thesis", "thesis/text.txt"):
        with pytest.raises(FileExistsError, match="not a model folder"):
            models.save(Denoiser(mlp()), tmp_path / target)
    assert (tmp_path / "thesis" / "text.txt").read_text() == "years of work"
    models.save(Denoiser(mlp()), tmp_path / "m")
    models.save(Denoiser(mlp(), "v"), tmp_path / "m")
    assert models.load(tmp_path / "m").output.name == "v"


def test_outputs_come_back_as_they_were(tmp_path):
    level = FlowMatching().at(0.3).floats()
    for number, output in enumerate(
        (Output("mine", -0.3, 0.8), Output("u", 0.3, 0.8), F(0.12345678), "-velocity")
    ):
        folder = tmp_path / str(number)
        source = Denoiser(mlp(), output)
        models.save(source, folder)
        assert models.load(folder).output.coefficients(level) == source.output.coefficients(level)
    with pytest.raises(TypeError, match="code"):
        models.save(Denoiser(mlp(), Output("mine", lambda level: level.sigma, 1.0)), tmp_path / "f")


def test_a_subclass_is_not_its_namesake(tmp_path):
    namesake = type("Cosine", (Cosine,), {"_logsnr": lambda self, t: -6 * t})
    with pytest.raises(TypeError, match="code"):
        models.save(Denoiser(mlp(), "v", namesake()), tmp_path / "m")


@pytest.mark.parametrize(
    "config",
    [{"network": [1]}, {"schedule": "cosine"}, {"schedule": None}, {"schedule": {"type": "Time"}}, {"output": 3},
     {"network": {"class": "MLP", "config": 3}}, {"network": {"class": "torch.nn:nothing"}}],
)  # fmt: skip
def test_nonsense_in_config_is_named(tmp_path, config):
    models.save(Denoiser(mlp()), tmp_path / "m")
    break_config(**config)(tmp_path / "m")
    with pytest.raises(ValueError):
        models.load(tmp_path / "m", trust_code=True)
