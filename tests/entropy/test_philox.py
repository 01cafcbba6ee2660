"""Philox4x32-10 gives its published vectors, the Gaussian table is the frozen one, addresses do not depend on order."""

import hashlib

import numpy as np
import pytest

from latcodec.entropy import philox
from latcodec.entropy.philox import (
    SCALE,
    TABLE_SHA256,
    gaussian_rows,
    gaussian_table,
    philox4x32,
    random_words,
    uniform,
)

# Random123's kat_vectors: counter, key, result.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("counter, key, expected", VECTORS)
def test_published_vectors(counter, key, expected):
    assert philox4x32(np.array([counter], np.uint32), key)[0].tolist() == list(expected)


def test_words_are_the_counter_in_little_endian_halves():
    word = random_words(0x299F31D0_A4093822, 0x03707344, np.array([0x13198A2E_85A308D3]), np.array([0x243F6A88]))
    expected = np.array(VECTORS[2][2], "<u4").view("<u2")
    assert word[0].tolist() == expected.tolist()


def test_table_is_the_frozen_one():
    table = gaussian_table()
    assert hashlib.sha256(table.astype("<i2").tobytes()).hexdigest() == TABLE_SHA256
    assert np.array_equal(table, -table[::-1]) and (np.diff(table.astype(int)) >= 0).all()
    standard = table / SCALE
    assert standard.var() == pytest.approx(0.99998, abs=1e-5)
    assert (standard**4).mean() / standard.var() ** 2 == pytest.approx(2.9992, abs=1e-4)
    assert standard.max() == pytest.approx(4.325, abs=1e-3)


def test_table_is_the_quantile_function():
    from statistics import NormalDist

    inverse = NormalDist().inv_cdf
    for u in (0, 1, 100, 20_000, 32_768, 50_000, 65_535):
        assert abs(gaussian_table()[u] - SCALE * inverse((u + 0.5) / 65536)) <= 0.5 + 1e-6


def test_a_changed_table_is_refused(monkeypatch):
    monkeypatch.setattr(philox, "TABLE_SHA256", "0" * 64)
    with pytest.raises(AssertionError, match="frozen"):
        gaussian_table.__wrapped__()


def test_exact_numbers():
    assert gaussian_rows(5, 1, np.array([0, 2**32]), 9).tolist() == [
        [624, -2405, 29, -2293, -18, 2055, -3709, -5998, 690],
        [-3636, -3672, 3043, 3145, -4072, 988, -2671, -322, -4650],
    ]
    assert uniform(1, 2, np.array([0, 7]), 3).tolist() == [0.9885923851979896, 0.4561791791347787]


def test_one_row_again_is_the_row_of_the_codebook():
    every = gaussian_rows(5, 1, np.arange(300), 37)
    for row in (0, 17, 299):
        assert np.array_equal(gaussian_rows(5, 1, np.array([row]), 37)[0], every[row])
        assert np.array_equal(gaussian_rows(5, 1, np.array([row]), 9)[0], every[row, :9])


def test_seed_stream_row_and_column_all_count():
    first = gaussian_rows(5, 1, np.arange(4), 16)
    assert not np.array_equal(first, gaussian_rows(6, 1, np.arange(4), 16))
    assert not np.array_equal(first, gaussian_rows(5 + 2**32, 1, np.arange(4), 16))
    assert not np.array_equal(first, gaussian_rows(5, 2, np.arange(4), 16))
    assert not np.array_equal(first, gaussian_rows(5, 1, np.arange(4) + 2**32, 16))
    assert not np.array_equal(first[:, :8], first[:, 8:])


def test_moments_and_independence_of_neighbours():
    drawn = gaussian_rows(1, 0, np.arange(20_000), 8) / SCALE
    assert abs(drawn.mean()) < 0.01 and drawn.var() == pytest.approx(1, abs=0.01)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(8)).max() < 0.03
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 0.03


def test_uniform_is_open_and_flat():
    drawn = uniform(1, 2, np.arange(50_000), 3)
    assert 0 < drawn.min() and drawn.max() < 1
    assert np.abs(np.histogram(drawn, 10, (0, 1))[0] / 5000 - 1).max() < 0.1
