"""The LightningModule of a training run: one loss, and the losses that all processes saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import DataLoader

from twosides.conditioning import nullified
from twosides.data.tasks import Data
from twosides.denoiser import Denoiser
from twosides.losses.objective import Losses, Objective, Staged, exact
from twosides.randomness import PerSample
from twosides.training.batches import Batches
from twosides.training.finite import intended_infinities, require_finite
from twosides.training.guard import ignore_signals
from twosides.training.optimizers import OPTIMIZERS, rate
from twosides.training.settings import Settings

Auxiliary = Callable[[Denoiser, dict[str, Any], Losses], Tensor]


class Module(lightning.LightningModule):
    """A denoiser and its objective, in the form that Lightning wants.

    `bins`, an nn.Module that the objective may have, and `auxiliary`, if it is one, are submodules:
    their state is in the checkpoints. Of the two only the auxiliary's parameters are trained.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        objective: Objective | Staged,
        settings: Settings,
        data: Data | None = None,
        auxiliary: Auxiliary | None = None,
    ) -> None:
        """Train the parameters of the denoiser that require a gradient.

        denoiser, objective: the network and its loss.
        settings: the settings of the run.
        data: the training data; None for a module that is only measured.
        auxiliary: a function of (denoiser, batch, losses) that gives a scalar to add to the loss.
        """
        super().__init__()
        self.denoiser, self.objective, self.settings = denoiser, objective, settings
        self.bins: nn.Module | None = getattr(objective, "bins", None)
        self.data, self.auxiliary = data, auxiliary
        named = self.named_parameters(remove_duplicate=False)  # as state_dict has them
        self.frozen = {name for name, p in named if not p.requires_grad}
        self.strict_loading = not self.frozen
        self.gradient_norm: Tensor = torch.zeros(())
        self.infinite = intended_infinities(self)
        self.learning_rate = 0.0
        self._seen: list[tuple[Losses, Tensor | None]] = []
        self._step_losses: list[Tensor] = []
        self._begun = -1

    def configure_model(self) -> None:
        """Shard the parts that are trained, under the strategy that shards."""
        if self.device_mesh is None:
            return
        from twosides.training.sharding import shard

        mesh = self.device_mesh["data_parallel"]
        for part in (self.denoiser.network, self.auxiliary):
            if isinstance(part, nn.Module):
                shard(part, mesh)

    def train_dataloader(self) -> DataLoader[Any]:
        """The batches of this process after the steps that were made."""
        assert self.data is not None
        trainer, settings = self.trainer, self.settings
        steps = trainer.global_step
        batches = Batches(self.data, settings, steps, trainer.global_rank, trainer.world_size)
        order, workers = torch.Generator(), settings.workers
        return DataLoader(
            batches,
            batch_size=None,
            generator=order,
            num_workers=workers,
            worker_init_fn=ignore_signals,
        )

    def training_step(self, item: dict[str, Any]) -> Tensor:
        """The mean loss of one micro-batch."""
        step, places = item["step"], item["places"]
        batch = {**item["batch"], "x": exact(item["batch"]["x"])}
        seed = self.settings.seed
        # The network's own randomness, such as dropout, is a function of step and place, too.
        torch.manual_seed(int(np.random.SeedSequence([seed, step, places[0]]).generate_state(1)[0]))
        draw = PerSample(seed, places, stream=1 + step, total=self.settings.batch)
        conditioning = self._drop({k: v for k, v in batch.items() if k != "x"}, draw)
        objective = self.objective.at(step)
        losses = objective.evaluate(self.denoiser, batch["x"], generator=draw, **conditioning)
        loss, extra = losses.loss.mean(), None
        if self.auxiliary is not None:
            extra = self.auxiliary(self.denoiser, dict(batch), losses)
            loss = loss + extra
            extra = extra.detach().expand(len(places))
        kept = (field if field is None else field.detach() for field in losses)
        self._seen.append((Losses._make(kept), extra))
        self._step_losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        """The optimizer, with a linear warm-up of the learning rate and the decay after it."""
        settings = self.settings
        modules = (self.denoiser, self.auxiliary)
        parts = [part for part in modules if isinstance(part, nn.Module)]
        # Each parameter once, because an auxiliary loss may have a part of the network.
        trained = list(dict.fromkeys(p for part in parts for p in part.parameters()))
        trained = [p for p in trained if p.requires_grad]
        if not trained:
            raise ValueError("no parameter requires a gradient; unfreeze some, or add an adapter")
        chosen = settings.optimizer
        make = OPTIMIZERS[chosen] if isinstance(chosen, str) else chosen
        optimizer = make(trained, lr=settings.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda n: rate(n, settings.warmup, settings.steps, settings.decay)
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_after_backward(self) -> None:
        """Refuse, at step 1, parameters that the loss does not depend on, if DDP waits for them."""
        if self.trainer.global_step == self._begun and isinstance(
            self.trainer.strategy, DDPStrategy
        ):
            if error := self.unused_parameters():
                raise error

    def on_train_start(self) -> None:
        """Note the step that this process begins with."""
        self._begun = self.trainer.global_step

    def unused_parameters(self) -> ValueError | None:
        """An error that names the trained parameters without a gradient; None if all have one."""
        modules = (("denoiser", self.denoiser), ("auxiliary", self.auxiliary))
        parts = [(name, part) for name, part in modules if isinstance(part, nn.Module)]
        names = [
            f"{name}.{inner}"
            for name, part in parts
            for inner, value in part.named_parameters()
            if value.requires_grad and value.grad is None
        ]
        if not names:
            return None
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return ValueError(
            f"the loss does not depend on {', '.join(names[:5])}{more}, and DDP waits for the "
            "gradient of every parameter that is trained. Freeze what is not used "
            "(requires_grad_(False)), take it out of the network, or train with strategy 'fsdp' or "
            "on one device"
        )

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Bound the norm of the whole gradient, over all shards."""
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        self.gradient_norm = nn.utils.clip_grad_norm_(trained, self.settings.clip_gradients)
        self.learning_rate = optimizer.param_groups[0]["lr"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only the weights that are trained, and refuse those that are not finite.

        Adapters of a large network thus have small checkpoints.
        """
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in weights.items() if k not in self.frozen}
        kept = ("state_dict", "optimizer_states", "callbacks")
        tree = {part: checkpoint[part] for part in kept if part in checkpoint}
        step = checkpoint.get("global_step")
        require_finite(tree, f"the checkpoint of step {step}", self.infinite)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Convert the saved count of micro-batches to this run's number of them per step."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        made = checkpoint["global_step"] * self.settings.accumulate
        for counts in (progress["total"], progress["current"]):
            behind = {name: counts["ready"] - count for name, count in counts.items()}
            counts.update({name: made - count for name, count in behind.items()})

    def take_step_losses(self) -> list[Tensor]:
        """The losses of this process's micro-batches of the last step, which are then forgotten."""
        losses, self._step_losses = self._step_losses, []
        return losses

    def take_losses(self, *, wanted: bool) -> tuple[Losses, Tensor | None] | None:
        """The losses and auxiliary losses of the whole batch of the last step, then forgotten.

        They are in float64 on the CPU, in the order of places, the same on every process.

        wanted: whether they are needed. All processes have to call this with the same value; if it
            is False, there is no communication, and the answer is None.
        """
        seen, self._seen = self._seen, []
        if not wanted:
            return None
        fields: Any = zip(*(part for part, _ in seen), strict=True)
        losses = (None if field[0] is None else self.gather(field) for field in fields)
        extra = [part for _, part in seen if part is not None]
        return Losses._make(losses), self.gather(extra) if extra else None

    def gather(self, parts: Sequence[Tensor]) -> Tensor:
        """The numbers of all processes, in the order of (micro-batch m, row k, process r).

        parts: this process's numbers, for each m a vector over k.
        """
        mine = torch.stack([part.to("cpu", torch.float64) for part in parts])
        if not dist.is_initialized():
            return mine.flatten()
        on = self.device if dist.get_backend() == "nccl" else torch.device("cpu")
        all_ranks = [torch.empty_like(mine, device=on) for _ in range(dist.get_world_size())]
        dist.all_gather(all_ranks, mine.to(on))
        return torch.stack(all_ranks, -1).flatten().cpu()

    def _drop(self, conditioning: dict[str, Any], draw: PerSample) -> dict[str, Any]:
        """The conditioning, with null values for a random part of the samples."""
        if not self.settings.null or not self.settings.dropout:
            return conditioning
        return nullified(conditioning, self.settings.null, draw.uniform() < self.settings.dropout)
