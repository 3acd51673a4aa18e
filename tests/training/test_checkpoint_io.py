from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from twosides.storage.checkpoints import Checkpoints
from twosides.storage.files import CorruptFolder, verify_folder
from twosides.storage.trees import load_tree
from twosides.training.checkpoint_io import SaveCheckpoints, TreeCheckpointIO


@pytest.fixture(autouse=True)
def _global_rng_untouched() -> Iterator[None]:
    """The modules and Trainers of these tests draw from the global generator themselves."""
    with torch.random.fork_rng(devices=[]):
        yield


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended before"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning"),
]

STEPS = 12


class Toy(LightningModule):
    """Batches are a function of the global step, so the order of the data plays no part."""

    def __init__(self, fail_at: int = -1, **options: Any) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["fail_at"])
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)
        )
        with torch.no_grad():
            for i, weight in enumerate(self.parameters()):
                weight.copy_(torch.linspace(-1, 1, weight.numel()).view_as(weight) + i)
        self.fail_at = fail_at

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.global_step == self.fail_at:
            raise RuntimeError("power cut")
        draw = torch.Generator().manual_seed(100 * self.global_step + batch_idx % 2)
        return (self.net(torch.randn(4, 3, generator=draw)) ** 2).mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1, amsgrad=True)
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=4)
        cool = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
        scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cool], [4])
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class Average(Callback):
    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        for name, weight in pl_module.state_dict().items():
            self.weights[name] = (self.weights.get(name, weight) + weight) / 2

    def state_dict(self) -> dict[Any, Any]:
        return {"weights": self.weights, 3: (1, None)}

    def load_state_dict(self, state_dict: dict[Any, Any]) -> None:
        assert state_dict[3] == (1, None)
        self.weights = state_dict["weights"]


Saver = Callable[[Path], Callback]


def every(root: Path) -> Callback:
    return SaveCheckpoints(Checkpoints(root), every=2)


def models(root: Path) -> Callback:
    return ModelCheckpoint(root, every_n_train_steps=2, save_top_k=-1)


def fit(
    root: Path, saver: Saver, model: Toy, path: Path | None = None, weights_only: bool | None = None
) -> tuple[Trainer, dict[str, Any]]:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        accumulate_grad_batches=2,
        plugins=[TreeCheckpointIO()],
        callbacks=[saver(root), Average()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DataLoader(torch.zeros(10, 1))  # pyright: ignore[reportArgumentType]
    trainer.fit(model, data, ckpt_path=path, weights_only=weights_only)
    return trainer, trainer._checkpoint_connector.dump_checkpoint()  # pyright: ignore


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def newest(root: Path) -> Path | None:
    found = sorted(root.glob("epoch=*"), key=lambda f: int(f.stem.split("step=")[1]))
    return found[-1] if found else Checkpoints(root).newest_folder()


@pytest.mark.parametrize("saver", [every, models])
@pytest.mark.parametrize(
    ("fail_at", "weights_only"), [(3, None), (5, True), (8, False), (11, None)]
)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(
    tmp_path: Path, saver: Saver, fail_at: int, weights_only: bool | None
) -> None:
    _, whole = fit(tmp_path / "whole", saver, Toy())
    with pytest.raises(RuntimeError, match="power cut"):
        fit(tmp_path / "cut", saver, Toy(fail_at=fail_at))
    found = newest(tmp_path / "cut")
    assert found is not None
    assert load_tree(found)["global_step"] == fail_at // 2 * 2
    model = Toy()
    torch.nn.init.zeros_(model.net[0].weight)  # pyright: ignore[reportArgumentType]
    trainer, resumed = fit(tmp_path / "cut", saver, model, found, weights_only)
    assert trainer.global_step == STEPS
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert equal(resumed[key], whole[key]), key
    assert equal(resumed["callbacks"]["Average"], whole["callbacks"]["Average"])
    for key, progress in whole["loops"]["fit_loop"].items():
        if key != "epoch_progress":  # Lightning counts an epoch that a resume begins differently
            assert equal(resumed["loops"]["fit_loop"][key], progress), key


def test_the_stored_state_is_the_trainers_own(tmp_path: Path) -> None:
    trainer, state = fit(tmp_path, every, Toy(width=3, name="toy"))
    found = Checkpoints(tmp_path).newest()
    assert found is not None and found[0] == STEPS
    stored = found[1]
    assert stored.keys() == state.keys() | {"hparams_name", "hyper_parameters"}
    assert stored["hyper_parameters"] == {"width": 3, "name": "toy"}
    for key in ("state_dict", "optimizer_states", "callbacks"):
        assert equal(stored[key], state[key]), key
    assert all(type(key) is int for key in stored["optimizer_states"][0]["state"])
    assert trainer.checkpoint_callbacks == [trainer.callbacks[-1]]  # pyright: ignore


def test_no_file_is_a_pickle_and_only_the_kept_folders_remain(tmp_path: Path) -> None:
    fit(tmp_path, every, Toy())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000012"]
    for folder in tmp_path.iterdir():
        verify_folder(folder)
        names = {"manifest.json", "tree.json", "tensors.safetensors"}
        assert {p.name for p in folder.iterdir()} == names
        assert not any(p.read_bytes()[:2] in (b"PK", b"\x80\x02") for p in folder.iterdir())


def test_model_checkpoint_prunes_folders_and_finds_its_last(tmp_path: Path) -> None:
    def one(root: Path) -> Callback:
        return ModelCheckpoint(root, every_n_train_steps=2, save_top_k=1, save_last="link")

    trainer, _ = fit(tmp_path, one, Toy())
    best = Path(trainer.checkpoint_callback.best_model_path)  # pyright: ignore
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([best.name, "last.ckpt"])
    assert (tmp_path / "last.ckpt").resolve() == best
    verify_folder(tmp_path / "last.ckpt")


def test_a_damaged_folder_is_not_resumed_from(tmp_path: Path) -> None:
    fit(tmp_path, every, Toy())
    folder = Checkpoints(tmp_path).folder(STEPS)
    data = bytearray((folder / "tensors.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "tensors.safetensors").write_bytes(data)
    with pytest.raises(CorruptFolder, match=r"step-00000012/tensors\.safetensors"):
        fit(tmp_path, every, Toy(), folder)
    with pytest.warns(UserWarning, match=r"step-00000012/tensors\.safetensors"):
        assert Checkpoints(tmp_path).newest_folder() == Checkpoints(tmp_path).folder(STEPS - 2)


def test_an_object_among_the_hyperparameters_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="hyper_parameters/root is a PosixPath"):
        fit(tmp_path, every, Toy(root=Path("/")))
    assert list(tmp_path.iterdir()) == []


def test_it_asks_for_its_plugin_and_for_local_folders(tmp_path: Path) -> None:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2,
        callbacks=[every(tmp_path)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DataLoader(torch.zeros(10, 1))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="TreeCheckpointIO"):
        trainer.fit(Toy(), data)
    with pytest.raises(TypeError, match="storage_options"):
        TreeCheckpointIO().save_checkpoint({}, tmp_path, storage_options={})
    with pytest.raises(ValueError, match="every is a number of steps >= 1, got 0"):
        SaveCheckpoints(Checkpoints(tmp_path), every=0)
    TreeCheckpointIO().remove_checkpoint(tmp_path / "nothing")
