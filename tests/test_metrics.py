"""Metrics against hand-made values, independent formulas and published curves."""

import math

import numpy as np
import pytest

from latcodec import metrics
from latcodec.errors import OptionError

# (bpp, RGB PSNR in dB), means over the 24 Kodak pictures, as published in InterDigitalInc/CompressAI,
# results/image/kodak: bpg_444_x265_ycbcr.json, vtm.json and compressai-bmshj2018-hyperprior_mse_cuda.json.
BPG444 = [
    (0.0678, 26.195), (0.1610, 28.682), (0.3516, 31.595), (0.6847, 34.857),
    (1.1997, 38.260), (1.9297, 41.479), (3.0579, 44.703), (4.7031, 47.633),
]  # fmt: skip
VTM = [
    (0.0482, 26.145), (0.1125, 28.493), (0.2458, 31.200), (0.4905, 34.262),
    (0.8748, 37.420), (1.4308, 40.424), (2.3246, 43.506), (3.6326, 46.592),
]  # fmt: skip
HYPERPRIOR = [
    (0.1313, 27.582), (0.2089, 29.197), (0.3199, 30.972), (0.4784, 32.838),
    (0.6687, 34.526), (0.9388, 36.743), (1.2592, 38.584), (1.6602, 40.557),
]  # fmt: skip


@pytest.mark.parametrize(
    "anchor, test, percent",
    [(BPG444, VTM, -18), (VTM, BPG444, 22), (BPG444, HYPERPRIOR, 4), (VTM, HYPERPRIOR, 31), (VTM, VTM, 0)],
)
def test_bd_rate_of_published_curves(anchor, test, percent):
    assert metrics.bd_rate(anchor, test)[0] == pytest.approx(percent, abs=1)


def test_bd_rate_says_the_overlap():
    assert metrics.bd_rate(BPG444, HYPERPRIOR)[1] == (27.582, 40.557)


def test_bd_rate_of_a_constant_saving_is_exact_and_order_does_not_matter():
    smaller = [(0.75 * bpp, psnr) for bpp, psnr in reversed(BPG444)]
    assert metrics.bd_rate(BPG444, smaller)[0] == pytest.approx(-25, abs=1e-9)


@pytest.mark.parametrize(
    "points, what",
    [
        ([], "two or more"),
        ([(1.0, 30.0)], "two or more"),
        ([(0.0, 30.0), (1.0, 31.0)], "rate above 0"),
        ([(1.0, 30.0), (2.0, math.inf)], "finite"),
        ([(1.0, 30.0), (2.0, 30.0)], "same PSNR"),
        ([(1.0, 10.0), (2.0, 20.0)], "do not overlap"),
    ],
)
def test_bd_rate_refuses(points, what):
    with pytest.raises(OptionError, match=what):
        metrics.bd_rate(BPG444, points)


def test_mse_and_psnr_by_hand():
    a = np.zeros((2, 2, 3), np.uint8)
    b = a.copy()
    b[0, 0, 0] = 255  # the difference must not wrap around in uint8, whichever comes first
    assert metrics.mse(a, b) == metrics.mse(b, a) == 255**2 / 12
    assert metrics.psnr_db(a, b) == pytest.approx(10 * math.log10(12))
    assert metrics.psnr_db(a, a) == math.inf


def test_psnr_of_16_bits_is_that_of_the_same_picture_in_8():
    a, b = np.array([[10, 20]], np.uint8), np.array([[13, 17]], np.uint8)
    wide = metrics.psnr_db(a.astype(np.uint16) * 257, b.astype(np.uint16) * 257, peak=65535)
    assert wide == pytest.approx(metrics.psnr_db(a, b))


@pytest.mark.parametrize("measure", [metrics.mse, metrics.psnr_db, metrics.ms_ssim])
def test_shapes_must_agree(measure):
    with pytest.raises(OptionError, match="shapes"):
        measure(np.zeros((200, 200, 3), np.uint8), np.zeros((200, 201, 3), np.uint8))


def test_ms_ssim_orders_distortions_and_keeps_equality(photograph):
    noise = np.random.default_rng(0).normal(size=photograph.shape)
    scores = [metrics.ms_ssim(photograph, np.clip(photograph + s * noise, 0, 255).round().astype(np.uint8))
              for s in (0, 4, 16)]  # fmt: skip
    assert scores[0] == pytest.approx(1, abs=1e-6)
    assert scores[0] > scores[1] > scores[2] > 0.5


def test_ms_ssim_is_scale_free(photograph):
    degraded = photograph // 16 * 16
    wide = metrics.ms_ssim(photograph.astype(np.uint16) * 257, degraded.astype(np.uint16) * 257, peak=65535)
    assert wide == pytest.approx(metrics.ms_ssim(photograph, degraded), abs=1e-5)


def test_ms_ssim_needs_161_px_on_both_sides(photograph):
    for shape, there in (((160, 400), False), ((300, 160), False), ((161, 161), True)):
        crop = photograph[: shape[0], : shape[1]]
        assert (metrics.ms_ssim(crop, crop) is not None) == there
        assert (metrics.ms_ssim(crop[..., 0], crop[..., 0]) is not None) == there


def test_errors_of_each_channel_by_hand():
    original = np.full((2, 2, 3), 100, np.uint8)
    decoded = original.copy()
    decoded[0, 0] = (104, 96, 100)
    assert metrics.errors_rgb(original, decoded) == ([4, 4, 0], [1, -1, 0])


def test_ssim_is_one_for_equal_pictures_and_needs_11_px(photograph):
    assert metrics.ssim(photograph[:11, :40], photograph[:11, :40]) == pytest.approx(1)
    assert metrics.ssim(photograph[:10, :40], photograph[:10, :40]) is None
    assert metrics.ssim(photograph, photograph // 16 * 16) < 0.97


def test_ms_ssim_in_db():
    assert metrics.ms_ssim_db(0.99) == pytest.approx(20)
    assert metrics.ms_ssim_db(1.0) is None and metrics.ms_ssim_db(None) is None


def test_bd_psnr_of_a_constant_gain_is_exact_and_says_the_overlap():
    better = [(bpp, psnr + 1.5) for bpp, psnr in reversed(BPG444)]
    difference, (low, high) = metrics.bd_psnr(BPG444, better)
    assert difference == pytest.approx(1.5, abs=1e-9)
    assert (low, high) == pytest.approx((0.0678, 4.7031))
    assert metrics.bd_psnr(better, BPG444)[0] == pytest.approx(-1.5, abs=1e-9)
    with pytest.raises(OptionError, match="rate"):
        metrics.bd_psnr([(1.0, 30.0), (1.0, 31.0)], BPG444)


# BD-rate over PSNR in percent against JPEG, BPG 4:4:4 and VTM.
PUBLISHED = {
    "JPEG": (0, 143, 209),
    "JPEG progressive+optimised (measured here)": (-12, 129, 195),
    "TFC JPEG2000 OpenJPEG": (-43, 39, 72),
    "JPEG XL e7 (measured here)": (-33, 59, 99),
    "AVIF 4:4:4 s6 (measured here)": (-49, 16, 43),
    "AV1": (-62, -6, 16),
    "BPG444": (-59, 0, 22),
    "VTM": (-68, -18, 0),
    "bmshj2018-factorized": (-45, 33, 68),
    "bmshj2018-hyperprior": (-55, 4, 31),
    "bmshj2018-hyperprior-vbr": (-55, 4, 31),
    "mbt2018-mean": (-58, -3, 21),
    "mbt2018": (-61, -11, 11),
    "minnen2018-checkerboard": (-62, -7, 19),
    "SGA (Yang 2020)": (-64, -16, 6),
    "ELIC": (-68, -27, -7),
    "MLIC++": (-71, -33, -15),
    "Cool-Chic v4.2": (-66, -20, 1),
    "R-D upper bound, ResNet-VAE (Yang&Mandt 2022)": (-69, -34, -19),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_bd_rates_on_kodak_are_reproduced(name):
    from latcodec.bench import kodak

    def points(curve):
        return list(zip(curve["bpp"], curve["psnr_db"], strict=True))

    curves = kodak.published()
    for anchor, percent in zip(("JPEG", "BPG444", "VTM"), PUBLISHED[name], strict=True):
        assert metrics.bd_rate(points(curves[anchor]), points(curves[name]))[0] == pytest.approx(percent, abs=1), anchor
