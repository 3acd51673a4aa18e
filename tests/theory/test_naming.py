"""What people type that is not quite a name here leads to the right one."""

import pytest

import twosides as ts
from twosides.metrics.measures import METRICS
from twosides.naming import unknown


@pytest.mark.parametrize(
    ("typed", "meant"),
    {
        "dimm": "ddim",
        "dpm++2m": "dpmpp-2m",
        "DPM++ 2M Karras": "dpmpp-2m",
        "dpmpp_2m_sde": "dpmpp-2m-sde",
        "Euler a": "euler-a",
        "euler_ancestral": "euler-ancestral",
        "DDIM": "ddim",
        "DDIMScheduler": "ddim",
        "DPMSolverMultistepScheduler": "dpmpp-2m",
        "UniPCMultistepScheduler": "unipc",
        "FlowMatchEulerDiscreteScheduler": "flow-euler",
        "EulerAncestralDiscreteScheduler": "euler-ancestral",
        "HeunDiscreteScheduler": "heun",
    }.items(),
)
def test_a_sampler_of_other_software(typed, meant):
    assert f"did you mean {meant!r}?" in str(unknown("sampler", typed, ts.samplers))


def test_frechet_is_what_fid_means():
    assert "did you mean 'frechet'?" in str(unknown("metric", "fid", METRICS))


def test_nothing_near_is_no_guess():
    assert "did you mean" not in str(unknown("sampler", "qqqqqq", ts.samplers))
