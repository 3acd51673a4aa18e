"""Schedules of discrete models: tables of betas."""

from __future__ import annotations

import abc
import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from twosides.schedules.schedule import Schedule


class Tabulated(Schedule):
    """A discrete model's N levels as a continuous schedule: index k is time k / (N - 1).

    logsnr is interpolated linearly in the index, so `time` recovers fractional indices exactly.
    Where one end of an interval is infinite (zero terminal SNR), the flow time tau is interpolated
    instead: alpha then goes to zero linearly.
    """

    scaling = "vp"
    zero_terminal_snr: bool

    @abc.abstractmethod
    def _betas(self) -> Tensor: ...

    @functools.cached_property
    def table(self) -> Tensor:
        """logsnr of the N levels, strictly decreasing, float64 (N,)."""
        return logsnr_of_betas(self._betas(), zero_terminal_snr=self.zero_terminal_snr)

    @property
    def count(self) -> int:
        """N."""
        return len(self.table)

    def _segment(self, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        table = self.table.to(device)
        return table[index], table[index + 1]

    def _logsnr(self, t: Tensor) -> Tensor:
        position = t * (self.count - 1)
        index = position.floor().clamp(0, self.count - 2).long()
        high, low = self._segment(index, t.device)
        part = position - index
        tau_high, tau_low = torch.sigmoid(-0.5 * high), torch.sigmoid(-0.5 * low)
        tau = tau_high + part * (tau_low - tau_high)
        data = (1 - tau_low) + (1 - part) * (tau_low - tau_high)
        curved = 2 * (data.log() - tau.log())
        straight = high + part * (low - high)
        return torch.where(torch.isfinite(high) & torch.isfinite(low), straight, curved)

    def _time(self, logsnr: Tensor) -> Tensor:
        ascending = self.table.flip(0).to(logsnr.device)
        index = self.count - torch.searchsorted(ascending, logsnr.contiguous(), right=False) - 1
        index = index.clamp(0, self.count - 2)
        high, low = self._segment(index, logsnr.device)
        straight = (high - logsnr) / (high - low)
        tau, tau_high, tau_low = (torch.sigmoid(-0.5 * value) for value in (logsnr, high, low))
        curved = (tau - tau_high) / (tau_low - tau_high)
        part = torch.where(torch.isfinite(high) & torch.isfinite(low), straight, curved)
        return (index + part) / (self.count - 1)

    def _rate(self, t: Tensor) -> Tensor:
        index = (t * (self.count - 1)).floor().clamp(0, self.count - 2).long()
        high, low = self._segment(index, t.device)
        logsnr = self._logsnr(t)
        tau = torch.sigmoid(-0.5 * logsnr)
        straight = 0.5 * (high - low) * tau * torch.sigmoid(0.5 * logsnr)
        curved = torch.sigmoid(-0.5 * low) - torch.sigmoid(-0.5 * high)
        finite = torch.isfinite(high) & torch.isfinite(low)
        return torch.where(finite, straight, curved) * (self.count - 1)


def logsnr_of_betas(betas: Tensor, *, zero_terminal_snr: bool = False) -> Tensor:
    """logsnr of `alpha_bar_k = prod(1 - beta)`, by sums of log1p and expm1; float64 (N,).

    `zero_terminal_snr` applies the rescaling of Lin et al. 2023 (Algorithm 1): sqrt(alpha_bar) is
    moved and stretched affinely so that the last is 0 and the first stays.
    """
    if betas.ndim != 1 or len(betas) < 2 or not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError("betas must be at least two numbers in (0, 1), one per step")
    log_alpha_bar = torch.log1p(-betas.to(torch.float64)).cumsum(0)
    if not zero_terminal_snr:
        return log_alpha_bar - (-torch.expm1(log_alpha_bar)).log()
    root = (0.5 * log_alpha_bar).exp()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return 2 * root.log() - torch.log1p(-(root**2))


@dataclass(frozen=True)
class Betas(Tabulated):
    """Any discrete model, from its betas (one per step)."""

    betas: tuple[float, ...]
    zero_terminal_snr: bool = False

    @classmethod
    def squared_cosine(cls, steps: int = 1000) -> Betas:
        """iDDPM's, diffusers' "squaredcos_cap_v2" [Nichol & Dhariwal 2021, eq. 17].

        alpha_bar = cos^2(pi/2 (t + 0.008) / 1.008), with betas of at most 0.999.
        """
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        kept = torch.cos(0.5 * math.pi * (t + 0.008) / 1.008) ** 2
        return cls(tuple((1 - kept[1:] / kept[:-1]).clamp(max=0.999).tolist()))

    def __post_init__(self) -> None:
        """ValueError for betas that are not probabilities; lists become tuples."""
        object.__setattr__(self, "betas", tuple(float(beta) for beta in self.betas))
        logsnr_of_betas(self._betas())

    def _betas(self) -> Tensor:
        return torch.tensor(self.betas, dtype=torch.float64)

    def __repr__(self) -> str:
        """Without the whole table."""
        ends = f"{self.betas[0]:.4g} ... {self.betas[-1]:.4g}"
        return f"Betas({len(self.betas)} steps, {ends}, zero_terminal_snr={self.zero_terminal_snr})"


@dataclass(frozen=True)
class ScaledLinear(Tabulated):
    """Stable Diffusion's 1000 steps: sqrt(beta) linear in the index (`power=2`).

    `power=1` with beta_start=1e-4, beta_end=0.02 is DDPM's table [Ho+ 2020]. SD's covers
    logsnr in [-5.364, 7.069]; `zero_terminal_snr` as in Lin et al. 2023.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps: int = 1000
    power: float = 2.0
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        """ValueError for betas that do not grow inside (0, 1)."""
        object.__setattr__(self, "steps", int(self.steps))
        if not (0 < self.beta_start < self.beta_end < 1 and self.steps >= 2 and self.power > 0):
            raise ValueError(
                f"ScaledLinear needs 0 < beta_start < beta_end < 1, steps >= 2, power > 0: {self}"
            )

    def _betas(self) -> Tensor:
        ends = self.beta_start ** (1 / self.power), self.beta_end ** (1 / self.power)
        return torch.linspace(*ends, self.steps, dtype=torch.float64) ** self.power
