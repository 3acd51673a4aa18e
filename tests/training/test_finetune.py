"""Fine-tuning: the same loss to begin with, the levels it is said to train, and what is written."""

import functools
import itertools
import math
import shutil
import sys
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import twosides as ts
from pipelines import CASES, SCHEDULERS, noise, plain_unet2d, unet, vae
from text_pipelines import clip, clip_tokenizer
from twosides.data.tasks import Task
from twosides.display.pictures import png
from twosides.generation.samples import draw_classes
from twosides.integrations.diffusers import load_denoiser, to_pipeline
from twosides.integrations.diffusers.lora import Adapted, model_of, save_lora
from twosides.integrations.diffusers.required import required_names
from twosides.losses.densities import FromSchedule, Laplace, Mode, Normal, Table, Uniform, UShape
from twosides.losses.objective import Objective, Staged
from twosides.losses.recipes import recipes
from twosides.losses.truncation import Levels, Truncated
from twosides.storage import models
from twosides.storage.checkpoints import Checkpoints
from twosides.storage.networks import MLP
from twosides.training.checks import required_conditioning
from twosides.training.finetune import Tuning, finetune, finetune_task
from twosides.training.fit import Settings, loss_curve

# The schedulers of diffusers make arrays of tensors in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SD = ts.ScaledLinear()
KNOWN = (SD.logsnr_min, SD.logsnr_max)

# ---------------------------------------------------------------------------- densities

DENSITIES = {
    "flow": FromSchedule(ts.FlowMatching()),
    "cosine": FromSchedule(ts.Cosine()),
    "sd3": Normal(0, 2),
    "flux": Normal(0, 2).shifted(3.0),
    "uniform": Uniform(-20, 3),
    "laplace": Laplace(0.3, 0.5),
    "mode": Mode(1.29),
    "u-shape": UShape(4),
    "table": Table((-30.0, -2.0, 1.0, 20.0), (1.0, 2.0, 3.0)),
}


@pytest.mark.parametrize("ends", [KNOWN, (-math.inf, 2.0), (-3.0, math.inf), (-0.25, 0.25)])
@pytest.mark.parametrize("name", DENSITIES)
def test_truncation(name, ends):
    """p integrates to 1, levels are inside, and the drawn ones have the distribution function."""
    density = Truncated(DENSITIES[name], *ends)
    u = torch.linspace(0, 1, 20_001, dtype=torch.float64)[1:-1]
    drawn = density.logsnr(u)
    assert bool(((drawn >= ends[0]) & (drawn <= ends[1])).all())
    assert bool((drawn.diff() <= 0).all())
    low, high = (max(ends[0], -80.0), min(ends[1], 80.0))
    edges = {low, high, *(e for e in (-30, -20, -2, 0.3, 1, 3, 20) if low < e < high)}
    total = sum(gauss(lambda x: density.log_prob(x).exp(), a, b) for a, b in pairs(edges))
    assert total == pytest.approx(1, abs=1e-10)
    outside = torch.tensor([ends[0] - 1, ends[1] + 1], dtype=torch.float64)
    assert bool(density.log_prob(outside[outside.isfinite()]).isneginf().all())


@pytest.mark.parametrize("name", ["flow", "cosine", "sd3", "laplace", "uniform"])
def test_truncation_inverts_exactly(name):
    """u -> logsnr -> u by the distribution function in closed form."""
    base, (low, high) = DENSITIES[name], KNOWN
    above = {
        "flow": lambda x: torch.sigmoid(-x / 2),
        "cosine": lambda x: torch.atan(torch.exp(-x / 2)) * 2 / math.pi,
        "sd3": lambda x: torch.special.ndtr(-x / 2),
        "laplace": lambda x: torch.where(
            x > 0.3, 0.5 * torch.exp(-(x - 0.3) / 0.5), 1 - 0.5 * torch.exp((x - 0.3) / 0.5)
        ),
        "uniform": lambda x: ((3 - x) / 23).clamp(0, 1),
    }[name]
    ends = above(torch.tensor([high, low], dtype=torch.float64))
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    back = (above(Truncated(base, low, high).logsnr(u)) - ends[0]) / (ends[1] - ends[0])
    assert torch.allclose(back, u, rtol=0, atol=1e-12)


def gauss(function, a, b, parts=400):
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(12))
    width = (b - a) / parts
    starts = a + width * torch.arange(parts, dtype=torch.float64)[:, None]
    points = starts + width * (nodes + 1) / 2
    return float((function(points) * weights).sum() * width / 2)


def pairs(edges):
    return itertools.pairwise(sorted(edges))


def test_truncation_refuses_what_is_never_drawn():
    with pytest.raises(ValueError, match=r"probability .* only"):
        Truncated(Uniform(-5, 5), 6, 8)
    with pytest.raises(ValueError, match=r"\[low, high\]"):
        Truncated(Normal(0, 1), 2, 2)


def test_levels_are_the_trained_ones():
    """1000 strata are the 1000 levels, each once."""
    schedule = ts.ScaledLinear(zero_terminal_snr=True)
    u = (torch.arange(1000, dtype=torch.float64) + 0.37) / 1000
    assert torch.equal(Levels(schedule).logsnr(u), schedule.table)


# ---------------------------------------------------------------------------- the same loss

TEXT = {"encoder_hidden_states": noise(11, 16, 4, 16)}
POOLED = {"pooled_projections": noise(12, 16, 16)}
IDS = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(4, 3)}
GUIDANCE = {"guidance": torch.full((16,), 2.0)}


def v_pipeline():
    pipe = CASES["sd"].build()
    config = {**SCHEDULERS["sd-ddim"].keywords, "prediction_type": "v_prediction"}
    pipe.scheduler = diffusers.DDIMScheduler(**config)
    return pipe


NETWORKS = {
    "sd": (CASES["sd"].build, (4, 8, 8), TEXT),
    "v": (v_pipeline, (4, 8, 8), TEXT),
    "dit": (CASES["dit"].build, (4, 8, 8), {"class_labels": torch.arange(16)}),
    "sd3": (CASES["sd3"].build, (16, 8, 8), TEXT | POOLED),
    "flux": (CASES["flux"].build, (16, 16), TEXT | POOLED | GUIDANCE | IDS),
    "playground": (
        CASES["playground"].build,
        (4, 8, 8),
        {
            **TEXT,
            "added_cond_kwargs": {"text_embeds": noise(3, 16, 16), "time_ids": noise(4, 16, 6)},
        },
    ),
}


def doubled(value, dtype):
    if isinstance(value, dict):
        return {key: doubled(item, dtype) for key, item in value.items()}
    return value.to(dtype) if value.is_floating_point() else value


@pytest.mark.parametrize(("dtype", "exact"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_loss_is_the_old_one(name, dtype, exact):
    """Same data, noise, levels and w: eps (v, F, u) of the original, u of the converted network.

    Sample by sample, and the plain losses weighted by hand: not through the code under test.
    """
    build, shape, conditioning = NETWORKS[name]
    conditioning = doubled(conditioning, dtype)
    original = load_denoiser(build(), dtype=dtype)
    flow = Tuning(convert=True).denoiser(original)
    objective = Tuning(convert=True).objective(original, 10)
    x, seeds = noise(5, 16, *shape).to(dtype), range(16)
    with torch.no_grad():
        ours, theirs = (
            objective.evaluate(d, x, generator=ts.randomness.PerSample(3, seeds), **conditioning)
            for d in (flow, original)
        )
    assert torch.equal(ours.logsnr, theirs.logsnr)
    assert torch.allclose(ours.loss, theirs.loss, rtol=30 * exact, atol=0)
    assert float(ours.loss.mean()) == pytest.approx(float(theirs.loss.mean()), rel=exact)
    level = ts.FlowMatching().level(ours.logsnr)
    own = original.schedule.level(ours.logsnr)
    kappa = flow.output.kappa(level) / original.output.kappa(own)
    by_hand = theirs.error.double() * kappa
    assert torch.allclose(ours.error.double(), by_hand, rtol=100 * exact, atol=0)


def test_own_is_what_diffusers_trains_with():
    """Noise by their add_noise at whole timesteps, plain error of epsilon: the same number."""
    pipe = CASES["sd"].build()
    original = load_denoiser(pipe)
    objective = Tuning().objective(original, 10)
    x, draw = noise(5, 16, 4, 8, 8), functools.partial(ts.randomness.PerSample, 3, range(16))
    with torch.no_grad():
        ours = objective.evaluate(original, x, generator=draw(), **TEXT)
        again = draw()
        steps = (again.strata() * 1000).long()
        eps = again.normal((4, 8, 8))
        noisy = pipe.scheduler.add_noise(x, eps, steps)
        theirs = ((pipe.unet(noisy, steps, **TEXT).sample - eps) ** 2).mean((1, 2, 3))
    assert torch.allclose(ours.loss, theirs, rtol=1e-5)


# ---------------------------------------------------------------------------- beyond what is known


def known_by_an_oracle(output, mixture):
    """A network that is exact on Stable Diffusion's levels and nothing beyond."""

    def network(z, index):
        level = SD.at(index.double() / 999)
        estimate = mixture(z, level)
        return ts.outputs.OUTPUTS[output].of(estimate.x, estimate.eps, level)

    return ts.Denoiser(network, output, SD, "index")


def flow_error(denoiser, mixture, t):
    flow, x = ts.FlowMatching(), mixture.sample(2000, seed=0)
    level = flow.at(t)
    z = level.mix(x, noise(1, *x.shape).double())
    exact = mixture(z, level)
    u = ts.convert(denoiser, "u", flow, extend=True)(
        z, torch.full((len(z),), t, dtype=torch.float64)
    )
    return float((u - (exact.eps - exact.x)).norm() / x.norm())


@pytest.mark.parametrize("output", ["eps", "v", "x", "u"])
def test_the_extension_joins_on_and_ends(output):
    mixture = ts.oracle.GaussianMixture.ring(8)
    denoiser = known_by_an_oracle(output, mixture)
    edge = float(ts.FlowMatching().time(SD.logsnr_min))
    assert flow_error(denoiser, mixture, edge * (1 - 1e-9)) < 1e-8
    assert flow_error(denoiser, mixture, edge * (1 + 1e-6)) < 1e-5
    assert all(flow_error(denoiser, mixture, t) < 0.05 for t in (0.95, 0.999, 1 - 1e-9, 1.0))


def test_the_extension_is_exact_for_unit_normal_data():
    unit = ts.oracle.GaussianMixture(
        torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None]
    )  # eps, x and u of it are linear in z at every level
    for output in ("eps", "v", "x", "u"):
        for t in (0.0, 0.01, 0.5, 0.95, 0.9999, 1.0):
            assert flow_error(known_by_an_oracle(output, unit), unit, t) < 1e-10


def test_extended_networks_have_gradients_at_the_ends():
    layer = nn.Linear(2, 2, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2))
        layer.bias.zero_()
    eps = ts.Denoiser(lambda z, k: layer(z), "eps", SD, "index")
    flow = ts.convert(eps, "u", ts.FlowMatching(), extend=True)
    flow(noise(0, 4, 2), torch.tensor([0.0, 0.5, 0.99, 1.0])).square().mean().backward()
    assert layer.weight.grad is not None and bool(layer.weight.grad.isfinite().all())


def test_widening_is_a_function_of_the_step():
    original = known_by_an_oracle("eps", ts.oracle.GaussianMixture.ring(8))
    staged = Tuning("sd3", convert=True, widen_at=0.25).objective(original, 40)
    assert isinstance(staged, Staged) and staged.step == 10
    known = Truncated(recipes["sd3"].density, *KNOWN)
    for step in range(40):
        now = staged.at(step)
        assert now.weighting == recipes["sd3"].weighting
        assert now.density == (known if step < 10 else recipes["sd3"].density)
    assert Tuning("sd3", convert=True, widen_at=7).objective(original, 40).step == 7


def test_a_recipe_on_a_network_in_its_own_notation():
    """min-snr on SD's levels only: the same w, p of its levels there."""
    original = known_by_an_oracle("eps", ts.oracle.GaussianMixture.ring(8))
    objective = Tuning("min-snr").objective(original, 10)
    assert objective.weighting == recipes["min-snr"].weighting
    drawn = objective.density.logsnr(torch.linspace(0, 1, 99, dtype=torch.float64))
    assert float(drawn.min()) == KNOWN[0] and float(drawn.max()) == KNOWN[1]


# ---------------------------------------------------------------------------- refusals

REFUSED = {
    "own of a converted one": (lambda: Tuning("own", convert=True), "recipe 'own'"),
    "widen without convert": (lambda: Tuning(widen_at=5), "widen_at=5 was asked without convert"),
    "zero without widening": (
        lambda: Tuning(convert=True, zero_terminal_snr=True),
        "pass widen_at",
    ),
    "target without lora": (lambda: Tuning(target=("to_q",)), "pass its rank"),
    "zero of eps": (
        lambda: Tuning(zero_terminal_snr=True).denoiser(ts.Denoiser(nn.Identity(), "eps", SD)),
        r"predicts eps: at pure noise z and eps are the same thing.*convert=True",
    ),
    "zero of EDM": (
        lambda: Tuning(zero_terminal_snr=True).denoiser(ts.Denoiser(nn.Identity(), "F", ts.EDM())),
        "discrete betas",
    ),
    "rank": (lambda: Adapted(tiny(), 0), "at least 1"),
    "layer": (lambda: Adapted(tiny(), 2, ["to_w"]), "no linear layer .* 'to_w'.*to_q"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "dit", "pixart"])
def test_missing_conditioning_is_named(name):
    """Each thing that is required is one without which the network fails, and is named."""
    pipe = CASES[name].build()
    original = load_denoiser(pipe)
    names = required_names(model_of(original.network))
    assert names and required_conditioning(original.network) == names
    with pytest.raises(ValueError, match=rf"needs {', '.join(names)}, but a row .* has x"):
        finetune(original, Rows({"x": noise(1, 4, 4, 8, 8)}), "unused")


def test_rows_that_do_not_fit_are_refused_before_training():
    rows = {"x": noise(1, 4, 3, 8, 8), "encoder_hidden_states": noise(2, 4, 4, 16)}
    with pytest.raises(ValueError, match=r"x \(3, 8, 8\) with encoder_hidden_states"):
        finetune(load_denoiser(CASES["sd"].build()), Rows(rows), "unused")


# ---------------------------------------------------------------------------- training

ABSENT = ("safety_checker", "feature_extractor", "image_encoder")


def tiny(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return unet(diffusers.UNet2DConditionModel, **options)


def pipeline(prediction="epsilon"):
    scheduler = SCHEDULERS["sd-ddim"](prediction_type=prediction)
    absent = dict.fromkeys(ABSENT)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return diffusers.StableDiffusionPipeline(
            unet=tiny(),
            vae=vae(),
            text_encoder=clip(),
            tokenizer=clip_tokenizer(),
            scheduler=scheduler,
            requires_safety_checker=False,
            **absent,
        )


def loaded(path):
    """By diffusers; transformers draws the weights that it then reads."""
    with torch.random.fork_rng():
        pipe = diffusers.DiffusionPipeline.from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Rows(Dataset):
    """A data set of one dictionary of tensors."""

    def __init__(self, columns):
        self.columns = columns

    def __len__(self):
        return len(self.columns["x"])

    def __getitem__(self, index):
        return {key: value[index] for key, value in self.columns.items()}


# One latent, much the same in every row.
DATA = Rows(
    {
        "x": noise(1, 1, 4, 8, 8) + 0.1 * noise(2, 16, 4, 8, 8),
        "encoder_hidden_states": noise(3, 16, 4, 16),
    }
)
HOW = {
    "own": Tuning(),
    "min-snr": Tuning("min-snr"),
    "flow": Tuning(convert=True, widen_at=0.5),
    "lora": Tuning(lora=4),
    "flow-lora": Tuning(convert=True, lora=4),
}


def settings(steps=24, **more):
    chosen = {
        "batch": 8,
        "learning_rate": 3e-3,
        "warmup": 1,
        "checkpoint_every": 8,
        "sigma_rel": 0.2,
    }
    return Settings(steps=steps, **{**chosen, **more})


def settings_of(how):
    return settings() if HOW[how].lora is None else settings(learning_rate=3e-2)


def loss_of(denoiser, objective):
    """On fixed draws."""
    draw = ts.randomness.PerSample(77, range(16))
    with torch.no_grad():
        rest = {"encoder_hidden_states": DATA.columns["encoder_hidden_states"]}
        return float(objective(denoiser, DATA.columns["x"], generator=draw, **rest).mean())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipelines") / "sd"
    pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """One run of each kind, trained when first asked for."""
    made = {}

    def trained(how):
        if how not in made:
            out = tmp_path_factory.mktemp("runs") / how
            made[how] = (finetune(folder, DATA, out, HOW[how], settings_of(how)), out)
        return made[how]

    return trained


@pytest.mark.parametrize("how", HOW)
def test_it_learns(how, folder, run):
    """The averaged network's loss, on fixed draws of the first stage's objective."""
    original, (result, out) = load_denoiser(folder), run(how)
    objective = HOW[how].objective(original, 24).at(0)
    before = loss_of(HOW[how].denoiser(original), objective)
    # Of a random network, adapters of one attention change little.
    assert loss_of(result, objective) < (0.9 if HOW[how].lora is None else 0.998) * before
    assert all(math.isfinite(loss) for loss in loss_curve(out)[1])
    back = ts.load(out)
    assert loss_of(back, objective) == loss_of(result, objective)
    about = models.read_notes(out)
    assert about["lora"] == HOW[how].lora and about["source"] == "sd"


def same_everywhere(a, b, text, pure=False):
    """Whether two denoisers answer alike at levels that both know."""
    z, rest = noise(8, 2, 4, 8, 8), {"encoder_hidden_states": text}
    level = ts.FlowMatching().at(torch.tensor([0.3, 1.0 if pure else 0.8]))
    with torch.no_grad():
        ours, theirs = a(z, level, **rest), b(z, level, **rest)
    return all(torch.allclose(o, t, atol=2e-5) for o, t in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("how", ["own", "flow"])
def test_the_pipeline_is_the_old_one_with_the_trained_network(how, folder, run):
    """Converted too: what is inside keeps its notation, so the old scheduler goes on to fit."""
    result, out = run(how)
    back = loaded(out / "pipeline")
    assert isinstance(back, diffusers.StableDiffusionPipeline)
    assert same_everywhere(result, load_denoiser(out / "pipeline"), noise(9, 2, 4, 16))
    assert not same_everywhere(result, load_denoiser(folder), noise(9, 2, 4, 16))
    for part in ("vae", "text_encoder"):
        old = getattr(loaded(folder), part).state_dict()
        new = getattr(back, part).state_dict()
        assert all(torch.equal(value, new[name]) for name, value in old.items())
    latents = back(
        "a word",
        generator=torch.Generator().manual_seed(0),
        guidance_scale=1.0,
        num_inference_steps=2,
        output_type="latent",
    )
    assert bool(latents[0].isfinite().all())


def test_a_converted_model_says_where_its_pipeline_is(run):
    with pytest.raises(TypeError, match="RUN/pipeline"):
        to_pipeline(run("flow")[0])


@pytest.mark.parametrize("how", ["lora", "flow-lora"])
def test_adapters_load_into_the_original_pipeline(how, folder, run):
    """`pipe.load_lora_weights` gives the trained network; before it, it is another."""
    result, out = run(how)
    pipe = loaded(folder)
    text = noise(9, 2, 4, 16)
    assert not same_everywhere(result, load_denoiser(pipe), text)
    pipe.load_lora_weights(out / "lora")
    assert same_everywhere(result, load_denoiser(pipe), text)
    pipe.unload_lora_weights()
    assert same_everywhere(load_denoiser(folder), load_denoiser(pipe), text)


def test_adapters_are_nothing_at_first_and_all_that_is_trained(folder, run):
    original, (result, out) = load_denoiser(folder), run("lora")
    begun = HOW["lora"].denoiser(load_denoiser(folder))
    z, level = noise(8, 2, 4, 8, 8), SD.at(torch.tensor([0.2, 0.7]))
    text = {"encoder_hidden_states": noise(9, 2, 4, 16)}
    with torch.no_grad():
        pairs = zip(original(z, level, **text), begun(z, level, **text), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    trained = [name for name, p in begun.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    before, after = begun.state_dict(), result.state_dict()
    for name, value in before.items():
        assert torch.equal(value, after[name]) == (name not in trained), name
    (_, tree) = Checkpoints(out / "checkpoints").newest()
    average = next(v for k, v in tree["callbacks"].items() if "Averaging" in k)
    assert average["weights"].keys() == set(trained)
    assert len(tree["optimizer_states"][0]["state"]) == len(trained)
    assert {name for name in tree["state_dict"] if "lora_" not in name} == set()


@pytest.mark.parametrize("how", ["flow", "lora"])
def test_resuming_is_exact(how, folder, run, tmp_path):
    """Killed between steps 16 and 24, after widening at 12: bitwise the uninterrupted run."""
    result, out = run(how)
    part = tmp_path / how
    shutil.copytree(out, part)
    shutil.rmtree(part / "model")
    shutil.rmtree(part / "checkpoints/step-00000024")
    again = finetune(folder, DATA, part, HOW[how], settings_of(how))
    for (name, a), b in zip(result.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(ValueError, match="another run"):
        finetune(folder, DATA, part, replace(HOW[how], recipe="sd3"), settings_of(how))


def test_adapters_of_another_network_are_refused(folder, run, tmp_path):
    """Its checkpoints hold the adapters only, so that the frozen weights must be the same."""
    other = load_denoiser(folder)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    part = shutil.copytree(run("lora")[1], tmp_path / "run")
    with pytest.raises(ValueError, match="another run.*frozen"):
        finetune(other, DATA, part, HOW["lora"], settings_of("lora"))


def test_a_model_of_our_own_keeps_its_units(tmp_path):
    """A v network on the cosine schedule, of standardised points, without diffusers' classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MLP(2)
    ours = ts.Denoiser(network, "v", ts.Cosine(-8, 8), "logsnr", data_mean=1.0, data_std=2.0)
    ts.save(ours, tmp_path / "model")
    rows = Rows({"x": 1 + 2 * noise(3, 64, 2)})
    tuning = Tuning(convert=True, widen_at=1)
    result = finetune(tmp_path / "model", rows, tmp_path / "run", tuning, settings(2))
    assert float(result.data_mean) == 1 and float(result.data_std) == 2
    z, level = noise(4, 64, 2), ts.FlowMatching().at(0.5)
    begun = tuning.denoiser(ours)
    with torch.no_grad():
        assert torch.allclose(begun(z, level).x, ours(z, level).x, atol=1e-5)
    assert not (tmp_path / "run/pipeline").exists()


def test_pictures_are_drawn_where_they_are_asked(tmp_path):
    """Of each class, by the averaged network; a run without `picture_every` draws none."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = plain_unet2d(in_channels=1, out_channels=1, num_class_embeds=3)
    ours = ts.Denoiser(network, "u", ts.FlowMatching(), "1000t")
    rows = Rows({"x": noise(3, 8, 1, 8, 8), "class_labels": torch.arange(8) % 2})
    task = Task(rows, (1, 8, 8), {}, classes=("a", "b"), null={"class_labels": 2})
    ts.save(ours, tmp_path / "model", **task.notes)
    few = {"steps": 4, "batch": 4, "learning_rate": 1e-3}
    for name, asked in (("drawn", {"picture_every": 2}), ("plain", {})):
        finetune_task(tmp_path / "model", task, tmp_path / name, Tuning(), **few, **asked)
    drawn = sorted(path.name for path in (tmp_path / "drawn/samples").iterdir())
    assert drawn == ["step-00000002.png", "step-00000004.png"]
    assert not (tmp_path / "plain/samples").exists()
    # The last picture is that of the model which is saved; drawing changes nothing that is learned.
    result = ts.load(tmp_path / "drawn")
    last = png(draw_classes(result, task.shape, task.classes, seed=0))
    assert (tmp_path / "drawn/samples" / drawn[-1]).read_bytes() == last
    assert loss_curve(tmp_path / "drawn") == loss_curve(tmp_path / "plain")


def test_zero_terminal_snr_of_a_v_network(tmp_path):
    """Pure noise is among its levels, the loss there is finite, and the pipeline says so."""
    pipeline("v_prediction").save_pretrained(tmp_path / "pipe")
    tuning = Tuning(zero_terminal_snr=True)
    original = load_denoiser(tmp_path / "pipe")
    objective = tuning.objective(original, 2)
    assert isinstance(objective, Objective)
    losses = objective.evaluate(
        tuning.denoiser(original),
        noise(1, 1000, 4, 8, 8),
        generator=ts.randomness.PerSample(0, range(1000)),
        encoder_hidden_states=noise(2, 1000, 4, 16),
    )
    assert losses.logsnr.min() == -math.inf
    assert torch.equal(losses.loss, losses.error) and bool(losses.loss.isfinite().all())
    result = finetune(tmp_path / "pipe", DATA, tmp_path / "run", tuning, settings(2))
    back = load_denoiser(tmp_path / "run/pipeline")
    assert back.schedule.logsnr_min == -math.inf and back.output.name == "v"
    assert same_everywhere(result, back, noise(9, 2, 4, 16), pure=True)
    assert isinstance(
        loaded(tmp_path / "run/pipeline").scheduler,
        diffusers.DDIMScheduler,
    )


def test_transformers_get_adapters_too(tmp_path):
    """Stable Diffusion 3's, through the wrap that calls it, read back by its own loader."""
    pipe = CASES["sd3"].build()
    adapted = Tuning(lora=2).denoiser(load_denoiser(pipe), seed=5)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    save_lora(adapted.network, tmp_path / "lora")
    given = {key: value[:2] for key, value in (TEXT | POOLED).items()}
    z, level = noise(1, 2, 16, 8, 8), ts.FlowMatching().at(0.4)
    fresh = CASES["sd3"].build()
    with torch.no_grad():
        ours, before = adapted(z, level, **given).x, load_denoiser(fresh)(z, level, **given).x
        fresh.load_lora_weights(tmp_path / "lora")
        after = load_denoiser(fresh)(z, level, **given).x
    assert torch.allclose(ours, after, atol=1e-5) and not torch.allclose(ours, before, atol=1e-3)


def test_the_command_line(folder, tmp_path, monkeypatch, capsys):
    from twosides.cli import main
    from twosides.data.named import TASKS

    task = Task(DATA, (4, 8, 8), {})
    monkeypatch.setitem(TASKS, "latents", lambda: task)
    words = ["finetune", folder, "latents", "--out", tmp_path / "run", "--convert"]
    words += "--widen-at 2 --steps 4 --batch 4 --lora 2 --lora-target to_q".split()
    monkeypatch.setattr(sys, "argv", ["twosides", *map(str, words)])
    main()
    assert "lora is ready" in capsys.readouterr().out
    notes = models.read_notes(tmp_path / "run")
    assert notes["widen_at"] == 2 and notes["target"] == ["to_q"]
    result = ts.load(tmp_path / "run")
    assert result.output.name == "u" and isinstance(result.schedule, ts.FlowMatching)
    expected = finetune_task(
        folder,
        task,
        tmp_path / "again",
        Tuning(convert=True, widen_at=2, lora=2, target=("to_q",)),
        steps=4,
        batch=4,
        learning_rate=1e-4,
    )
    for a, b in zip(result.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)
