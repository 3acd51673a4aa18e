"""Training with Lightning: a recipe, a network, data, a folder; one process or many.

The run's folder holds `checkpoints/` (complete, verified, resumed from after a kill), `logs/` and
`tensorboard/`, `samples/` (pictures on the way) and at the end `model/`, which `twosides.load`
reads. Everything random depends on (seed, step, place in the batch): levels and noise of a step are
the same whether or not the run was interrupted before it, and for any number of processes.

    twosides train glyphs --out run --devices 8                                 one machine, DDP
    torchrun --nnodes 4 --nproc-per-node 8 -m twosides train ... --strategy fsdp      any launcher
    srun --ntasks-per-node 8 twosides train ... --devices 8 --nodes 4                     SLURM

How processes find each other is Lightning's: it starts those of one machine itself, and reads what
torchrun and SLURM say.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from twosides.data.tasks import Stream, dataset_of, first_row
from twosides.denoiser import Denoiser
from twosides.losses.learned import LevelBins
from twosides.losses.objective import Objective, Staged
from twosides.losses.recipes import Recipe, recipe_named
from twosides.storage import models, parts
from twosides.storage.checkpoints import Checkpoints
from twosides.storage.files import CorruptFolder, write_file
from twosides.storage.owner import claim, hold, text_of
from twosides.training.batches import Batches
from twosides.training.callbacks import Averaging, Recording, Watching
from twosides.training.checkpoint_io import SaveCheckpoints, TreeCheckpointIO
from twosides.training.checks import check_data
from twosides.training.compiled import plain_names
from twosides.training.finite import require_finite, require_finite_folder
from twosides.training.guard import Guard
from twosides.training.log import METRICS, Log, loss_curve, read_rows
from twosides.training.module import Auxiliary, Module
from twosides.training.monitor import Monitor
from twosides.training.rehearsal import Rehearsal, warn_of_classes
from twosides.training.settings import Settings

RUN = "run.json"
BEFORE = ("runs", "before-*")  # what distillation puts into a run's folder before it trains
_LAUNCHERS = {"TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "MASTER_ADDR", "LSB_JOBID", "KUBERNETES_PORT"}

__all__ = ["Batches", "Module", "Monitor", "Settings", "Stream", "fit", "loss_curve"]


def fit(
    network: nn.Module | Denoiser,
    data: Any,
    recipe: str | Recipe | Objective | Staged,
    folder: str | Path,
    settings: Settings | None = None,
    *,
    auxiliary: Auxiliary | None = None,
    monitor: Monitor | None = None,
    callbacks: Iterable[lightning.Callback] = (),
    about: Mapping[str, Any] | None = None,
    **options: Any,
) -> Denoiser:
    """Train a network by a recipe and return the averaged denoiser, which is also in the folder.

    network: in the recipe's notation; or a `Denoiser`, which has its own and is trained by a
        recipe's objective, any other, or a `Staged` one. Parameters that require no gradient stay
        as they are.
    data: dictionaries, "x" and whatever the network takes as conditioning: a map-style dataset, a
        `Stream`, or whatever else `dataset_of` takes: arrays, tuples, loaders, endless datasets.
        "loss_mask" of a row says which elements are trained, see `losses.masks`.
    auxiliary: `auxiliary(denoiser, batch, losses)` is a scalar that is added to the loss. If it is
        an nn.Module it is trained along; the model that is saved does not contain it.
    monitor: validation data, pictures on the way, more loggers.
    callbacks: more of Lightning's, called before a checkpoint is saved.
    about: notes for config.json, which has the shape of a sample without them, too.
    options: of the network, Denoiser's (time, data_mean, data_std).

    An objective with an nn.Module `bins` has it in the checkpoints, and after each optimizer step
    its `observe(losses)` gets the `Losses` of the whole batch, in order, the same on all processes.

    Hidden states aligned with features of the data, as REPA does [Yu+ 2024]:

        class Align(nn.Module):
            def __init__(self, block, features):
                super().__init__()
                self.project, self.features = nn.LazyLinear(768), features
                block.register_forward_hook(lambda block, inputs, out: self.hidden.append(out))
                self.hidden = []

            def forward(self, denoiser, batch, losses):
                ours = self.project(self.hidden.pop())
                return -0.5 * cosine_similarity(ours, self.features(batch["x"]), dim=-1).mean()

    The same call continues after an interruption, and returns the model at once when it is
    finished; more `steps` train on. Other settings in the same folder are a ValueError, and so is
    a second call while the first one trains. Stopped by `minutes`, SIGTERM or Ctrl-C it saves a
    checkpoint where it stops (`training.guard`). Nothing that is not finite is kept
    (`training.finite`). What the end needs is tried before step 1 (`training.rehearsal`).
    """
    folder, settings, monitor = Path(folder), settings or Settings(), monitor or Monitor()
    data, unseen = dataset_of(data), monitor.validation
    unseen = None if unseen is None else dataset_of(unseen)
    draw = monitor.draw if settings.picture_every else None
    denoiser, objective = _subject(network, recipe, options)
    _reaches(denoiser, objective)
    with contextlib.ExitStack() as stack:
        stack.enter_context(plain_names(denoiser))
        average = Averaging(denoiser, settings.sigma_rel)
        identity = {"denoiser": average.description, "settings": settings.identity()}
        identity["about"] = dict(about or {})
        if is_first():
            alone = stack.enter_context(hold(folder, "run"))
            stack.enter_context(_given_up(folder, _claimed(folder, identity, alone)))
        try:
            if _finished(folder, settings.steps):
                return models.load(folder, like=denoiser)
        except CorruptFolder as error:
            warnings.warn(f"the model is damaged and is made again: {error}", stacklevel=2)
        module = Module(denoiser, objective, settings, data, auxiliary)
        guard = Guard(settings)
        log = _log(folder, monitor.loggers, auxiliary, unseen)
        reads = getattr(objective, "reads", ())
        checks: list[Callable[[Any], None]] = [
            lambda module: check_data(module.denoiser, data, reads)
        ]
        around: list[lightning.Callback] = [*_snapshots(folder, settings), *callbacks]
        if unseen is not None:
            validating = _validating(unseen, folder, average, log)
            checks.append(validating.rehearse)
            around.append(validating)
        shape = list(first_row(data)["x"].shape)
        notes = {"ema": {"sigma_rel": settings.sigma_rel}, "shape": shape, **(about or {})}
        rehearsal = Rehearsal(folder, average, notes, checks, draw)
        checkpoints = Checkpoints(folder / "checkpoints")
        around = [guard, average, rehearsal, *around]
        around += [Recording(log, settings, average.description)]
        around += [Watching(folder, settings, average, draw)]
        around += [SaveCheckpoints(checkpoints, every=settings.checkpoint_every)]
        stack.enter_context(_quiet())
        warn_of_classes(average.description)
        trainer = _trainer(folder, settings, log.loggers, around)
        settings.micro_batch(trainer.world_size)
        newest = checkpoints.newest_folder(
            functools.partial(require_finite_folder, allowed=module.infinite)
        )
        with torch.random.fork_rng(devices=_own_gpu()), _ended(trainer), _unused(module):
            trainer.fit(module, ckpt_path=newest, weights_only=True)
        _say_stopped(guard, checkpoints, trainer)
        if average.result is not None:
            _save_model(
                average.result,
                folder,
                module,
                {
                    **notes,
                    "training": {
                        "asked": {"steps": settings.steps},
                        "steps": trainer.global_step,
                        "stopped": guard.stopped,
                        **settings.identity(),
                    },
                },
            )
        trainer.strategy.barrier()
        return average.result or models.load(folder, like=denoiser)


def _save_model(result: Denoiser, folder: Path, module: Module, notes: dict[str, Any]) -> None:
    """Write the averaged model, with the sampling grid that the run has learned, if it has."""
    require_finite(result.state_dict(), "the model", module.infinite, together=False)
    bins = module.bins
    if isinstance(bins, LevelBins) and bins.ready:
        notes["entropic"] = parts.describe(bins.grid())
    models.save(result, folder / "model", **notes)


def _say_stopped(guard: Guard, checkpoints: Checkpoints, trainer: lightning.Trainer) -> None:
    """Print a line on a run that ended before its last step; after a signal, end the program."""
    if not guard.stopped:
        return
    if trainer.is_global_zero:
        print(
            f"stopped by {guard.stopped} at step {trainer.global_step}, which is saved in "
            f"{checkpoints.folder(trainer.global_step)}; the same command goes on from there",
            file=sys.stderr,
        )
    if guard.stopped == "SIGTERM":
        raise SystemExit(128 + signal.SIGTERM)
    if guard.stopped == "SIGINT":
        raise KeyboardInterrupt


@contextlib.contextmanager
def _unused(module: Module) -> Iterator[None]:
    """Name the parameters on which the loss does not depend, where torch only counts them."""
    try:
        yield
    except RuntimeError as error:
        if "not used in producing" not in str(error):
            raise
        raise module.unused_parameters() or error from error


def _claimed(folder: Path, identity: dict[str, Any], alone: bool) -> bool:
    """Claim the folder. One whose run has trained nothing yet is free for a corrected command.

    alone: whether no other process can be about to train there.
    """
    try:
        return claim(folder / RUN, identity, holds="run", beside=BEFORE)
    except ValueError:
        if not alone or not (folder / RUN).is_file() or _trained(folder):
            raise
    write_file(folder / RUN, text_of(identity))
    return True


def _trained(folder: Path) -> bool:
    """Whether a run has left anything in the folder that would be lost."""
    places = ("checkpoints/*step-*", "snapshots/*step-*", "model/*")
    kept = itertools.chain.from_iterable(map(folder.glob, places))
    return bool(read_rows(folder / METRICS)) or any(True for _ in kept)


def _subject(
    network: nn.Module | Denoiser,
    recipe: str | Recipe | Objective | Staged,
    options: Mapping[str, Any],
) -> tuple[Denoiser, Objective | Staged]:
    """The denoiser that is trained, and its loss."""
    if isinstance(network, Denoiser):
        if options:
            raise ValueError(f"{', '.join(options)}: a Denoiser has its own; leave them out")
        given = isinstance(recipe, Objective | Staged)
        return network, recipe if given else recipe_named(recipe).objective()
    if isinstance(recipe, Objective | Staged):
        raise ValueError("an objective does not say what a network predicts: pass a Denoiser of it")
    recipe = recipe_named(recipe)
    return recipe.denoiser(network, **options), recipe.objective()


def _reaches(denoiser: Denoiser, objective: Objective | Staged) -> None:
    """Refuse, before the first step, a clock that cannot state all levels of the density."""
    if isinstance(objective, Staged):
        _reaches(denoiser, objective.first)
        return _reaches(denoiser, objective.then)
    ends = objective.density.logsnr(torch.tensor([1e-9, 1 - 1e-9], dtype=torch.float64))
    try:
        denoiser.clock.read(ends, denoiser.schedule)
    except ValueError as error:
        raise ValueError(
            f"this recipe trains on logsnr {ends[1]:.4g} to {ends[0]:.4g}, but {denoiser.clock} "
            f"cannot tell all of that: {error}. Use time='c_noise', 'logsnr' or clamp=True"
        ) from error


@contextlib.contextmanager
def _ended(trainer: lightning.Trainer) -> Iterator[None]:
    """Correct how Lightning ends an interrupted program: after SIGTERM with the code of success."""
    try:
        yield
    except SystemExit as end:
        if trainer.received_sigterm:
            raise SystemExit(128 + signal.SIGTERM) from end
        if trainer.interrupted:
            raise KeyboardInterrupt from end
        raise


@contextlib.contextmanager
def _given_up(folder: Path, new: bool) -> Iterator[None]:
    """Empty the folder if a new run fails before anything is logged, so that it can begin again."""
    try:
        yield
    except Exception:
        if new and not _trained(folder):
            for name in ("logs", "tensorboard", "samples"):
                shutil.rmtree(folder / name, ignore_errors=True)
            (folder / RUN).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's advertisements and its advice on data that are in memory."""
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


def _log(folder: Path, loggers: Iterable[Any], auxiliary: Any, validation: Any) -> Log:
    wanted = {"auxiliary": auxiliary, "validation": validation}
    extra = [name for name, part in wanted.items() if part is not None]
    return Log(folder, [TensorBoardLogger(folder, name="tensorboard"), *loggers], extra=extra)


def _snapshots(folder: Path, settings: Settings) -> list[lightning.Callback]:
    from twosides.training.snapshots import Snapshots

    return [Snapshots(folder, settings.snapshot_every)] if settings.snapshot_every else []


def _validating(data: Any, folder: Path, average: Averaging, log: Log) -> Any:
    from twosides.training.validation import Validating

    return Validating(data, folder, average, log)


def _trainer(
    folder: Path, settings: Settings, loggers: list[Any], callbacks: list[lightning.Callback]
) -> lightning.Trainer:
    devices, nodes = _launched(settings)
    strategy: Any = settings.strategy
    if strategy == "fsdp":
        from twosides.training.sharding import Sharded

        strategy = Sharded()
    return lightning.Trainer(
        max_steps=settings.steps,
        precision=settings.precision,  # pyright: ignore[reportArgumentType]
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        accumulate_grad_batches=settings.accumulate,
        logger=loggers,
        callbacks=callbacks,
        plugins=[TreeCheckpointIO()],
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=True,
    )


def _launched(settings: Settings) -> tuple[int | str, int]:
    """The devices of each machine and the machines; by default what torchrun has started."""
    if settings.nodes > 1 and not _LAUNCHERS & os.environ.keys():
        raise ValueError(
            f"{settings.nodes} nodes were asked, but no launcher has started this process; use "
            "torchrun or SLURM, or set MASTER_ADDR and NODE_RANK on each"
        )
    if settings.devices == "auto" and "TORCHELASTIC_RUN_ID" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    return settings.devices, settings.nodes


def is_first() -> bool:
    """Whether this process is the first of all of a run, by the variables that launchers set."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    return not any(int(os.environ.get(name) or 0) for name in ranks)


def _own_gpu() -> list[int]:
    """The GPU whose random generator training uses, as a list for `fork_rng`."""
    return [int(os.environ.get("LOCAL_RANK", 0))] if torch.cuda.is_available() else []


def _finished(folder: Path, steps: int) -> bool:
    """Whether the folder has a model of so many steps; one that a limit stopped is continued."""
    try:
        training = models.read_notes(folder / "model")["training"]
        made, asked = training["steps"], training["asked"]
    except (FileNotFoundError, KeyError):
        return False
    if made > steps:
        raise ValueError(
            f"{folder} has a model of {made} steps, more than the {steps} that were asked; choose "
            "another folder"
        )
    by_callback = asked["steps"] == steps and not (training.get("stopped") or asked.get("minutes"))
    return made == steps or by_callback
