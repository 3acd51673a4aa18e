"""The LightningModule of a training run: one loss, and what all processes saw of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import DataLoader

from twosides.conditioning import nullified
from twosides.data.tasks import Data
from twosides.denoiser import Denoiser
from twosides.losses.objective import Losses, Objective, Staged
from twosides.randomness import PerSample
from twosides.training.batches import Batches
from twosides.training.settings import Settings

Auxiliary = Callable[[Denoiser, dict[str, Any], Losses], Tensor]


class Module(lightning.LightningModule):
    """A denoiser and its objective, as Lightning wants them.

    `bins`, an nn.Module that the objective may have, and `auxiliary`, if it is one, are submodules:
    their state is in the checkpoints. Of them only the auxiliary's parameters are trained.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        objective: Objective | Staged,
        settings: Settings,
        data: Data | None = None,
        auxiliary: Auxiliary | None = None,
    ) -> None:
        """The denoiser's parameters that require a gradient are trained."""
        super().__init__()
        self.denoiser, self.objective, self.settings = denoiser, objective, settings
        self.bins: nn.Module | None = getattr(objective, "bins", None)
        self.data, self.auxiliary = data, auxiliary
        self.frozen = {name for name, p in self.named_parameters() if not p.requires_grad}
        self.strict_loading = not self.frozen
        self.gradient_norm: Tensor = torch.zeros(())
        self.learning_rate = 0.0
        self._seen: list[tuple[Losses, Tensor | None]] = []

    def configure_model(self) -> None:
        """Shard what is trained, under the strategy that does."""
        if self.device_mesh is None:
            return
        from twosides.training.sharding import shard

        mesh = self.device_mesh["data_parallel"]
        for part in (self.denoiser.network, self.auxiliary):
            if isinstance(part, nn.Module):
                shard(part, mesh)

    def train_dataloader(self) -> DataLoader[Any]:
        """This process's share of the batches after the steps that were made."""
        assert self.data is not None
        trainer, settings = self.trainer, self.settings
        steps = trainer.global_step
        batches = Batches(self.data, settings, steps, trainer.global_rank, trainer.world_size)
        order, workers = torch.Generator(), settings.workers
        return DataLoader(batches, batch_size=None, generator=order, num_workers=workers)

    def training_step(self, item: dict[str, Any]) -> Tensor:
        """The mean loss of one micro-batch."""
        batch, step, places = item["batch"], item["step"], item["places"]
        seed = self.settings.seed
        # The network's own randomness (dropout) is a function of the place in the run too.
        torch.manual_seed(int(np.random.SeedSequence([seed, step, places[0]]).generate_state(1)[0]))
        draw = PerSample(seed, places, stream=1 + step, total=self.settings.batch)
        conditioning = self._dropped({k: v for k, v in batch.items() if k != "x"}, draw)
        objective = self.objective.at(step)
        losses = objective.evaluate(self.denoiser, batch["x"], generator=draw, **conditioning)
        loss, extra = losses.loss.mean(), None
        if self.auxiliary is not None:
            extra = self.auxiliary(self.denoiser, dict(batch), losses)
            loss = loss + extra
            extra = extra.detach().expand(len(places))
        kept = (field if field is None else field.detach() for field in losses)
        self._seen.append((Losses._make(kept), extra))
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW with a linear warm-up."""
        settings = self.settings
        modules = (self.denoiser, self.auxiliary)
        parts = [part for part in modules if isinstance(part, nn.Module)]
        trained = [p for part in parts for p in part.parameters() if p.requires_grad]
        if not trained:
            raise ValueError("no parameter requires a gradient; unfreeze some, or add an adapter")
        optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate)
        warm = max(settings.warmup, 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / warm))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Bound the norm of the whole gradient, over shards too."""
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        self.gradient_norm = nn.utils.clip_grad_norm_(trained, self.settings.clip_gradients)
        self.learning_rate = optimizer.param_groups[0]["lr"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Only what is trained: adapters of a large network are small."""
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in weights.items() if k not in self.frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Count the micro-batches of the steps made as this run makes them, not as the saved."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        made = checkpoint["global_step"] * self.settings.accumulate
        for counts in (progress["total"], progress["current"]):
            behind = {name: counts["ready"] - count for name, count in counts.items()}
            counts.update({name: made - count for name, count in behind.items()})

    def take_losses(self, *, wanted: bool) -> tuple[Losses, Tensor | None] | None:
        """Losses and auxiliary losses of the whole batch of the last step, and forget them.

        float64 on the CPU, in the order of places, the same on every process. All processes ask
        together, and with the same `wanted`: otherwise there is no communication and no answer.
        """
        seen, self._seen = self._seen, []
        if not wanted:
            return None
        fields: Any = zip(*(part for part, _ in seen), strict=True)
        losses = (None if field[0] is None else self.gathered(field) for field in fields)
        extra = [part for _, part in seen if part is not None]
        return Losses._make(losses), self.gathered(extra) if extra else None

    def gathered(self, parts: Sequence[Tensor]) -> Tensor:
        """Numbers of all processes by (micro-batch m, row k, rank r), from vectors over k, by m."""
        mine = torch.stack([part.to("cpu", torch.float64) for part in parts])
        if not dist.is_initialized():
            return mine.flatten()
        on = self.device if dist.get_backend() == "nccl" else torch.device("cpu")
        all_ranks = [torch.empty_like(mine, device=on) for _ in range(dist.get_world_size())]
        dist.all_gather(all_ranks, mine.to(on))
        return torch.stack(all_ranks, -1).flatten().cpu()

    def _dropped(self, conditioning: dict[str, Any], draw: PerSample) -> dict[str, Any]:
        if not self.settings.null or not self.settings.dropout:
            return conditioning
        return nullified(conditioning, self.settings.null, draw.uniform() < self.settings.dropout)
