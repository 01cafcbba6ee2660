"""latents/vbq.py: code points, quantiles, Algorithm 1 against a brute-force search, the true code length."""

import numpy as np
import pytest

from latcodec.backends.vbq import quantiser as vbq

SCALE = 2.0**-vbq.VALUE_BITS


@pytest.fixture(scope="module")
def normal() -> vbq.Quantiles:
    samples = np.random.default_rng(0).standard_normal(200_000)
    return vbq.Quantiles(vbq.fit_quantiles(samples, 64.0, symmetric=True)[None])


def all_points(depth: int) -> np.ndarray:
    return np.arange(1, 1 << depth, dtype=np.int32)


def test_points_are_pairs_and_places():
    points = all_points(6)
    n, i = vbq.pairs_of(points)
    assert (i % 2 == 1).all() and (i < 2**n).all() and n.max() == 6
    assert len(set(zip(n.tolist(), i.tolist(), strict=True))) == len(points)
    assert np.array_equal(vbq.points_of(n, i), points)
    assert np.array_equal(vbq.places_of(points) * 2.0**-vbq.PLACE_BITS, i * 2.0**-n)
    assert np.array_equal(vbq.points_at(vbq.places_of(points)), points)
    deepest = vbq.points_of(np.array([vbq.MAX_DEPTH]), np.array([2**vbq.MAX_DEPTH - 1]))
    assert vbq.pairs_of(deepest)[1][0] == 2**vbq.MAX_DEPTH - 1 and vbq.places_of(np.int32([1]))[0] == 2**31


def test_quantiles_rise_meet_their_source_and_reach_far(normal):
    points = all_points(9)
    order = np.argsort(vbq.places_of(points))
    assert (np.diff(normal.of(points)[order]) > 0).all()
    assert normal.of(np.int32([1]))[0] == 0
    assert normal.of(np.int32([2, 3])) * SCALE == pytest.approx([-0.6745, 0.6745], abs=0.02)
    assert normal.of(vbq.points_of(np.array([10]), np.array([1])))[0] * SCALE == pytest.approx(-3.097, abs=0.1)
    assert normal.values[0, -1] * SCALE >= 64 and normal.values[0, 0] == -normal.values[0, -1]


def test_places_invert_quantiles(normal):
    places = vbq.places_of(all_points(12))
    assert np.abs(normal.places(normal.at(places)) - places).max() < 2**18


@pytest.mark.parametrize("lmbda", [2.0**-8, 0.05, 0.69, 8.0, 2.0**7])
def test_algorithm_1_is_the_brute_force_minimum(normal, lmbda):
    rng = np.random.default_rng(1)
    mean, sigma = rng.standard_normal(400) * 1.2, np.exp(rng.uniform(-5, 0, 400))
    depth = 13
    found = vbq.algorithm_1(mean, sigma, lmbda, normal, max_depth=depth)
    candidates = all_points(depth)
    values, length = normal.of(candidates) * SCALE, vbq.pairs_of(candidates)[0]
    loss = (values - mean[:, None]) ** 2 + 2 * lmbda * sigma[:, None] ** 2 * length
    best = loss.min(1)
    rows = np.arange(len(mean))
    found_index = found - 1  # candidates are 1, 2, 3 ...
    assert loss[rows, found_index] == pytest.approx(best, rel=1e-12)


def test_algorithm_1_of_a_collapsed_posterior_is_the_median(normal):
    mean = np.random.default_rng(2).normal(0, 0.1, 1000)
    assert (vbq.algorithm_1(mean, np.ones(1000), 1.0, normal) == 1).all()


def test_algorithm_1_goes_as_deep_as_the_posterior_asks(normal):
    mean = np.full(5, 0.3123)
    depth = vbq.pairs_of(vbq.algorithm_1(mean, np.array([1, 0.1, 0.01, 1e-3, 1e-5]), 0.1, normal))[0]
    assert (np.diff(depth) >= 0).all() and depth[0] <= 2 and depth[-1] > 10


@pytest.mark.parametrize("m", [1, 5, 40])
def test_cheapest_is_the_brute_force_minimum(m):
    rng = np.random.default_rng(m)
    values = np.sort(rng.uniform(-4, 4, m)).astype(np.float32)
    bits = (1 + values**2 + rng.uniform(0, 1, m)).astype(np.float32)
    target, weight = rng.normal(0, 2, 500).astype(np.float32), np.exp(rng.uniform(-2, 6, 500)).astype(np.float32)
    index, least = vbq.cheapest(target, weight, values, bits, reach=m)
    loss = bits + weight[:, None] * (values - target[:, None]) ** 2
    assert least == pytest.approx(loss.min(1), rel=1e-5)
    assert loss[np.arange(500), index] == pytest.approx(loss.min(1), rel=1e-5)


def test_short_points_are_short_and_near(normal):
    values = np.round(np.arange(-40, 41) * 0.1 / SCALE).astype(np.int64)
    gaps = np.full(81, int(0.01 / SCALE))
    points = normal.short_points(values, gaps)
    assert np.abs(normal.of(points) - values).max() <= 2 * gaps[0]
    assert points[40] == 1 and vbq.pairs_of(points)[0][20:60].max() <= 10
    far = np.array([50 / SCALE], np.int64)
    assert np.abs(normal.of(normal.short_points(far, np.ones(1, np.int64))) - far).max() * SCALE < 0.2


def test_short_points_of_several_quantile_functions(normal):
    wide = vbq.Quantiles(np.concatenate([normal.values, normal.values * 3]))
    values, gaps = np.array([70000, 70000, -9000], np.int64), np.full(3, 500, np.int64)
    rows = np.array([0, 1, 1])
    assert np.abs(wide.of(wide.short_points(values, gaps, rows), rows) - values).max() <= 1000


def test_tail_outliers_are_within_reach(normal):
    far = np.array([-40.0, 13.0, 25.0])
    points = vbq.algorithm_1(far, np.full(3, 0.1), 0.1, normal)
    assert np.abs(normal.of(points) * SCALE - far).max() < 0.3
