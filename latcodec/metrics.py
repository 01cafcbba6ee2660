"""Distances between two pictures, and between two rate-distortion curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from latcodec.errors import OptionError

if TYPE_CHECKING:
    import torch

MS_SSIM_MIN_SIDE_PX = 161  # five scales, each half of the one before, under an 11-tap window
SSIM_MIN_SIDE_PX = 11


def mse(a: np.ndarray, b: np.ndarray) -> float:
    """Mean squared error in sample units of two arrays of equal shape, uint8, uint16 or float; raises OptionError."""
    _check_shapes(a, b)
    difference = np.subtract(a, b, dtype=np.float64).ravel()
    return float(difference @ difference) / difference.size


def psnr_db(a: np.ndarray, b: np.ndarray, peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB over all samples; infinite for equal arrays. peak: 255, 65535 or 1."""
    error = mse(a, b)
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def errors_rgb(original: np.ndarray, decoded: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean squared error and mean error (decoded minus original: the drift of the colour) of each channel.

    Arrays [H, W, 3] of equal shape; sample units. Raises OptionError.
    """
    _check_shapes(original, decoded)
    difference = np.subtract(decoded, original, dtype=np.float64).reshape(-1, original.shape[2])
    return np.square(difference).mean(0).tolist(), difference.mean(0).tolist()


def ms_ssim(a: np.ndarray, b: np.ndarray, peak: float = 255.0) -> float | None:
    """Multi-scale structural similarity in 0..1 of two arrays [H, W] or [H, W, C]; None if a side is under 161 px.

    Source: Wang, Simoncelli, Bovik 2003, as pytorch-msssim computes it, each channel alone and the mean taken.
    """
    return _structural("ms_ssim", MS_SSIM_MIN_SIDE_PX, a, b, peak)


def ms_ssim_of_tensors(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """MS-SSIM of each pair, differentiable, float32 [B]; a, b: float32 [B, C, H, W] in 0..1, sides from 161 px on."""
    import pytorch_msssim

    return pytorch_msssim.ms_ssim(a, b, data_range=1.0, size_average=False)


def ssim(a: np.ndarray, b: np.ndarray, peak: float = 255.0) -> float | None:
    """Structural similarity of two arrays [H, W] or [H, W, C]; None if a side is under 11 px.

    Source: Wang, Bovik, Sheikh, Simoncelli 2004 (11-tap Gaussian window, sigma 1.5), as pytorch-msssim computes it.
    """
    return _structural("ssim", SSIM_MIN_SIDE_PX, a, b, peak)


def _structural(function: str, min_side_px: int, a: np.ndarray, b: np.ndarray, peak: float) -> float | None:
    _check_shapes(a, b)
    if min(a.shape[:2]) < min_side_px:
        return None
    import pytorch_msssim
    import torch

    def tensor(array: np.ndarray) -> torch.Tensor:
        planes = array[..., None] if array.ndim == 2 else array
        return torch.from_numpy(planes.astype(np.float32)).permute(2, 0, 1)[None].contiguous()

    with torch.inference_mode():
        return float(getattr(pytorch_msssim, function)(tensor(a), tensor(b), data_range=peak))


def _check_shapes(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise OptionError(f"pictures of different shapes cannot be compared: {a.shape} and {b.shape}")


def ms_ssim_db(value: float | None) -> float | None:
    """MS-SSIM in dB, -10 log10(1 - value), which near 1 tells apart what is close; None for 1 and for None."""
    return None if value is None or value >= 1 else -10 * math.log10(1 - value)


def bd_rate(
    anchor: Sequence[tuple[float, float]], test: Sequence[tuple[float, float]]
) -> tuple[float, tuple[float, float]]:
    """Mean difference of rate at equal quality, in percent of the anchor's, and the range (dB) it was taken over.

    anchor, test: points (bpp, dB) in any order, at least two; PSNR, or MS-SSIM in dB. Negative: `test` needs fewer
    bits. log(rate) is interpolated over dB by monotone cubics (Pchip), which unlike Bjontegaard's polynomial do not
    overshoot; nothing is extrapolated. Raises OptionError for too few points, points that are not numbers, two points
    of one curve at the same dB, or curves whose ranges do not overlap.
    Source: Bjontegaard 2001, VCEG-M33; the Pchip variant is JVET common test conditions'.
    """
    anchor_curve, test_curve = _curve("anchor", anchor), _curve("test", test)
    swapped = (anchor_curve[::-1], test_curve[::-1])
    difference, overlap = _mean_difference(*swapped, "PSNR")
    return 100 * math.expm1(difference), overlap


def bd_psnr(
    anchor: Sequence[tuple[float, float]], test: Sequence[tuple[float, float]]
) -> tuple[float, tuple[float, float]]:
    """Mean difference in dB at equal rate, and the range (bpp) it was taken over; positive: `test` is better.

    As `bd_rate` with the axes exchanged: dB is interpolated over log(rate).
    """
    difference, (low, high) = _mean_difference(_curve("anchor", anchor), _curve("test", test), "rate")
    return difference, (math.exp(low), math.exp(high))


def _curve(name: str, points: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    rate, quality = np.array(list(points), dtype=np.float64).reshape(-1, 2).T
    if len(rate) < 2 or not np.all(np.isfinite(rate) & np.isfinite(quality) & (rate > 0)):
        raise OptionError(f"the {name} curve needs two or more points of finite PSNR and a rate above 0")
    return np.log(rate), quality


def _mean_difference(anchor, test, axis: str) -> tuple[float, tuple[float, float]]:
    """Mean of test minus anchor, both (x, y), over the x that both have; raises OptionError naming the axis."""
    from scipy.interpolate import PchipInterpolator

    areas, ends = [], []
    for name, (x, y) in (("anchor", anchor), ("test", test)):
        order = np.argsort(x, kind="stable")
        x, y = x[order], y[order]
        if np.any(np.diff(x) == 0):
            raise OptionError(f"the {name} curve has two points of the same {axis}")
        areas.append(PchipInterpolator(x, y).antiderivative())
        ends.append((x[0], x[-1]))
    low, high = max(end[0] for end in ends), min(end[1] for end in ends)
    if low >= high:
        raise OptionError(f"the {axis} ranges of the two curves do not overlap")
    anchor_area, test_area = (float(area(high) - area(low)) for area in areas)
    return (test_area - anchor_area) / (high - low), (float(low), float(high))
