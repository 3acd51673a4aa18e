"""Where a sampler steps: grids, the levels of a run from noise to data.

`grid` says what a grid is, `even` and `ramps` have those of equal steps in a variable, `tables`
those of tables, `indices` those of discrete models, `comfyui` those of ComfyUI, `wrapped` those of
other grids. A new grid is a class in one of them and a row of the table here.
"""

from twosides.sampling.grids.comfyui import ComfyUI
from twosides.sampling.grids.even import Arctan, Uniform, UniformLogSNR, UniformTime
from twosides.sampling.grids.grid import Even, Given, Grid
from twosides.sampling.grids.indices import Indices
from twosides.sampling.grids.ramps import Beta, Exponential, Karras
from twosides.sampling.grids.tables import AYS, Entropic, Quantiles
from twosides.sampling.grids.wrapped import (
    ShiftedGrid,
    ThenData,
    flux_shift,
    resolution_shift,
)

__all__ = [
    "AYS", "GRIDS", "Arctan", "Beta", "ComfyUI", "Entropic", "Even", "Exponential", "Given", "Grid",
    "Indices", "Karras", "Quantiles", "ShiftedGrid", "ThenData", "Uniform", "UniformLogSNR",
    "UniformTime", "flux_shift", "resolution_shift",
]  # fmt: skip

GRIDS: dict[str, Grid] = {
    "uniform-time": UniformTime(),
    "uniform-logsnr": UniformLogSNR(),
    "uniform": Uniform(),
    "arctan": Arctan(),
    "karras": Karras(),
    "exponential": Exponential(),
    "beta": Beta(),
    "ays-sd15": AYS("sd15"),
    "ays-sdxl": AYS("sdxl"),
    "ays-svd": AYS("svd"),
    "leading": Indices("leading"),
    "trailing": Indices("trailing"),
    "linspace": Indices("linspace"),
    "simple": ComfyUI("simple"),
    "normal": ComfyUI("normal"),
    "sgm_uniform": ComfyUI("sgm_uniform"),
    "ddim_uniform": ComfyUI("ddim_uniform"),
    "beta57": ComfyUI("beta57"),
    "kl_optimal": ComfyUI("kl_optimal"),
    "linear_quadratic": ComfyUI("linear_quadratic"),
    "bong_tangent": ComfyUI("bong_tangent"),
}
