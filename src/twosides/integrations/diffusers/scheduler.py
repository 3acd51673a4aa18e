"""One scheduler for every diffusers pipeline: any sampler, on any path.

A pipeline reads the `timesteps` of its scheduler, calls its network at each and gives the answer to
`step`. The scheduler runs a plan, the table of a sampler's coefficients, whose calls the pipeline
makes. Latents stay in the pipeline's own coordinates.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from twosides.integrations.diffusers import notation as notations
from twosides.integrations.diffusers.answers import obstacles_to_compiling, read_answer
from twosides.integrations.diffusers.configs import as_count, translate, usual_words
from twosides.integrations.diffusers.demands import check_demands, demands
from twosides.integrations.diffusers.levels import choose_nodes, interpolate, steps_of
from twosides.integrations.diffusers.notation import Notation
from twosides.integrations.diffusers.passes import Pass, spread
from twosides.integrations.diffusers.runs import Run, Runs
from twosides.integrations.diffusers.views import SchedulerViews
from twosides.naming import unknown
from twosides.sampling.grids import GRIDS
from twosides.sampling.named import sampler_named
from twosides.sampling.sampler import Sampler
from twosides.storage.parts import describe, restore


@dataclass
class SchedulerOutput(BaseOutput):
    """The next latents, and the data as predicted from this call."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class Scheduler(SchedulerViews, SchedulerMixin, ConfigMixin):
    """Any sampler as a diffusers scheduler, for any pipeline whose path is Gaussian.

        pipe.scheduler = Scheduler.from_pipeline(pipe, sampler="dpmpp-2m")

    sampler: a name, see `named.sampler_named`: a preset, with numbers if it takes some ("kab2(0.5,
        3)"), "unipc-published", the path of a sampler's file; or a Sampler.
    grid: the levels. By default they are those of the model's own scheduler or of the pipeline; but
        a Sampler passed whole, a file's that lists its levels (num_inference_steps must be theirs,
        and no shift moves them), and a solver that needs even steps, keep their grids. "sampler"
        is the sampler's grid; else it is the name of a grid. Where a grid ends above the model's
        own end, a last step leads there.
    seed: the seed of the noise, in pipelines that pass no generator to `step`; sample i of a batch
        depends on (seed, i) only. None uses torch's global generator.
    noise: "brownian" for noise on one path of the seed, which is the same for any number of steps
        (`sampling.brownian`). By default the noise of each step is drawn independently.
    gives_data: whether the tuple of a step contains the predicted data, see `step`.
    origin: the diffusers class to which the other arguments belong (`notation` has their meaning).
        `from_pipeline` and `from_config` fill them in.

    ValueError for names and words that mean nothing, and for impossible pairs, such as
    eps-prediction at zero SNR, when a run is laid out.
    """

    _compatibles: ClassVar[list[str]] = notations.ORIGINS

    @register_to_config
    def __init__(
        self,
        sampler: Any = "ddim",
        grid: str | None = None,
        seed: int | None = None,
        noise: str | None = None,
        origin: str | None = None,
        num_train_timesteps: int = 1000,
        prediction_type: str = "epsilon",
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float | None = None,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        set_alpha_to_one: bool = True,
        final_sigmas_type: str | None = None,
        timestep_type: str = "discrete",
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma_data: float | None = None,
        sigma_schedule: str | None = None,
        rho: float | None = None,
        use_flow_sigmas: bool = False,
        flow_shift: float | None = None,
        shift: float | None = None,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
        invert_sigmas: bool = False,
        original_inference_steps: int | None = None,
        lambda_min_clipped: float | None = None,
        variance_type: str | None = None,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        gives_data: bool = False,
    ) -> None:
        """See the class."""
        if isinstance(sampler, Sampler):
            self.register_to_config(sampler=describe(sampler))
        if grid not in (None, "sampler", *GRIDS):
            raise unknown("grid", grid, ["sampler", *GRIDS])
        if noise not in (None, "brownian"):
            raise unknown("noise", noise, ["brownian"])
        if noise and seed is None:
            raise ValueError("noise='brownian' is the path of a seed; pass seed=0, or another")
        if origin not in (None, *notations.ORIGINS):
            raise unknown("scheduler class", origin, notations.ORIGINS)
        self._forget_runs()
        _ = self._sampler(), self.notation  # read now, so that errors are raised here

    def _forget_runs(self) -> None:
        self._runs = Runs()
        self._read: tuple[Any, Notation] | None = None

    # ------------------------------------------------------------------ from others

    @classmethod
    def from_pipeline(cls, pipe: Any, sampler: str | Sampler = "ddim", **options: Any) -> Scheduler:
        """A scheduler for this pipeline (or modular components), in place of the one that it has.

        pipe: the pipeline.
        sampler: a name or a Sampler.
        options: further arguments of Scheduler.

        ValueError for a pipeline that needs a feature that this scheduler lacks, or whose scheduler
        cannot be read, with the reason.
        """
        own = getattr(pipe, "scheduler", None)
        if own is None:
            raise TypeError(f"{type(pipe).__name__} has no scheduler that could be replaced")
        check_demands(type(pipe), cls)
        config = {**own.config, "_class_name": type(own).__name__}
        data = {"gives_data": True} if demands(type(pipe)).takes_data else {}
        return cls.from_config(config, sampler=sampler, **data, **options)

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **options: Any
    ) -> Any:
        """A scheduler from the config of this class, or of a class of diffusers."""
        made = inspect.signature(cls.__init__).parameters
        known = {name: each.default for name, each in made.items() if name != "self"}
        config = translate(config, known)
        if not return_unused_kwargs and (wrong := options.keys() - known.keys()):
            raise TypeError(str(unknown("option", min(wrong), known)))
        if isinstance(options.get("sampler"), Sampler):
            options["sampler"] = describe(options["sampler"])
        answer: Any = super().from_config(config, return_unused_kwargs, **options)
        scheduler = answer[0] if return_unused_kwargs else answer
        usual = {*scheduler.config["_use_default_values"], *usual_words(scheduler.config)}
        scheduler.register_to_config(_use_default_values=sorted(usual))
        return answer

    # ------------------------------------------------------------------ the meaning of the config

    @property
    def notation(self) -> Notation:
        """The network's output, its path and its clock."""
        # It is read again when it changes, because pipelines replace the config later, too.
        if self._read is None or self._read[0] is not self._internal_dict:
            self._read = (self._internal_dict, notations.read(self.config))
        return self._read[1]

    def _sampler(self) -> Sampler:
        given = self.config["sampler"]
        sampler = restore(dict(given)) if isinstance(given, Mapping) else given
        return sampler_named(sampler)

    # ------------------------------------------------------------------ a run

    def set_timesteps(
        self,
        num_inference_steps: Any = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        original_inference_steps: int | None = None,
        strength: float = 1.0,
        max_timesteps: float = 1.5708,
        intermediate_timesteps: float | None = 1.3,
    ) -> None:
        """Lay out a run of `num_inference_steps` steps, or through given levels.

        num_inference_steps: a whole number >= 1, left out where levels are given.
        device: the device of `timesteps`.
        timesteps: the timesteps that the network is to be told, exactly.
        sigmas: flow times before the shift, or sigma / alpha; the final 0 may be left out. If
            timesteps are given, too, the levels are those of the sigmas, and the network is told
            the timesteps.
        mu: the logarithm of the shift, where it depends on the resolution.
        original_inference_steps: the number of levels that a consistency model (LCM, TCD) was
            distilled at, of which the run takes some; by default the config's.
        strength: the share of these levels, from the data on, that is used, in (0, 1].
        max_timesteps, intermediate_timesteps: in SANA-Sprint's pipelines the angle of the first
            timestep, and that of the second if there are two steps; None for even ones.
        """
        for name, values in (("timesteps", timesteps), ("sigmas", sigmas)):
            if values is not None and num_inference_steps not in (None, len(values)):
                raise ValueError(
                    f"{len(values)} {name} do not make num_inference_steps={num_inference_steps}"
                )
        notation, sampler = self.notation, self._sampler()
        counted = timesteps is None and sigmas is None
        steps = as_count(num_inference_steps) if counted else 0
        config = dict(self.config) | {
            "strength": strength,
            "max_timesteps": max_timesteps,
            "intermediate_timesteps": intermediate_timesteps,
        }
        if original_inference_steps is not None:
            config["original_inference_steps"] = original_inference_steps
        nodes = choose_nodes(config, notation, sampler, steps, timesteps, sigmas, mu)
        walk = Pass(sampler, notation, nodes)
        plan, order = walk.plan, sampler.nfe_per_step if counted else 1
        steps = steps_of(config, steps)
        places = spread(walk.steps_of_calls(), order, steps) if counted else range(plan.nfe)
        if notations.origin(config) in notations.LISTS_END:
            places = [*places, plan.nfe]
        asked = [plan.levels[place].logsnr for place in places]
        if timesteps is not None and sigmas is not None:
            times = interpolate(nodes, asked, timesteps)
        else:
            logsnrs = torch.tensor(asked, dtype=torch.float64)
            times = notation.clock.read(logsnrs, notation.schedule).float()
            if notation.path == "vp" and bool((times == times.round()).all()):
                times = times.long()  # some pipelines use them as indices
        with np.errstate(divide="ignore"):
            ratio = plan.sigma if notation.path == "flow" else plan.sigma / plan.alpha
        levels = torch.from_numpy(ratio[[*places, plan.nfe]]).float()
        times = times.to(device or "cpu")
        steps, eager = steps or plan.nfe, obstacles_to_compiling(self.config)
        self._runs.enter(Run(walk, places, times, levels, steps, order, eager))

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Set the number of the timestep with which the run will begin (image to image).

        ValueError if nothing is then left to do, or if that timestep does not begin the step of its
        number.
        """
        run = self._runs.current
        if run is not None:
            run.begin_at(begin_index)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        generator: Any = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        use_clipped_model_output: bool | None = False,
        prev_timestep: Any = None,
    ) -> Any:
        """The next latents, from the network's answer to `sample` at `timestep`.

        model_output: the network's answer, with the channels of its variance if it has some.
        timestep: an element of `timesteps`, which is recognised by its place in memory, or a number
            that equals one. The step that was taken last may be taken again, as for tiles; any
            other that is not the next begins there without memory of earlier calls. A timestep that
            is none of them begins a run between two, and is the next one in a run that has begun.
        sample: the latents that the network was shown.
        eta: DDIM's eta, in place of the sampler's noise; 0 keeps the sampler's.
        generator: a torch.Generator of the noise, or one for each sample.
        variance_noise: the first noise of the step, in place of a drawn one.
        return_dict: whether to return a SchedulerOutput. Else it is a tuple (latents,), with the
            predicted data if the run is a single step, or if the config has `gives_data`, which
            `from_pipeline` sets for pipelines that take them.
        use_clipped_model_output: is ignored, because data are always clipped consistently.
        prev_timestep: is ignored, because the run knows its next level; unCLIP's pipelines pass it.

        Under torch.compile a graph serves all steps, of the run that was laid out last, from
        set_begin_index on, one after the other; the noise is torch's or variance_noise, eta and
        generator are refused.
        """
        if torch.compiler.is_compiling():
            plain = not eta and generator is None
            return self._compiled_step(model_output, sample, variance_noise, return_dict, plain)
        run, index = self._runs.of(timestep)
        run.arrive(timestep, index, eta)
        x_z, x_o = run.solution
        z, answer = _wide(sample), _wide(read_answer(self.config, x_z, x_o, model_output, sample))
        wanted = return_dict or len(run.places) == 1 or self.config["gives_data"]
        x = x_z * z + x_o * answer if wanted else None

        def noise() -> Tensor:
            drawn = given.pop().to(z) if given else run.draw(self.config, z, generator)
            return drawn if unit == 1.0 else unit * drawn

        given = [] if variance_noise is None else [variance_noise]
        unit = run.whole.notation.noise
        state = run.advance(z, answer, noise)
        state = state if z is sample else state.to(sample.dtype)
        if run.fresh:  # the run is done: another step would begin it again
            self._runs.leave(run)
        if x is None:
            return (state,)
        x = x.to(sample.dtype)
        return SchedulerOutput(state, x) if return_dict else (state, x)

    def _compiled_step(
        self, answer: Tensor, sample: Tensor, noise: Tensor | None, return_dict: bool, plain: bool
    ) -> Any:
        run = self._runs.last
        if run is None or run.eager or not plain:
            why = "call set_timesteps first" if run is None else run.eager
            raise ValueError(f"not under torch.compile: {why or 'eta and generator'}")
        band, z, answer = run.band, _wide(sample), _wide(answer)
        row = band.row()
        x = row[-2] * z + row[-1] * answer
        noises = [torch.randn_like(z) if noise is None else _wide(noise)] * min(band.draws, 1)
        noises += [torch.randn_like(z) for _ in range(band.draws - 1)]
        state = band.advance(row, z, answer, noises).to(sample.dtype)
        x = x.to(sample.dtype)
        return SchedulerOutput(state, x) if return_dict else (state,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Scheduler:
        """A scheduler of its own, in the middle of the same run."""
        twin, run = type(self).__new__(type(self)), self._runs.current
        memo[id(self)] = twin
        for name, value in self.__dict__.items():
            if name not in ("_runs", "_read"):
                setattr(twin, name, deepcopy(value, memo))
        twin._forget_runs()
        if run is not None:
            twin._runs.enter(run.twin())
        return twin


def _wide(value: Tensor) -> Tensor:
    """The tensor in float32 at least."""
    return value if value.dtype.itemsize >= 4 else value.float()
