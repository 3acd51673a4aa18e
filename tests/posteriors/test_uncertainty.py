"""A denoiser's posterior covariance against its error."""

import pytest
import torch

import twosides as ts
from twosides.posteriors.uncertainty import draw, text, uncertainty

RING = ts.oracle.GaussianMixture.ring(8, std=0.2)


def test_of_an_exact_denoiser_they_are_the_same():
    rows = uncertainty(RING, RING.sample(4000, seed=3))
    assert [row.logsnr for row in rows] == list(range(-8, 11, 2))
    for row in rows:
        assert abs(row.error - row.stated) < 4 * row.apart
        assert row.apart < 0.05 * row.error
    assert rows[0].error > 0.4 and rows[-1].error < 1e-4, "the variance of the data, and sigma^2"


def test_of_a_gaussian_the_trace_is_known():
    """s^2 sigma^2 / (alpha^2 s^2 + sigma^2) per number, whatever z is."""
    gaussian = ts.oracle.GaussianMixture.gaussian([0.3, 0.3], 0.25 * torch.eye(2).numpy())
    data = gaussian.sample(16, seed=0)
    for row in uncertainty(gaussian, data, logsnrs=[-3.0, 0.0, 4.0], probes=1):
        level = gaussian.schedule.level(row.logsnr).floats()
        alpha, sigma = level.alpha, level.sigma
        assert row.stated == pytest.approx(0.25 * sigma**2 / (0.25 * alpha**2 + sigma**2), 1e-9)


def test_a_timid_and_a_bold_estimate_are_seen():
    """A part of the exact estimate, or more than it: its error rises, what it states follows it."""

    def scaled(factor):
        def denoiser(z, level):
            x = factor * RING(z, level).x
            return ts.outputs.Estimate(x, (z - level.alpha * x) / level.sigma)

        denoiser.schedule = ts.FlowMatching()
        return denoiser

    data = RING.sample(4000, seed=3)
    for factor in (0.8, 1.2):
        (row,) = uncertainty(scaled(factor), data, logsnrs=[2.0])
        (exact,) = uncertainty(RING, data, logsnrs=[2.0])
        assert row.stated == pytest.approx(factor * exact.stated, 1e-9)
        assert row.error > exact.error
    assert (
        row := uncertainty(scaled(0.8), data, logsnrs=[2.0])[0]
    ).error > row.stated + 9 * row.apart


def test_data_in_their_own_units_and_conditioning():
    def network(z, t, shift):
        return 0.5 * z + shift[:, None]

    denoiser = ts.Denoiser(network, data_mean=3.0, data_std=2.0)
    data = 3 + 2 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    told = {"shift": torch.zeros(64)}
    rows = uncertainty(denoiser, data, logsnrs=[0.0], **told)
    moved = ts.Denoiser(network)
    assert rows == uncertainty(moved, (data - 3) / 2, logsnrs=[0.0], **told)


def test_a_sample_does_not_depend_on_the_others():
    data = RING.sample(6, seed=1)
    two, three = (uncertainty(RING, data[:n], logsnrs=[1.0])[0] for n in (2, 3))
    third = 3 * three.error - 2 * two.error  # the error of the third row, whatever came before it
    others = uncertainty(RING, torch.cat([0 * data[:2], data[2:3]]), logsnrs=[1.0])[0]
    alone = uncertainty(RING, 0 * data[:2], logsnrs=[1.0])[0]
    assert 3 * others.error - 2 * alone.error == pytest.approx(third, rel=1e-9)


def test_levels_without_an_answer_are_left_out_and_others_refused():
    table = ts.Denoiser(lambda z, t: 0.1 * z, "eps", ts.ScaledLinear(), "index")
    data = RING.sample(8, seed=0)
    assert [row.logsnr for row in uncertainty(table, data, logsnrs=[-20.0, 0.0])] == [0.0]
    coupled = ts.Denoiser(lambda z, t: z)
    coupled.coupling = "reflow"

    @torch.no_grad()
    def silent(z, level):
        return RING(z, level)

    silent.schedule = ts.FlowMatching()
    for call, said in (
        (lambda: uncertainty(coupled, data), "needs the score"),
        (lambda: uncertainty(silent, data), "no derivative in z"),
        (lambda: uncertainty(RING, data, logsnrs=[float("inf")]), "finite log-SNRs"),
        (lambda: uncertainty(RING, data, probes=0), "at least 1"),
        (lambda: uncertainty(RING, data[:1]), "2 rows are few; got 1"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


def test_table_and_picture():
    rows = uncertainty(RING, RING.sample(32, seed=0), logsnrs=[0.0, 2.0])
    assert text(rows).splitlines()[0].split("  ")[0] == "logsnr"
    (axes,) = draw(rows).axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[0.0, 2.0]] * 2
