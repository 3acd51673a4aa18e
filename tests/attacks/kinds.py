"""Every kind of file that the package reads: an honest one, made small, and what reads it.

`make(folder)` writes the honest files. `read(folder)` reads them as the package does, and gives
something that is equal for equal content. `files` are those that are mutated.
"""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Kind:
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    files: tuple[str, ...]
    checked: bool = False  # by checksums: whatever is accepted is what was written
    named: bool = True  # whether the reader knows the name of what it reads


KINDS: dict[str, Kind] = {}


def listed(name: str, read: Callable[[Path], Any], *files: str, **options: bool):
    def adding(make):
        KINDS[name] = Kind(make, read, files, **options)
        return make

    return adding


def mlp(seed: int = 0):
    from twosides.denoiser import Denoiser
    from twosides.storage.networks import MLP

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Denoiser(
            MLP(2, 4, 1, 3), "v", "cosine(-8, 8)", "1000t", data_std=torch.tensor([1.0, 2.0])
        )


def plain(value: Any) -> Any:
    """Content that can be compared."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.double().flatten().tolist())
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


# ---------------------------------------------------------------------------- models and runs


def read_model(folder):
    from twosides.storage import models

    denoiser = models.load(folder)
    return repr(denoiser), plain(denoiser.state_dict()), models.read_notes(folder)


MODEL = ("config.json", "manifest.json", "model.safetensors")


@listed("a model", read_model, *MODEL, checked=True)
def save_model(folder):
    from twosides.storage import models

    models.save(
        mlp(), folder, shape=[2], classes="abc", null={"class_labels": 3}, recipe="v-cosine",
        training={"steps": 10},
    )  # fmt: skip


@listed("a model of diffusers'", read_model, *MODEL, checked=True)
def _(folder):
    import diffusers

    from twosides.denoiser import Denoiser
    from twosides.storage import models

    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,),
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4,
    )  # fmt: skip
    models.save(Denoiser(network, "u", time="1000t"), folder, shape=[1, 8, 8])


@listed("a converted model", read_model, *MODEL, checked=True)
def _(folder):
    from twosides.conversion import convert
    from twosides.denoiser import Denoiser
    from twosides.storage import models

    models.save(Denoiser(convert(mlp(), "u"), "u"), folder, shape=[2])


def read_figure(folder):
    from twosides.explorer.figures import model

    return repr(model.of(folder).controls), model._about(folder)


@listed("the figure of a model", read_figure, "config.json")
def _(folder):
    save_model(folder)


def job_in(folder):
    from twosides.generation.request import Request
    from twosides.generation.shards import Job

    return Job(Request("ddim", 2, count=4), folder / "model", folder / "out", shard=2)


def read_samples_run(folder):
    from twosides.generation import shards

    job = job_in(folder)
    shape = shards.prepare(job, "cpu")
    absent = shards.missing_shards(job, range(2))
    return shape, absent, str(shards.result(job, 0, 0.0, shape)) if not absent else None


@listed(
    "samples", read_samples_run, "out/run.json", "out/shard-00000.npy", "out/shard-00001.npy.sha256",
    "model/config.json", "model/manifest.json",
)  # fmt: skip
def _(folder):
    from twosides.generation import shards

    save_model(folder / "model")
    job = job_in(folder)
    shards.prepare(job, "cpu")
    shards.make(job, range(2), "cpu", lambda count: None)


def read_samples(folder):
    from twosides.data.stored import Stored

    stored = Stored(folder)
    return [plain(stored[index]) for index in range(len(stored))]


@listed("samples to measure", read_samples, "a.npy")
def _(folder):
    np.save(folder / "a.npy", np.arange(12.0, dtype=np.float32).reshape(6, 2))
    np.save(folder / "b.npy", np.ones((1, 2), dtype=np.float32))


@listed("tensors to measure", read_samples, "a.safetensors")
def _(folder):
    from twosides.storage.tensors import save_tensors

    save_tensors(folder / "a.safetensors", {"x": torch.ones(3, 2), "labels": torch.arange(3)})


def read_log(folder):
    from twosides.training.log import METRICS, Rows, loss_curve

    curve = loss_curve(folder)
    Rows(folder / METRICS, ["loss"]).rewind(20)
    return curve


@listed("a log", read_log, "logs/metrics.csv")
def _(folder):
    (folder / "logs").mkdir()
    rows = "".join(f"{10 * k},{1 / (k + 1)},0.5,\n" for k in range(5))
    (folder / "logs/metrics.csv").write_text("step,loss,gradient_norm,learning_rate\n" + rows)


def read_claim(folder):
    from twosides.storage.owner import claim

    return claim(folder / "run.json", {"data": "ring", "seed": 0, "settings": {"batch": 4}})


@listed("whose a run is", read_claim, "run.json")
def _(folder):
    read_claim(folder)


def read_network(folder):
    from twosides.storage.models import build_network
    from twosides.storage.reading import blame, read_json

    with blame(folder / "network.json"):
        return repr(build_network(read_json(folder / "network.json")))


# ---------------------------------------------------------------------------- training state


def read_checkpoints(folder):
    from twosides.storage.checkpoints import Checkpoints

    return plain(Checkpoints(folder).newest())


TREE = {
    "weights": torch.ones(2, 3),
    "betas": (0.9, 0.99),
    "step": 7,
    "big": 2**70,
    3: [None, "a", float("inf")],
}


@listed(
    "checkpoints", read_checkpoints, *(f"step-00000007/{name}" for name in ("tree.json", "manifest.json", "tensors.safetensors"))
)  # fmt: skip
def _(folder):
    from twosides.storage.checkpoints import Checkpoints

    Checkpoints(folder).save(7, TREE)


def read_tree(folder):
    from twosides.storage.trees import load_tree

    return plain(load_tree(folder))


@listed("a tree", read_tree, "tree.json", "tensors.safetensors")
def _(folder):
    from twosides.storage.trees import save_tree

    save_tree(folder, TREE)


def read_snapshots(folder):
    from twosides.training.posthoc import reconstruct

    denoiser, notes = reconstruct(folder, 0.08)
    return plain(denoiser.state_dict()), notes


SNAPSHOT = "snapshots/step-00000020/"


@listed(
    "snapshots", read_snapshots, SNAPSHOT + "snapshot.json", SNAPSHOT + "average-0.safetensors",
    SNAPSHOT + "average-1.safetensors", SNAPSHOT + "manifest.json", checked=True,
)  # fmt: skip
def _(folder):
    from twosides.storage.files import commit_folder
    from twosides.storage.tensors import save_tensors
    from twosides.training.posthoc import ABOUT, average_file

    save_model(folder / "model")
    for step in (10, 20, 30, 40):
        about = {
            "format": "twosides snapshot",
            "version": 1,
            "step": step,
            "run": "a",
            "sigma_rels": [0.05, 0.1],
        }

        def write(target, about=about):
            for number in range(2):
                save_tensors(target / average_file(number), dict(mlp(number).named_parameters()))
            (target / ABOUT).write_text(json.dumps(about))

        commit_folder(folder / f"snapshots/step-{step:08d}", write)


# ---------------------------------------------------------------------------- plans


def read_plan(folder):
    from twosides.sampling.plan import Plan
    from twosides.storage.reading import read_file

    plan = Plan.from_json(read_file(folder / "plan.json", 1 << 24).decode())
    return repr(plan), plan.matrix().tolist()


@listed("a plan", read_plan, "plan.json", named=False)
def _(folder):
    import twosides as ts

    (folder / "plan.json").write_text(ts.plan("ddpm", "cosine", 3).to_json())


def read_plan_arrays(folder):
    from twosides.sampling.plan import Plan

    plan = Plan.from_npz(folder / "plan.npz")
    return repr(plan), plan.matrix().tolist()


@listed("a plan's arrays", read_plan_arrays, "plan.npz")
def _(folder):
    import twosides as ts

    ts.plan("ddpm", "cosine", 3).to_npz(folder / "plan.npz")


# ---------------------------------------------------------------------------- data


def picture(kind: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(1).integers(0, 256, (9, 8, 3), np.uint8))
    return buffer.getvalue()


def read_pictures(folder):
    from twosides.data.decode import Frame
    from twosides.data.images import Folder, Images

    data = Images(Folder(folder), Frame(8), max_bad=0.0)
    files = [data.read(place)[1] for place in range(len(data.files))]
    return [plain(data[place]) for place in range(len(data))], [file.caption for file in files]


def pictures(files: dict[str, bytes]):
    def make(folder):
        for name, data in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)

    return make


for suffix, kind in (
    ("png", "PNG"),
    ("avif", "AVIF"),
    ("jpg", "JPEG"),
    ("webp", "WEBP"),
    ("gif", "GIF"),
    ("tif", "TIFF"),
):
    listed(f"a picture of {kind}", read_pictures, f"a/x.{suffix}")(
        lambda folder, suffix=suffix, kind=kind: pictures({f"a/x.{suffix}": picture(kind), "b/y.png": picture("PNG")})(folder)
    )  # fmt: skip

listed("a caption", read_pictures, "x.txt")(
    lambda folder: pictures({"x.png": picture("PNG"), "x.txt": b"a letter"})(folder)
)


listed("an array", read_pictures, "x.npy")(lambda folder: pictures({"x.npy": array()})(folder))

listed("a table of captions", read_pictures, "metadata.jsonl")(
    lambda folder: pictures(
        {
            "x.png": picture("PNG"),
            "metadata.jsonl": b'{"file_name": "x.png", "text": "a letter", "label": 0}\n',
        }
    )(folder)
)

listed("a table of labels", read_pictures, "metadata.csv")(
    lambda folder: pictures(
        {
            "x.png": picture("PNG"),
            "a/y.png": picture("PNG"),
            "metadata.csv": b"file_name,label\nx.png,dog\na/y.png,cat\n",
        }
    )(folder)
)


def read_tars(folder):
    from twosides.data.decode import Frame
    from twosides.data.images import Images
    from twosides.data.tars import Tars

    data = Images(Tars(str(folder / "*.tar")), Frame(8), max_bad=0.0)
    return [plain(data[place]) for place in range(len(data))]


@listed("a tar", read_tars, "a.tar")
def _(folder):
    import tarfile

    files = {
        "a.png": picture("PNG"),
        "a.cls": b"1",
        "b.npy": array(),
        "b.json": b'{"label": 0, "caption": "b"}',
    }
    with tarfile.open(folder / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo("é" + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def read_latents(folder):
    from twosides.data.latents import Latents

    data = Latents(folder)
    return [plain(data[place]) for place in range(len(data))], plain(
        [data.data_mean, data.null, data.pipeline]
    )


@listed(
    "latents", read_latents, "summary/tree.json", "summary/tensors.safetensors", "summary/manifest.json",
    "shard-00000/latents.safetensors", "shard-00000/bad.json", "shard-00000/manifest.json", checked=True,
)  # fmt: skip
def _(folder):
    from twosides.storage.files import commit_folder
    from twosides.storage.tensors import save_tensors
    from twosides.storage.trees import save_tree

    rows, shape = 3, (4, 2, 2)

    def write(target):
        tensors = {"mean": torch.randn(rows, *shape, generator=torch.Generator().manual_seed(0))}
        tensors |= {
            "std": torch.ones(rows, *shape),
            "index": torch.arange(rows),
            "class_labels": torch.arange(rows),
        }
        save_tensors(target / "latents.safetensors", tensors)
        (target / "bad.json").write_text("[]")

    commit_folder(folder / "shard-00000", write)
    summary = {
        "shape": list(shape), "counts": [rows], "classes": ["a", "b", "c"], "bad": [], "null": {},
        "pipeline": {"folder": "p", "size": 16, "vae": "", "texts": ""},
        "data_mean": torch.zeros(4, 1, 1), "data_std": torch.ones(4, 1, 1),
    }  # fmt: skip
    commit_folder(folder / "summary", lambda target: save_tree(target, summary))


def read_glyphs(folder):
    from twosides.data.glyphs import Glyphs

    return plain(Glyphs(8, 2, cache=folder).x)


GLYPHS = "glyphs-v1-train-8px-2-seed0.npz"


@listed("drawn letters", read_glyphs, GLYPHS, checked=False)
def _(folder):
    read_glyphs(folder)
    assert (folder / GLYPHS).is_file()


def read_reader(folder):
    """Without the training that follows where the file is damaged."""
    from twosides.data import reader
    from twosides.data.glyphs import read_or_make

    made = read_or_make(folder / "reader.safetensors", reader._read, reader._pack, honest_reader)
    return hashlib.sha256(reader._pack(made)).hexdigest()


def honest_reader():
    from twosides.data import reader

    return reader._initialise(torch.Generator().manual_seed(0))


@listed("a reader of letters", read_reader, "reader.safetensors", checked=True)
def _(folder):
    read_reader(folder)


# ---------------------------------------------------------------------------- pipelines


def read_pipeline(folder):
    from twosides.integrations.diffusers import load_denoiser
    from twosides.integrations.diffusers.pipelines import load_pipeline

    load_pipeline(folder, network=False)
    denoiser = load_denoiser(folder)
    return repr(denoiser), plain(denoiser.state_dict())


@listed(
    "a pipeline", read_pipeline, "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
)  # fmt: skip
def _(folder):
    import diffusers

    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,),
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4,
    )  # fmt: skip
    diffusers.DDPMPipeline(network, diffusers.DDIMScheduler()).save_pretrained(folder)


@listed("a network's description", read_network, "network.json")
def _(folder):
    spec = {"class": "MLP", "config": {"dim": 2, "width": 8, "depth": 1, "classes": 0}}
    (folder / "network.json").write_text(json.dumps(spec))


# ---------------------------------------------------------------------------- the explorer


def read_request(folder):
    from twosides.explorer import wire
    from twosides.explorer.figures import FIGURES
    from twosides.storage.reading import read_file

    text = read_file(folder / "request.json", wire.LONGEST).decode(errors="replace")
    number, figure, params = wire.request(text, {figure.name: figure for figure in FIGURES})
    return number, figure.name, repr(params)


@listed("a request to the explorer", read_request, "request.json", named=False)
def _(folder):
    from twosides.explorer.figures import FIGURES

    figure = FIGURES[0]
    params = {control.name: control.default for control in figure.controls}
    (folder / "request.json").write_text(
        json.dumps({"req": 1, "figure": figure.name, "params": params})
    )


def reseal(folder: Path) -> None:
    """Make the checksums right, as an attacker would."""
    manifest = {
        path.name: {
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != "manifest.json" and path.stat().st_size < 1 << 24
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
