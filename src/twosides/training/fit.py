"""Training with Lightning: a recipe, a network, data, a folder.

The run's folder holds `checkpoints/` (complete, verified, resumed from after a kill), `logs/` (CSV
and TensorBoard), `samples/` (pictures on the way) and at the end `model/`, which `twosides.load`
reads. Everything random depends on (seed, step, sample): batch n is the same whether or not the run
was interrupted before it, and whatever the number of processes.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from twosides import checkpoint
from twosides.denoiser import Denoiser
from twosides.progress import bar
from twosides.randomness import PerSample
from twosides.storage import Checkpoints, write_file
from twosides.training.checkpoint_io import SaveCheckpoints, TreeCheckpointIO
from twosides.training.ema import PowerEMA
from twosides.training.objective import Objective
from twosides.training.recipes import Recipe, recipe_named


@dataclass(frozen=True)
class Settings:
    """How long and how fast to train.

    `null` names the conditioning that is dropped with probability `dropout` and the value it then
    takes, for classifier-free guidance. `minutes` ends training early. `sigma_rel` is the relative
    width of the average whose weights become the model.
    """

    steps: int = 1000
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 50
    seed: int = 0
    sigma_rel: float = 0.1
    null: Mapping[str, int | Tensor] = field(default_factory=dict)
    dropout: float = 0.1
    minutes: float | None = None
    checkpoint_every: int = 200
    picture_every: int = 500
    clip_gradients: float = 1.0
    precision: str = "32-true"
    devices: int | str = "auto"

    def __post_init__(self) -> None:
        """ValueError for counts and rates that make no sense."""
        for name in ("steps", "batch", "checkpoint_every", "picture_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (self.learning_rate > 0 and 0 <= self.dropout < 1 and self.warmup >= 0):
            raise ValueError(f"learning_rate > 0, 0 <= dropout < 1 and warmup >= 0: {self}")


class Batches(IterableDataset):
    """Batches of a map-style dataset from a given step on, each a function of (seed, step)."""

    def __init__(
        self, data: Dataset[Any], settings: Settings, start: int, rank: int = 0, world: int = 1
    ) -> None:
        """Rank r of `world` gets its share of each global batch."""
        self.data, self.settings, self.start = data, settings, start
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Endless; items carry the step and the places of their rows in the global batch."""
        count, batch = len(self.data), self.settings.batch  # pyright: ignore[reportArgumentType]
        order, epoch = np.array([], dtype=int), -1
        step = self.start
        while True:
            rows = []
            for place in range(self.rank, batch, self.world):
                position = step * batch + place
                if position // count != epoch:
                    epoch = position // count
                    order = np.random.default_rng([self.settings.seed, epoch]).permutation(count)
                rows.append(self.data[int(order[position % count])])
            places = list(range(self.rank, batch, self.world))
            yield {"batch": default_collate(rows), "step": step, "places": places}
            step += 1


class Module(lightning.LightningModule):
    """A denoiser and its objective, as Lightning wants them."""

    def __init__(self, denoiser: Denoiser, objective: Objective, settings: Settings) -> None:
        """The denoiser's parameters are trained."""
        super().__init__()
        self.denoiser, self.objective, self.settings = denoiser, objective, settings

    def training_step(self, item: dict[str, Any]) -> Tensor:
        """The mean loss of one batch."""
        batch, step = dict(item["batch"]), item["step"]
        x = batch.pop("x")
        seed, places = self.settings.seed, item["places"]
        # The network's own randomness (dropout) is a function of (seed, step) too.
        torch.manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))
        draw = PerSample(seed, places, stream=1 + step, total=self.settings.batch)
        losses = self.objective(self.denoiser, x, generator=draw, **self._dropped(batch, draw))
        loss = losses.mean()
        self.log("loss", loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW with a linear warm-up."""
        settings = self.settings
        optimizer = torch.optim.AdamW(self.denoiser.parameters(), lr=settings.learning_rate)
        warm = max(settings.warmup, 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / warm))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def _dropped(self, conditioning: dict[str, Tensor], draw: PerSample) -> dict[str, Tensor]:
        if not self.settings.null or not self.settings.dropout:
            return conditioning
        drop = draw.uniform() < self.settings.dropout
        for name, null in self.settings.null.items():
            value = conditioning[name]
            gone = drop.to(value.device).reshape(-1, *[1] * (value.ndim - 1))
            filler = torch.as_tensor(null, dtype=value.dtype, device=value.device)
            conditioning[name] = torch.where(gone, filler, value)
        return conditioning


class Averaging(lightning.Callback):
    """The power-function average, in the checkpoint with its counter."""

    def __init__(self, denoiser: Denoiser, sigma_rel: float) -> None:
        """Averages the denoiser's parameters."""
        self.denoiser, self.ema, self.seen = denoiser, PowerEMA(denoiser, sigma_rel), -1

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in every optimizer step once."""
        if trainer.global_step != self.seen:
            self.seen = trainer.global_step
            self.ema.update(self.denoiser)

    def state_dict(self) -> dict[str, Any]:
        """The average and its counter."""
        return {**self.ema.state_dict(), "seen": self.seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.seen = state_dict["seen"]
        self.ema.load_state_dict(state_dict)

    def averaged(self) -> Denoiser:
        """A copy of the denoiser with the average's weights."""
        copy = checkpoint.build_denoiser(
            checkpoint.describe_denoiser(self.denoiser), trust_code=True
        )
        copy.load_state_dict(self.denoiser.state_dict())
        self.ema.copy_to(copy)
        return copy.eval()


class Watching(lightning.Callback):
    """Progress with the time left, an optional time limit, and pictures on the way."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        average: Averaging,
        draw: Callable[..., bytes] | None,
    ) -> None:
        """`draw(denoiser) -> PNG bytes` makes the pictures."""
        self.folder, self.settings, self.average, self.draw = folder, settings, average, draw
        self.began, self.open = time.monotonic(), contextlib.ExitStack()
        self.tell: Callable[[int, int], None] = lambda done, total: None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock."""
        self.began = time.monotonic()
        self.tell = self.open.enter_context(bar("training", self.settings.steps))

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show, draw, stop."""
        step, settings = trainer.global_step, self.settings
        self.tell(step, settings.steps)
        if self.draw and step % settings.picture_every == 0:
            path = self.folder / f"samples/step-{step:08d}.png"
            path.parent.mkdir(exist_ok=True)
            write_file(path, self.draw(self.average.averaged()))
        if settings.minutes and time.monotonic() - self.began > 60 * settings.minutes:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the bar."""
        self.open.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the bar."""
        self.open.close()


def fit(
    network: nn.Module,
    data: Dataset[Any],
    recipe: str | Recipe,
    folder: str | Path,
    settings: Settings | None = None,
    *,
    draw: Callable[[Denoiser], bytes] | None = None,
    about: Mapping[str, Any] | None = None,
    **options: Any,
) -> Denoiser:
    """Train a network by a recipe and return the averaged denoiser, which is also in the folder.

    data: a map-style dataset of dictionaries: "x" and whatever the network takes as conditioning.
    draw: makes a PNG of the averaged denoiser every `picture_every` steps.
    about: notes for config.json; options: Denoiser's (time, data_mean, data_std).

    The same call continues after an interruption, and returns the model at once when it is
    finished; more `steps` train on. Other settings in the same folder are a ValueError.
    """
    folder, settings = Path(folder), settings or Settings()
    recipe = recipe_named(recipe)
    denoiser = recipe.denoiser(network, **options)
    _reaches(denoiser, recipe)
    _same_run(folder, _identity(denoiser, settings))
    asked = {"steps": settings.steps, "minutes": settings.minutes}
    if _finished(folder, asked):
        return checkpoint.load(folder, trust_code=True)
    checkpoints = Checkpoints(folder / "checkpoints")
    newest = checkpoints.newest_folder()
    start = int(newest.name.removeprefix("step-")) if newest else 0
    average = Averaging(denoiser, settings.sigma_rel)
    with _quiet():
        trainer = _trainer(folder, settings, average, draw, checkpoints)
    batches = Batches(data, settings, start, trainer.global_rank, trainer.world_size)
    module = Module(denoiser, recipe.objective(), settings)
    loader = DataLoader(batches, batch_size=None, generator=torch.Generator())
    with _quiet(), torch.random.fork_rng():
        trainer.fit(module, loader, ckpt_path=newest, weights_only=True)
    result = average.averaged()
    training = {"asked": asked, "steps": trainer.global_step, **_lasting(settings)}
    notes = {"training": training, "ema": {"sigma_rel": settings.sigma_rel}, **(about or {})}
    checkpoint.save(result, folder / "model", **notes)
    return result


def _reaches(denoiser: Denoiser, recipe: Recipe) -> None:
    """Refuse, before the first step, a clock that cannot tell all levels of the density."""
    ends = recipe.density.logsnr(torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64))
    try:
        denoiser.clock.read(ends, denoiser.schedule)
    except ValueError as error:
        raise ValueError(
            f"this recipe trains on logsnr {ends[1]:.4g} to {ends[0]:.4g}, but {denoiser.clock} "
            f"cannot tell all of that: {error}. Use time='c_noise', 'logsnr' or clamp=True"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's advertisements and its advice on data that are in memory."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            yield
    finally:
        log.setLevel(level)


def _trainer(
    folder: Path,
    settings: Settings,
    average: Averaging,
    draw: Callable[..., bytes] | None,
    checkpoints: Checkpoints,
) -> lightning.Trainer:
    loggers = [CSVLogger(folder, name="logs"), TensorBoardLogger(folder, name="tensorboard")]
    watching = Watching(folder, settings, average, draw)
    saving = SaveCheckpoints(checkpoints, every=settings.checkpoint_every)
    return lightning.Trainer(
        max_steps=settings.steps,
        precision=settings.precision,  # pyright: ignore[reportArgumentType]
        devices=settings.devices,
        gradient_clip_val=settings.clip_gradients,
        logger=loggers,
        callbacks=[average, watching, saving],
        plugins=[TreeCheckpointIO()],
        log_every_n_steps=10,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=True,
    )


def _identity(denoiser: Denoiser, settings: Settings) -> dict[str, Any]:
    """What a run's folder belongs to: everything that decides its result."""
    return {"denoiser": checkpoint.describe_denoiser(denoiser), "settings": _lasting(settings)}


def _lasting(settings: Settings) -> dict[str, Any]:
    """Settings that a continued run must share; it may go on for longer, or elsewhere."""
    free = ("steps", "minutes", "devices", "checkpoint_every", "picture_every")
    lasting = {name: value for name, value in asdict(settings).items() if name not in free}
    return {**lasting, "null": {name: _noted(value) for name, value in settings.null.items()}}


def _noted(null: int | Tensor) -> int | str:
    return null if isinstance(null, int) else hashlib.sha256(null.numpy().tobytes()).hexdigest()


def _finished(folder: Path, asked: dict[str, Any]) -> bool:
    try:
        return checkpoint.read_notes(folder / "model")["training"]["asked"] == asked
    except (FileNotFoundError, KeyError):
        return False


def _same_run(folder: Path, identity: dict[str, Any]) -> None:
    """Record what the run is, or refuse to continue another one."""
    path, text = folder / "run.json", json.dumps(identity, indent=1, sort_keys=True)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, text.encode())
        return
    found = path.read_text(encoding="utf-8")
    if found != text:
        changed = sorted(set(text.splitlines()) ^ set(found.splitlines()))
        raise ValueError(
            f"{folder} holds another run. What differs: {'; '.join(s.strip() for s in changed)}. "
            "Choose another folder, or remove this one to start afresh"
        )


def loss_curve(folder: str | Path) -> tuple[list[int], list[float]]:
    """(steps, losses) of a run, over its interruptions."""
    points: dict[int, float] = {}
    files = Path(folder).glob("logs/version_*/metrics.csv")
    for path in sorted(files, key=lambda path: path.stat().st_mtime):
        with path.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row.get("loss"):
                    points[int(row["step"])] = float(row["loss"])
    steps = sorted(points)
    return steps, [points[step] for step in steps]
