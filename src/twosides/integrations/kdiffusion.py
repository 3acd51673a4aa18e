"""Samplers as k-diffusion's functions, `f(model, x, sigmas, ...)`, for its users and ComfyUI's.

    denoised = model(x, sigma, **extra_args)         x (B, ...), sigma (B,)

The grid is the caller's sigmas, and the initial state is used as it is:

    path="ve"      z = x + sigma n                   k-diffusion; sigma >= 0
    path="flow"    z = (1 - sigma) x + sigma n       ComfyUI's flow models; sigma in [0, 1]

The solver's generator, which yields states where it wants the network, is run on tensors, with all
coefficients in float64: from x = sigmas[0] n the result is that of `sample` on `grids.Given`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from twosides.naming import unknown
from twosides.outputs import Estimate
from twosides.randomness import PerSample, fresh_seed
from twosides.sampling.brownian import Brownian
from twosides.sampling.grids import Given
from twosides.sampling.named import sampler_named
from twosides.sampling.noise import Leg
from twosides.sampling.sampler import Sampler
from twosides.sampling.solvers import Asks, walk
from twosides.schedules import EDM, FlowMatching, Level, Schedule

PATHS = ("ve", "flow")


def sampler_function(
    sampler: str | Sampler,
    *,
    path: str | None = None,
    seed: int | None = None,
    noise: str | None = None,
) -> Callable[..., Tensor]:
    """A sampler as a function with k-diffusion's signature,

        f(model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None)

    sampler: a preset's name or a Sampler. Its own grid is not used, but Restart's returns to noise
        are kept. Where a preset refers to the time t, this is sigma / sigmas[0] on "ve", and sigma
        on "flow".
    path: "ve" or "flow"; by default "flow" for a model that ComfyUI calls CONST, else "ve".
    seed: the seed of the injected noise; that of sample i depends on (seed, i) only, and is the one
        that `sample` injects with this seed. None uses torch's global generator. Both halves of a
        run that is cut in two inject the same noise, unless their seeds differ.
    noise: "brownian" for noise on one path, which is the same for any number of steps
        (`sampling.brownian`); by default the noise of each step is drawn independently.

    Levels that are repeated are visited once, and fewer than two leave x as it is (SplitSigmas at
    an end). Where levels rise (FlipSigmas) the sampler is run backwards, from data to noise. The
    arguments of the function are

    x: the state at sigmas[0] (B, ...), noise included; the result is the state at sigmas[-1].
    callback: is called with {"x", "i", "sigma", "sigma_hat", "denoised"} at each network call: its
        input x and noise level sigma_hat, in the step from sigma = sigmas[i].
    disable: is ignored, because no progress bar is shown.
    noise_sampler: a function (sigma, sigma_next) that gives unit noise for the step between two
        levels, of x's shape; a Brownian one is right for samplers that draw once per step.

    ValueError for unknown names, and when called for sigmas that neither fall nor rise, or are
    outside of the path's range, for shapes that do not fit, and for noise on the way to noise.

        >>> f = sampler_function("dpmpp-2m")
        >>> f(lambda x, sigma: 0 * x, torch.ones(1, 2), torch.tensor([1.0, 0.5, 0.25]))
        tensor([[0.2500, 0.2500]])
    """
    made = sampler_named(sampler)
    if path not in (None, *PATHS):
        raise unknown("path", path, PATHS)
    if noise not in (None, "brownian"):
        raise unknown("noise", noise, ("brownian",))

    @torch.no_grad()
    def function(
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], Any] | None = None,
        disable: bool | None = None,
        noise_sampler: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        _check_state(x)
        own = model_sampling(model)
        kind = path or ("flow" if is_flow(own) else "ve")
        places, backwards = _distinct_places(sigmas, kind)
        if len(places) < 2:
            return x
        schedule, given = _schedule_and_grid(sigmas[places], kind)
        here = replace(made, grid=given)
        levels = here.levels(schedule, len(places) - 1)
        if backwards:
            _check_backwards(made, levels)
            levels, places = levels[::-1], places[::-1]
        route = made.stochasticity.route(schedule, levels)
        walked: list[Leg] = []
        draw = noise_sampler or _independent_noise(x, seed)
        if noise == "brownian" and made.stochastic and noise_sampler is None:
            source = fresh_seed() if seed is None else seed
            plan = here.plan(schedule, len(places) - 1)
            shape, like = x.shape[1:], {"dtype": x.dtype, "device": x.device}
            brownian = Brownian(plan, source, range(len(x)), shape, **like)
            draw = lambda sigma, sigma_next: brownian()  # noqa: E731
        scale = getattr(own, "noise_scale", 1.0)  # the n of some flow models has another variance

        def inject() -> Tensor:
            # Noise that is injected before a call, as EDM's churn does, belongs to the next step.
            leg = walked[-1] if walked else None
            step = leg.number + (leg.over == levels[leg.number + 1]) if leg else 0
            ends = (sigmas.new_tensor(level.sigma) for level in levels[step : step + 2])
            return scale * draw(*ends).to(x)

        def denoise(z: Tensor, level: Level) -> Tensor:
            dtype = torch.promote_types(x.dtype, torch.float32)
            sigma = torch.full((len(z),), level.sigma, dtype=dtype, device=z.device)
            denoised = _check_answer(model(z, sigma, **(extra_args or {})), z)
            if callback is not None:
                i = places[walked[-1].number]
                shown = {"x": z, "i": i, "sigma": sigmas[i], "denoised": denoised}
                callback(shown | {"sigma_hat": sigmas.new_tensor(level.sigma)})
            return denoised

        ends = levels[0], levels[-1]
        asks = walk(made.solver, x, route, ends, inject, visit=walked.append)
        return _run(asks, denoise)

    function.__name__ = function.__qualname__ = f"twosides {sampler}"
    return function


def model_sampling(model: Any) -> Any:
    """ComfyUI's object of a model's noise levels, inside however many wrappers; or None."""
    while model is not None:
        found = getattr(model, "model_sampling", None)
        if found is not None:
            return found
        model = getattr(model, "inner_model", None)
    return None


def is_flow(sampling: Any) -> bool:
    """Whether ComfyUI's object is that of a flow model: its class CONST, recognised by name."""
    return any(kind.__name__ == "CONST" for kind in type(sampling).__mro__)


# ---------------------------------------------------------------------------- the caller's levels


def _distinct_places(sigmas: Tensor, path: str) -> tuple[list[int], bool]:
    """The numbers of the levels from noise to data, without repetitions, and whether levels rise.

    If they do, the numbers are in the reverse order, from noise to data.
    """
    if sigmas.ndim != 1 or not sigmas.is_floating_point():
        raise ValueError(
            "sigmas is a 1-D tensor of floats, n + 1 levels for n >= 1 steps, but got "
            f"{sigmas.dtype} of shape {tuple(sigmas.shape)}"
        )
    _check_range(sigmas.detach().cpu().double(), path)
    values = sigmas.tolist()
    places = [i for i, value in enumerate(values) if i == 0 or value != values[i - 1]]
    backwards = len(places) > 1 and values[places[0]] < values[places[-1]]
    return (places[::-1] if backwards else places), backwards


def _check_backwards(sampler: Sampler, levels: list[Level]) -> None:
    if sampler.stochastic:
        raise ValueError(
            "rising sigmas lead from data to noise, which only samplers without noise can do"
        )
    if levels[-1].sigma == 0:
        raise ValueError(
            "rising sigmas begin at 0, where a model cannot estimate the noise; begin just above, "
            "at 0.0001, as FlipSigmas does"
        )


def _schedule_and_grid(sigmas: Tensor, path: str) -> tuple[Schedule, Given]:
    """The schedule of a path and the grid of the sigmas on it; ValueError for unordered sigmas."""
    values = sigmas.detach().cpu().double()
    _check_order(values)
    data = torch.log1p(-values) if path == "flow" else torch.zeros_like(values)
    given = Given(tuple((2 * (data - values.log())).tolist()))
    return FlowMatching() if path == "flow" else EDM(0.0, float(values[0]), 1.0), given


def _check_range(values: Tensor, path: str) -> None:
    inside = (values >= 0) & (values <= 1 if path == "flow" else values < math.inf)
    if not bool(inside.all()):
        bad = int((~inside).nonzero()[0])
        needed = {"ve": "finite and >= 0", "flow": "in [0, 1]"}[path]
        other = ", or state the model's own path" if values[bad] > 1 else ""
        raise ValueError(
            f"sigmas[{bad}] is {float(values[bad]):.6g}, but on path {path!r} noise levels are "
            f"{needed}; correct the scheduler that made it{other}"
        )


def _check_order(values: Tensor) -> None:
    falls = values[1:] < values[:-1]
    if not bool(falls.all()):
        bad = int((~falls).nonzero()[0])
        raise ValueError(
            f"sigmas must fall from noise to data, or rise from data to noise, but "
            f"{float(values[bad]):.6g} is followed by {float(values[bad + 1]):.6g}"
        )


# ---------------------------------------------------------------------------- running


def _independent_noise(x: Tensor, seed: int | None) -> Callable[[Tensor, Tensor], Tensor]:
    """A noise sampler whose noise does not depend on the step."""
    if seed is None:
        return lambda sigma, sigma_next: torch.randn_like(x)
    own, event = PerSample(seed, range(len(x))), x.shape[1:]
    own.normal(event, x.dtype)  # `sample` uses the first draw for the initial noise
    return lambda sigma, sigma_next: own.normal(event, x.dtype, x.device)


def _run(asks: Asks, denoise: Callable[[Tensor, Level], Tensor]) -> Tensor:
    """The result of a sampler's generator, with an estimate sent for each state that it yields."""
    estimate: Any = None
    while True:
        try:
            z, level = asks.send(estimate)
        except StopIteration as stop:
            return stop.value
        x = denoise(z, level)
        estimate = Estimate(x, (z - level.alpha * x) / level.sigma)


def _check_state(x: Tensor) -> None:
    if x.ndim < 1 or not x.is_floating_point():
        raise ValueError(
            f"x is the noisy state, floats of shape (B, ...), got {x.dtype} of shape "
            f"{tuple(x.shape)}"
        )


def _check_answer(denoised: Tensor, z: Tensor) -> Tensor:
    if denoised.shape != z.shape:
        raise ValueError(
            f"the model answered {tuple(denoised.shape)} to x of shape {tuple(z.shape)}; it must "
            "return the denoised data in the shape of x"
        )
    return denoised.to(z)
