"""Schedules, clocks and outputs as version 0.1 wrote them to config.json: they are read for ever."""

import json

import pytest

from twosides.clocks import CNoise, Index, LogSNR, Time
from twosides.outputs import OUTPUTS, F, Output, kappa, output_named
from twosides.schedules import (
    EDM,
    Betas,
    Cosine,
    EDMInput,
    FlowMatching,
    Geometric,
    ScaledLinear,
    VPLinear,
)
from twosides.storage import parts

PARTS = {
    '{"type": "FlowMatching"}': FlowMatching(),
    '{"type": "Cosine", "logsnr_min": "-inf", "logsnr_max": "inf", "offset": 0.008}': Cosine(
        offset=0.008
    ),
    '{"type": "Cosine", "logsnr_min": -15.0, "logsnr_max": 15.0, "offset": 0.0}': Cosine(-15, 15),
    '{"type": "VPLinear", "beta_min": 0.1, "beta_max": 20.0}': VPLinear(),
    '{"type": "EDM", "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}': EDM(),
    '{"type": "Geometric", "sigma_min": 0.01, "sigma_max": 50.0}': Geometric(),
    '{"type": "ScaledLinear", "beta_start": 0.00085, "beta_end": 0.012, "steps": 1000, '
    '"power": 2.0, "zero_terminal_snr": true}': ScaledLinear(zero_terminal_snr=True),
    '{"type": "Betas", "betas": [0.1, 0.2, 0.3], "zero_terminal_snr": false}': Betas(
        (0.1, 0.2, 0.3)
    ),
    '{"type": "Shifted", "base": {"type": "FlowMatching"}, "factor": 3.0}': FlowMatching().shifted(
        3.0
    ),
    '{"type": "Rescaled", "base": {"type": "FlowMatching"}, "to": "vp"}': (
        FlowMatching().with_scaling("vp")
    ),
    '{"type": "Rescaled", "base": {"type": "FlowMatching"}, "to": {"type": "EDMInput", '
    '"sigma_data": 0.5, "gain": 1.0}}': FlowMatching().with_scaling(EDMInput()),
    '{"type": "Time", "scale": 1000.0, "reversed": true, "clamp": false}': Time(1000.0, True),
    '{"type": "Index", "count": 500, "nearest": true, "clamp": true}': Index(500, True, True),
    '{"type": "CNoise"}': CNoise(),
    '{"type": "LogSNR"}': LogSNR(),
}


@pytest.mark.parametrize("text", PARTS)
def test_schedules_and_clocks_are_read_and_written_as_before(text):
    assert parts.restore(json.loads(text)) == PARTS[text]
    assert parts.describe(PARTS[text]) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "output"),
    [
        *((json.dumps(name), OUTPUTS[name]) for name in ("x", "eps", "v", "u", "score")),
        ('"-u"', -OUTPUTS["u"]),
        ('"-v"', -OUTPUTS["v"]),
        ('"F(0.5)"', F(0.5)),
        ('"kappa(2.0)"', kappa(2.0)),
        ('"velocity"', output_named("velocity", VPLinear())),
        ('{"name": "mine", "a": 0.5, "b": 2.0}', Output("mine", 0.5, 2.0)),
    ],
)
def test_outputs_are_read_and_written_as_before(text, output):
    read = output_named(parts.restore_output(json.loads(text)), VPLinear())
    assert read == output and parts.describe_output(output, VPLinear()) == json.loads(text)
