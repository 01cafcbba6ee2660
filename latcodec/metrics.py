"""How far two pictures are apart, and how far two rate-distortion curves."""

import math
from collections.abc import Sequence

import numpy as np

from latcodec.errors import OptionError

MS_SSIM_MIN_SIDE_PX = 161  # five scales, each half of the one before, under an 11-tap window


def mse(a: np.ndarray, b: np.ndarray) -> float:
    """Mean squared error in sample units of two arrays of equal shape, uint8, uint16 or float; raises OptionError."""
    if a.shape != b.shape:
        raise OptionError(f"pictures of different shapes cannot be compared: {a.shape} and {b.shape}")
    difference = np.subtract(a, b, dtype=np.float64).ravel()
    return float(difference @ difference) / difference.size


def psnr_db(a: np.ndarray, b: np.ndarray, peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB over all samples; infinite for equal arrays. peak: 255, 65535 or 1."""
    error = mse(a, b)
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def ms_ssim(a: np.ndarray, b: np.ndarray, peak: float = 255.0) -> float | None:
    """Multi-scale structural similarity in 0..1 of two arrays [H, W] or [H, W, C]; None if a side is under 161 px.

    Source: Wang, Simoncelli, Bovik 2003, as pytorch-msssim computes it, each channel alone and the mean taken.
    """
    if a.shape != b.shape:
        raise OptionError(f"pictures of different shapes cannot be compared: {a.shape} and {b.shape}")
    if min(a.shape[:2]) < MS_SSIM_MIN_SIDE_PX:
        return None
    import pytorch_msssim
    import torch

    def tensor(array: np.ndarray) -> torch.Tensor:
        planes = array[..., None] if array.ndim == 2 else array
        return torch.from_numpy(planes.astype(np.float32)).permute(2, 0, 1)[None].contiguous()

    with torch.inference_mode():
        return float(pytorch_msssim.ms_ssim(tensor(a), tensor(b), data_range=peak))


def bd_rate(
    anchor: Sequence[tuple[float, float]], test: Sequence[tuple[float, float]]
) -> tuple[float, tuple[float, float]]:
    """Mean difference of rate at equal PSNR, in percent of the anchor's, and the PSNR range (dB) it was taken over.

    anchor, test: points (bpp, psnr_db) in any order, at least two. Negative: `test` needs fewer bits. log(rate) is
    interpolated over PSNR by monotone cubics (Pchip), which unlike Bjontegaard's polynomial do not overshoot; nothing
    is extrapolated. Raises OptionError for too few points, points that are not numbers, two points of one curve at the
    same PSNR, or curves whose PSNR ranges do not overlap.
    Source: Bjontegaard 2001, VCEG-M33; the Pchip variant is JVET common test conditions'.
    """
    from scipy.interpolate import PchipInterpolator

    curves = []
    for name, points in (("anchor", anchor), ("test", test)):
        rate, quality = np.array(sorted(points, key=lambda point: point[1]), dtype=np.float64).reshape(-1, 2).T
        if len(rate) < 2 or not np.all(np.isfinite(rate) & np.isfinite(quality) & (rate > 0)):
            raise OptionError(f"the {name} curve needs two or more points of finite PSNR and a rate above 0")
        if np.any(np.diff(quality) == 0):
            raise OptionError(f"the {name} curve has two points of the same PSNR")
        curves.append((quality, PchipInterpolator(quality, np.log(rate)).antiderivative()))
    low = max(quality[0] for quality, _ in curves)
    high = min(quality[-1] for quality, _ in curves)
    if low >= high:
        raise OptionError("the PSNR ranges of the two curves do not overlap")
    anchor_area, test_area = (float(area(high) - area(low)) for _, area in curves)
    return 100 * math.expm1((test_area - anchor_area) / (high - low)), (float(low), float(high))
