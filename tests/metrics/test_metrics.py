"""Distances against exact values, torchmetrics, and what their authors prove of them."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from twosides import metrics
from twosides.metrics import METRICS, evaluate, frechet, frechet_of_gaussians, neighbours
from twosides.oracle import GaussianMixture


def draw(n, d, seed, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def covariance(d, seed, rank=None):
    root = draw(d, rank or d, seed)
    return root @ root.mT / d


def with_moments(x, mean, covariance):
    """The rows, moved so that their mean and unbiased covariance are exactly these."""
    centred = x - x.mean(0)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(centred.mT @ centred / (len(x) - 1)), centred.mT, upper=False
    )
    values, axes = torch.linalg.eigh(covariance.double())
    return (axes * values.clamp(min=0).sqrt() @ white).mT + mean


# ---------------------------------------------------------------------------- Frechet distance


def test_frechet_of_gaussians_that_commute_is_in_closed_form():
    axes = torch.linalg.qr(draw(5, 5, 0))[0]
    a, b = draw(5, 1, 1)[:, 0] ** 2, draw(5, 1, 2)[:, 0] ** 2
    m, k = draw(2, 5, 3)
    exact = ((m - k) ** 2).sum() + ((a.sqrt() - b.sqrt()) ** 2).sum()
    got = frechet_of_gaussians(m, axes * a @ axes.mT, k, axes * b @ axes.mT)
    assert got == pytest.approx(float(exact), rel=1e-12)


def test_frechet_by_gelbrichs_bound():
    """The trace term is the largest E x.y over couplings: attained by the optimal linear map."""
    c, e = covariance(4, 0), covariance(4, 1)
    values, axes = torch.linalg.eigh(c)
    root, inverse = axes * values.sqrt() @ axes.mT, axes / values.sqrt() @ axes.mT
    inner, turned = torch.linalg.eigh(root @ e @ root)
    optimal = inverse @ (turned * inner.sqrt() @ turned.mT) @ inverse
    torch.testing.assert_close(optimal @ c @ optimal, e, rtol=1e-10, atol=1e-12)
    cost = torch.trace(c + e - 2 * optimal @ c)
    zero = torch.zeros(4)
    assert frechet_of_gaussians(zero, c, zero, e) == pytest.approx(float(cost), rel=1e-10)


@pytest.mark.parametrize("rank", [6, 2])
def test_frechet_of_sets_is_that_of_their_moments(rank):
    """Also where covariances are singular, or the rows fewer than the features."""
    means, covs = draw(2, 6, 0), (covariance(6, 1, rank), covariance(6, 2))
    sets = [with_moments(draw(40, 6, 3 + i), means[i], covs[i]) for i in range(2)]
    exact = frechet_of_gaussians(means[0], covs[0], means[1], covs[1])
    assert frechet(*sets) == pytest.approx(exact, rel=1e-7)
    few, many = draw(5, 30, 7), draw(50, 30, 8)
    moments = [part for side in (few, many) for part in (side.mean(0), torch.cov(side.mT))]
    assert frechet(few, many) == pytest.approx(frechet_of_gaussians(*moments), rel=1e-7)


def test_frechet_converges_to_that_of_the_distributions_from_above():
    mixtures = [GaussianMixture.gaussian(draw(1, 8, i)[0], covariance(8, 9 + i)) for i in range(2)]
    exact = frechet_of_gaussians(*(p for m in mixtures for p in (m.mean, m.covariance)))
    gaps = {}
    for count in (200, 20_000):
        found = [
            frechet(*(m.sample(count, seed=10 * s + i) for i, m in enumerate(mixtures)))
            for s in range(4)
        ]
        gaps[count] = np.mean(found) / exact - 1
    assert abs(gaps[20_000]) < 0.01
    same = [frechet(draw(n, 8, 0), draw(n, 8, 1)) for n in (100, 1000)]
    assert 6 < same[0] / same[1] < 16  # a bias of 1/N


def test_frechet_keeps_its_digits_where_covariances_lose_them():
    scales = torch.logspace(0, -9, 6, dtype=torch.float64)
    x, y = draw(50, 6, 0) * scales, draw(50, 6, 0) * scales * 2
    exact = (x.mean(0) ** 2).sum() + torch.cov(x.mT).trace()
    assert frechet(x, y) == pytest.approx(float(exact), rel=1e-12)


# ---------------------------------------------------------------------------- torchmetrics


class Local(nn.Module):
    """Sixteen features of an image, as torchmetrics wants them."""

    num_features = 16

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, 16).requires_grad_(False)

    def forward(self, x):
        return self.layer(x.flatten(1).float()).tanh().double()


@pytest.fixture
def images():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Local(), torch.rand(60, 3, 8, 8), torch.rand(60, 3, 8, 8) ** 1.5


def told(metric, network, x, y):
    with torch.random.fork_rng(devices=[]):
        metric.update(y, real=True)
        metric.update(x, real=False)
        value = metric.compute()
    return float(value[0] if isinstance(value, tuple) else value)


def test_fid_is_torchmetrics(images):
    from torchmetrics.image.fid import FrechetInceptionDistance

    network, x, y = images
    fid = FrechetInceptionDistance(network, normalize=True)
    ours = evaluate(x, y, extractor=network, metrics=["frechet"])["frechet"].value
    assert ours == pytest.approx(told(fid, network, x, y), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*save all extracted features")
def test_kid_is_torchmetrics(images):
    from torchmetrics.image.kid import KernelInceptionDistance

    network, x, y = images
    kid = KernelInceptionDistance(network, subsets=1, subset_size=60, normalize=True)
    ours = evaluate(x, y, extractor=network, metrics=["kid"])["kid"].value
    assert ours == pytest.approx(told(kid, network, x, y), rel=1e-4)


def test_torchvision_is_never_imported():
    code = (
        "import sys, torch, twosides.metrics as m\n"
        "x = torch.rand(80, 2)\n"
        "m.evaluate(x[:40], x[40:])\n"
        "assert 'torchvision' not in sys.modules and 'torchmetrics' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------- kernels


def direct(x, y, kernel):
    """The unbiased estimate, pair by pair."""

    def mean(a, b, same):
        pairs = [
            kernel(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if i != j or not same
        ]
        return sum(pairs) / len(pairs)

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def test_kernel_sums_are_those_over_pairs(monkeypatch):
    x, y = draw(11, 3, 0), draw(8, 3, 1) + 1
    width = np.median(torch.pdist(y).numpy())
    want = {
        metrics.kernel_distance: direct(x, y, lambda p, q: (p @ q / 3 + 1) ** 3),
        metrics.mmd: direct(x, y, lambda p, q: (-((p - q) ** 2).sum() / (2 * width**2)).exp()),
    }
    for block in (4096, 3):
        monkeypatch.setattr("twosides.metrics.distances.BLOCK", block)
        for function, exact in want.items():
            assert function(x, y) == pytest.approx(float(exact), rel=1e-12)


def test_unbiased_distances_of_equal_distributions_are_zero_within_their_errors():
    found = [
        evaluate(draw(60, 3, 2 * i), draw(60, 3, 2 * i + 1), metrics=["kid", "mmd"])
        for i in range(30)
    ]
    for name in ("kid", "mmd"):
        values = np.array([one[name].value for one in found])
        assert (values < 0).any() and (values > 0).any()
        assert abs(values.mean()) < 3.5 * values.std(ddof=1) / math.sqrt(len(values))


def test_polynomial_kernel_sees_what_frechet_does_not():
    """Equal means and covariances, other third moments."""
    g = torch.Generator().manual_seed(0)
    skew = torch.empty(1000, 1, dtype=torch.float64).exponential_(generator=g)
    x, y = (with_moments(side, torch.zeros(1), torch.eye(1)) for side in (skew, draw(1000, 1, 0)))
    assert frechet(x, y) < 1e-12
    found = evaluate(x, y, metrics=["kid", "mmd", "sliced-w2"])
    for name in ("kid", "mmd"):
        assert found[name].value > 3 * found[name].error
    assert found["sliced-w2"].value > 0.2


# ---------------------------------------------------------------------------- Wasserstein


def test_w2_of_one_dimension_is_that_of_the_optimal_assignment():
    from itertools import permutations

    x, y = draw(6, 1, 0), draw(6, 1, 1)
    best = min(((x - y[list(order)]) ** 2).mean() for order in permutations(range(6)))
    assert metrics.sliced_wasserstein(x, y) == pytest.approx(math.sqrt(best), rel=1e-12)


def test_w2_of_unequal_counts_is_that_of_repeated_rows():
    x, y = draw(6, 3, 0), draw(4, 3, 1)
    repeated = metrics.sliced_wasserstein(x.repeat(2, 1), y.repeat(3, 1))
    assert metrics.sliced_wasserstein(x, y) == pytest.approx(repeated, rel=1e-12)


def test_sliced_w2_of_a_shift_and_of_a_scale():
    """Of a shift by s in D dimensions |s| / sqrt(D), of isotropic scaling the spread's root."""
    x = draw(500, 4, 0)
    shift = torch.tensor([3.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert metrics.sliced_wasserstein(x + shift, x) == pytest.approx(1.5, rel=0.15)
    two = torch.linalg.qr(draw(2, 2, 1))[0]  # in the plane an average over angles
    assert metrics.sliced_wasserstein(two[:1] * 2, two[:1]) == pytest.approx(0.5**0.5, rel=0.1)


# ---------------------------------------------------------------------------- neighbours


def test_neighbours_of_constructed_sets():
    line = torch.arange(20.0, dtype=torch.float64)[:, None]
    half = line[:10]
    found = neighbours(half + 0.25, line, k=1)
    assert found.precision == 1 and found.coverage == 11 / 20 and found.recall == 11 / 20
    assert found.density == 2.0
    assert neighbours(line + 1000, line, k=3) == (0, 0, 0, 0)
    # Samples all in one place are faithful and not diverse: their balls have no width.
    stuck = neighbours(torch.full((20, 1), 5.5, dtype=torch.float64), line, k=1)
    assert stuck.precision == 1 and stuck.recall == 0 and stuck.coverage == 2 / 20


def test_neighbours_are_those_of_a_loop(monkeypatch):
    x, y, k = draw(30, 2, 0), draw(25, 2, 1) + 0.5, 3

    def radius(points, i):
        return sorted(float((points[i] - q).norm()) for q in points)[k]

    def inside(point, points):
        return [float((point - q).norm()) <= radius(points, j) for j, q in enumerate(points)]

    real = [inside(p, y) for p in x]
    want = (
        np.mean([any(row) for row in real]),
        np.mean([any(inside(q, x)) for q in y]),
        np.sum(real) / (k * len(x)),
        np.mean(np.any(real, axis=0)),
    )
    for block in (1024, 7):
        monkeypatch.setattr("twosides.metrics.manifolds.BLOCK", block)
        assert neighbours(x, y, k) == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("shape, values", [((200, 64), 2), ((200, 2), 20), ((60, 2048), 3)])
def test_equal_distances_are_equal(shape, values):
    """Features in steps: distances from whole numbers, against those of matrix products."""
    x, y = (np.random.default_rng(seed).integers(0, values, shape) for seed in (0, 1))

    def squares(a, b):
        return ((a[:, None] - b[None]) ** 2).sum(-1)

    def radii(a):
        return np.sort(squares(a, a), 1)[:, 5]  # the first is the row itself

    inside = squares(x, y) <= radii(y)
    want = (
        inside.any(1).mean(),
        (squares(x, y) <= radii(x)[:, None]).any(0).mean(),
        inside.sum(1).mean() / 5,
        inside.any(0).mean(),
    )
    found = neighbours(*(torch.tensor(rows).double() / 7 for rows in (x, y)), 5)
    assert found == pytest.approx(want, abs=1e-12)


def test_neighbours_of_equal_distributions_have_their_exact_means():
    """Density 1, and coverage 1 - (M-1)...(M-k) / ((M+N-1)...(M+N-k)), in any dimension."""
    n, m, k, times = 40, 60, 3, 300
    found = np.array(
        [neighbours(draw(n, 2, 2 * i), draw(m, 2, 2 * i + 1), k) for i in range(times)]
    )
    exact = {2: 1.0, 3: 1 - math.prod((m - i) / (m + n - i) for i in range(1, k + 1))}
    for column, mean in exact.items():
        error = found[:, column].std(ddof=1) / math.sqrt(times)
        assert abs(found[:, column].mean() - mean) < 3.5 * error < 0.03


# ---------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", METRICS)
def test_order_of_rows_and_rigid_motions_change_nothing(name):
    metric = METRICS[name]

    def value(x, y):
        found = metric.function(x, y)
        return getattr(found, metric.field) if metric.field else found

    x, y = draw(50, 3, 0), draw(40, 3, 1) + 0.3
    random = np.random.default_rng(0)
    mixed = value(x[random.permutation(50)], y[random.permutation(40)])
    assert mixed == pytest.approx(value(x, y), rel=1e-10)
    if name not in ("kid", "sliced-w2"):  # which has an origin, and finitely many directions
        turn, shift = torch.linalg.qr(draw(3, 3, 2))[0], torch.ones(3)
        assert value(x @ turn + shift, y @ turn + shift) == pytest.approx(value(x, y), rel=1e-9)


def test_a_set_and_itself():
    x = draw(60, 3, 0)
    found = evaluate(x, x)
    assert found["frechet"].value == pytest.approx(0, abs=1e-12)
    assert found["sliced-w2"].value == 0
    assert all(found[name].value == 1 for name in ("precision", "recall", "coverage"))


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_standard_errors_are_the_spread_of_repetitions(shift, monkeypatch):
    """Within a third of it, or too large by what the docstring grants."""
    monkeypatch.setattr("twosides.metrics.distances.DIRECTIONS", 32)
    values, errors = ({name: [] for name in METRICS} for _ in range(2))
    for i in range(20):
        x, y = draw(100, 3, 2 * i), draw(100, 3, 2 * i + 1)
        for name, one in evaluate(x + shift, y).items():
            values[name].append(one.value)
            errors[name].append(one.error)
    for name in METRICS:
        ratio = np.sqrt(np.mean(np.square(errors[name]))) / np.std(values[name], ddof=1)
        near = METRICS[name].field != "" or shift == 0
        assert 0.7 < ratio < (3.0 if near else 1.5), name


def test_errors_are_the_seeds_and_counts_are_told():
    x, y = draw(45, 2, 0), draw(60, 2, 1)
    first, again, other = (evaluate(x, y, metrics=["mmd"], seed=s)["mmd"] for s in (0, 0, 1))
    assert first == again and first.value == other.value and first.error != other.error
    assert (first.samples, first.reference) == (45, 60)


def test_mode_masses():
    ring = GaussianMixture.ring(8, std=0.3)
    x = ring.sample(4000, seed=0)
    masses = metrics.mode_masses(x, ring)
    spread = ring.responsibilities(x, _clean()).std(0) / math.sqrt(len(x))
    assert float(masses.sum()) == pytest.approx(1, abs=1e-12)
    assert bool(((masses - ring.weights).abs() < 3.5 * spread).all())
    half = metrics.mode_masses(x[x[:, 1] > 0], ring)
    assert float(half[5:].sum()) < 0.05


def _clean():
    from twosides.schedules import Level

    return Level(math.inf, 1.0, 0.0)


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "message"),
    [
        (draw(39, 2, 0), draw(80, 2, 1), {}, ValueError, "at least 40"),
        (draw(50, 2, 0), draw(50, 3, 1), {}, ValueError, "must be alike"),
        (draw(50, 2, 0) / 0, draw(50, 2, 1), {}, ValueError, "50 of 50 samples have NaN"),
        (draw(50, 2, 0), draw(50, 2, 1) * math.nan, {}, ValueError, "reference have NaN"),
        (draw(50, 2, 0), draw(50, 2, 1), {"metrics": ["fid"]}, ValueError, "unknown metric 'fid'"),
        (draw(50, 2, 0), draw(50, 2, 1), {"metrics": []}, ValueError, "list of names"),
        (draw(50, 2, 0), torch.ones(50, 2), {"metrics": ["mmd"]}, ValueError, "no bandwidth"),
        (draw(50, 2, 0), draw(50, 2, 1), {"extractor": "pixel"}, ValueError, "mean 'pixels'"),
        (draw(50, 2, 0), draw(50, 2, 1), {"extractor": "m:f"}, ValueError, "trust_code=True"),
        (draw(50, 2, 0), draw(50, 2, 1), {"extractor": "reader"}, ValueError, "grey images"),
        (draw(50, 2, 0), draw(50, 2, 1), {"extractor": torch.sum}, ValueError, r"got \(\)"),
    ],
)
def test_refusals(x, y, options, error, message, monkeypatch):
    monkeypatch.setattr("twosides.data.reader.train_reader", lambda: None)
    with pytest.raises(error, match=message):
        evaluate(x, y, **options)


def test_integers_are_no_samples():
    with pytest.raises(TypeError, match=r"scale images to \[-1, 1\]"):
        metrics.extract(torch.zeros(50, 1, 4, 4, dtype=torch.uint8), lambda x: x.flatten(1))
    with pytest.raises(ValueError, match="few"):
        frechet(draw(1, 2, 0), draw(5, 2, 0))
    with pytest.raises(ValueError, match="positive semi-definite"):
        frechet_of_gaussians(torch.zeros(2), -torch.eye(2), torch.zeros(2), torch.eye(2))
    with pytest.raises(ValueError, match="k >= 1"):
        neighbours(draw(9, 2, 0), draw(9, 2, 1), 0)
