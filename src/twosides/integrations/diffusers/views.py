"""The properties of a scheduler that pipelines and training scripts read, and forward diffusion."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from twosides.integrations.diffusers import notation as notations
from twosides.integrations.diffusers.forward import (
    coefficients,
    kept_shares,
    training_levels,
)


class SchedulerViews:
    """The properties and the forward diffusion of a `Scheduler`, which has their state."""

    @property
    def timesteps(self: Any) -> Tensor:
        """The timesteps of the calls; before a run, those of the whole training range."""
        run = self._runs.current
        return run.timesteps if run else training_levels(self.config, self.notation)[0]

    @timesteps.setter
    def timesteps(self: Any, told: Tensor) -> None:
        """Hand out this tensor instead, such as the same in another dtype."""
        run = self._runs.current
        if run is None or told.shape != run.timesteps.shape:
            raise ValueError("timesteps are laid out by set_timesteps(timesteps=...)")
        run.hand_out(told)

    @property
    def sigmas(self: Any) -> Tensor:
        """The levels of the calls and of the result, on the CPU: flow times, or sigma / alpha."""
        run = self._runs.current
        return run.sigmas if run else training_levels(self.config, self.notation)[1]

    @property
    def num_inference_steps(self: Any) -> int | None:
        """The steps of the run, None before a run."""
        run = self._runs.current
        return run.steps if run else None

    @property
    def order(self: Any) -> int:
        """The timesteps per step as pipelines count: those of step i begin at i * order.

        Pipelines that give timesteps or sigmas count each call as a step.
        """
        run = self._runs.current
        return run.order if run else self._sampler().nfe_per_step

    @property
    def begin_index(self: Any) -> int | None:
        """The timestep with which the run begins, if a pipeline has set it."""
        run = self._runs.current
        return run.begin if run else None

    @property
    def step_index(self: Any) -> int | None:
        """The number of the next timestep, None before the first step."""
        run = self._runs.current
        return run.index if run else None

    _begin_index, _step_index = begin_index, step_index

    @property
    def init_noise_sigma(self: Any) -> float:
        """The factor of unit noise at the beginning; 1 on flow paths."""
        run = self._runs.current
        if run is None or self.notation.path == "flow":
            return self.notation.data_scale
        plan, pure = run.whole.plan, notations.starts_pure(self.config)
        return float(plan.sigma[0] if pure else np.linalg.norm(plan.noise[0]))

    def scale_model_input(self: Any, sample: Tensor, timestep: Any = None) -> Tensor:
        """The network's input: the latents, divided by sigma_data for EDM."""
        scale = self.notation.data_scale
        return sample if scale == 1.0 else sample / scale

    @property
    def alphas_cumprod(self: Any) -> Tensor:
        """alpha^2 / (alpha^2 + sigma^2) of the training timesteps 0 ... N - 1, in float32."""
        return kept_shares(self.config, self.notation)

    @property
    def alphas(self: Any) -> Tensor:
        """The ratios alphas_cumprod[k] / alphas_cumprod[k - 1], float32."""
        return (1 - self.betas.double()).float()

    @property
    def betas(self: Any) -> Tensor:
        """The betas 1 - alphas_cumprod[k] / alphas_cumprod[k - 1], float32."""
        kept = self.alphas_cumprod.double()
        return (1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])).float()

    def __len__(self: Any) -> int:
        """The number of training timesteps."""
        return self.config["num_train_timesteps"]

    # ------------------------------------------------------------------ forward diffusion

    def add_noise(self: Any, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The latents `alpha x + sigma n` at any real timesteps, one or one per sample."""
        alpha, sigma = coefficients(self.notation, timesteps, original_samples)
        return alpha * original_samples + self.notation.noise * sigma * noise

    def scale_noise(self: Any, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """The same as `add_noise`, with the arguments in the order of flow pipelines."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self: Any, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The target of a network of velocities: u = n - x on flow paths, else v."""
        if self.notation.path == "flow":
            return noise - sample
        alpha, sigma = coefficients(self.notation, timesteps, sample)
        return alpha * noise - sigma * sample
