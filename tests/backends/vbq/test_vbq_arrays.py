"""Arrays of means and sigmas to bytes and back; the paper's model compression on real weights."""

import math
import struct
import zlib

import numpy as np
import pytest
import torch
from skimage import data

from latcodec.backends import by_name
from latcodec.backends.loading import load_model
from latcodec.backends.vbq import arrays as vbq
from latcodec.errors import FormatError, OptionError

RNG = np.random.default_rng(0)


def error(mean, sigma, again) -> float:
    return float((((again.astype(float) - mean) / sigma) ** 2).mean())


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(0,), (), (1,), (3, 5), (7, 1, 11), (0, 4)])
def test_shape_and_dtype_survive(shape, dtype):
    mean = RNG.standard_normal(shape).astype(dtype)
    again = vbq.decompress(vbq.compress(mean, 0.05, 0.1))
    assert again.shape == mean.shape and again.dtype == mean.dtype
    assert mean.size == 0 or np.abs(again.astype(float) - mean).max() < 0.5


def test_larger_lambda_smaller_and_worse():
    mean = RNG.laplace(size=(40, 100)).astype(np.float32)
    sigma = np.exp(RNG.normal(-2, 1, mean.shape))
    coded = [vbq.compress(mean, sigma, lmbda) for lmbda in (0.01, 0.1, 1, 10, 100)]
    sizes = [len(c) for c in coded]
    errors = [error(mean, sigma, vbq.decompress(c)) for c in coded]
    assert sizes == sorted(sizes, reverse=True) and errors == sorted(errors)
    assert sizes[0] > 4 * sizes[-1] and errors[0] < 0.05


def test_bits_go_where_sigma_is_small():
    mean = RNG.standard_normal((2, 4000))
    sigma = np.array([[0.01], [1.0]])
    off = np.abs(vbq.decompress(vbq.compress(mean, sigma, 0.7)) - mean).mean(1)
    assert off[0] < 0.02 and off[1] > 0.1


def test_same_bytes_again_and_none_for_a_constant():
    mean = RNG.standard_normal(2000).astype(np.float32)
    assert vbq.compress(mean, 0.1, 1) == vbq.compress(mean, 0.1, 1)
    flat = np.full(100_000, 3.25, np.float32)
    coded = vbq.compress(flat, 0.1, 1)
    assert len(coded) < 300 and np.abs(vbq.decompress(coded) - 3.25).max() < 0.1


def test_outliers_are_met():
    mean = RNG.standard_normal(5000)
    mean[7], mean[9] = 90.0, -60.0
    again = vbq.decompress(vbq.compress(mean, 0.2, 1))
    assert abs(again[7] - 90) < 3 and abs(again[9] + 60) < 3


@pytest.mark.parametrize(
    "mean, sigma, lmbda",
    [([1, 2], 1, 1), ([1.0, math.nan], 1, 1), ([1.0], 0, 1), ([1.0], -1, 1), ([1.0], 1, 0), ([1.0], math.inf, 1),
     ([1.0, 2.0], [1.0, 1.0, 1.0], 1), ([1e308, -1e308], 1, 1), ([1e200, 1.0], 1e199, 1)])  # fmt: skip
def test_what_cannot_be_compressed_is_told(mean, sigma, lmbda):
    with pytest.raises(OptionError):
        vbq.compress(np.array(mean), np.array(sigma, float), lmbda)


@pytest.mark.parametrize("dtype, size", [("float16", 65504), ("float32", 3.4028234e38), ("float64", 1e139),
                                         ("float64", 1e-200), ("float64", 1e-310)])  # fmt: skip
def test_every_order_of_magnitude_comes_back(dtype, size):
    mean = (RNG.uniform(-1, 1, 300) * size).astype(dtype)
    mean[:2] = size, -size
    again = vbq.decompress(vbq.compress(mean, size / 50, 0.1))
    assert np.isfinite(again).all() and np.abs(again.astype(float) / size - mean.astype(float) / size).max() < 0.1


@pytest.mark.parametrize("sigma, lmbda", [(1e-300, 1), (1e300, 1), (0.1, 1e-310), (0.1, 1e300), (1e-300, 1e308)])
def test_every_price_of_an_error(sigma, lmbda):
    mean = RNG.standard_normal(300)
    coded = vbq.compress(mean, sigma, lmbda)
    worth_nothing = sigma > 1 or sigma == 0.1 and lmbda > 1
    assert len(coded) < 300 if worth_nothing else np.abs(vbq.decompress(coded) - mean).max() < 1e-3


@pytest.mark.parametrize("value", [0.0, 1e-5, -3.25])
def test_a_constant_is_as_near_as_sigma_asks(value):
    again = vbq.decompress(vbq.compress(np.full(1000, value), 1e-7, 1))
    assert np.abs(again - value).max() < 1e-6


def _repaired(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


def test_damage_is_told():
    coded = vbq.compress(RNG.standard_normal(300), 0.1, 1)
    for position in range(len(coded)):
        other = bytearray(coded)
        other[position] ^= 1 << position % 8
        for bad in (bytes(other), coded[:position]):
            with pytest.raises(FormatError):
                vbq.decompress(bad)
    for bad in (b"", b"VBQ1", coded + b"\0"):
        with pytest.raises(FormatError):
            vbq.decompress(bad)
    with pytest.raises(FormatError, match="more than 299"):
        vbq.decompress(coded, max_values=299)


def test_damage_behind_the_checksum_gives_values_or_one_error():
    coded = vbq.compress(RNG.standard_normal(300), 0.1, 1)
    length, start = vbq._read_varints(coded, 4, 1)
    head, stream = zlib.decompress(coded[start : start + length[0]]), coded[start + length[0] : -4]
    rng = np.random.default_rng(1)
    told = 0
    for _ in range(600):
        other = bytearray(head)
        for _ in range(rng.integers(1, 4)):
            other[rng.integers(len(other))] = rng.integers(256)
        packed = zlib.compress(bytes(other))
        try:
            vbq.decompress(_repaired(b"VBQ1" + vbq._varints([len(packed)]) + packed + stream), max_values=10**6)
        except FormatError:
            told += 1
    assert told > 300


def test_a_head_whose_scale_is_no_number_is_told():
    coded = vbq.compress(RNG.standard_normal(300), 0.1, 1)
    length, start = vbq._read_varints(coded, 4, 1)
    head, stream = zlib.decompress(coded[start : start + length[0]]), coded[start + length[0] : -4]
    at = vbq._read_varints(head, 2, 1)[1]
    for number in (math.nan, math.inf):
        packed = zlib.compress(head[:at] + struct.pack("<d", number) + head[at + 8 :])
        with pytest.raises(FormatError, match="no number"):
            vbq.decompress(_repaired(b"VBQ1" + vbq._varints([len(packed)]) + packed + stream))


def _uniform_bytes(mean: np.ndarray, step: float) -> tuple[np.ndarray, float]:
    """A uniform grid's values, and the entropy of its symbols with 2 bytes for each entry of its table."""
    symbols = np.rint(mean / step)
    counts = np.unique(symbols, return_counts=True)[1]
    return (symbols * step).astype(mean.dtype), -(counts * np.log2(counts / mean.size)).sum() / 8 + 2 * len(counts)


def test_half_the_bytes_of_uniform_quantisation_on_weights_of_this_project():
    """A layer of the hyperprior's synthesis: sigma is that of its Laplace approximation on one photograph; the error of
    the picture, on another, is made equal."""
    network = load_model(by_name("hyperprior"), None, None, "cpu").network
    x = [np.ascontiguousarray(p[60:188, 120:248]) for p in (data.astronaut(), data.chelsea())]
    ys = [network.analysis(torch.from_numpy(p).permute(2, 0, 1)[None].float() / 255).detach() for p in x]
    weight = network.g_s[4].weight
    mean, curvature = weight.detach().numpy().copy(), torch.zeros_like(weight)
    torch.manual_seed(0)
    try:
        weight.requires_grad_(True)
        for _ in range(6):
            out = network.synthesis(ys[0])
            (gradient,) = torch.autograd.grad((torch.randn_like(out) * out).sum(), weight)
            curvature += gradient**2 / (6 * 0.001)
        weight.requires_grad_(False)
        precision = curvature.numpy()
        sigma = (precision + 1e-3 * precision.mean()) ** -0.5
        with torch.no_grad():
            expected = network.synthesis(ys[1])

        def distortion(values: np.ndarray) -> float:
            with torch.no_grad():
                weight.copy_(torch.from_numpy(values))
                return float((network.synthesis(ys[1]) - expected).square().mean())

        coded = vbq.compress(mean, sigma, 0.1)
        reached = distortion(vbq.decompress(coded))
        low, high = 1e-5, 1.0
        for _ in range(14):
            step = math.sqrt(low * high)
            values, size = _uniform_bytes(mean, step)
            low, high = (step, high) if distortion(values) < reached else (low, step)
    finally:
        with torch.no_grad():
            weight.copy_(torch.from_numpy(mean))
    assert reached < 1e-3
    assert len(coded) < 0.5 * size
