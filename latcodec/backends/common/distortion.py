"""What the error of a decoded picture counts as, in bits, at a rate: by squared error, or by MS-SSIM for weights that
were trained for it. Of encoders only."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from latcodec import metrics
from latcodec.rates import MS_SSIM_WEIGHT, distortion_weight, lambda_of_index

BAND_ROWS = 256  # of a picture, whose error is summed at once


def error_weight(rate_index: int) -> float:
    """Bits that a squared error of 1 is worth, summed over all samples of the range 0..1, at a rate."""
    return distortion_weight(lambda_of_index(rate_index)) * 255**2 / 3


def _ms_ssim_weight(rate_index: int) -> float:
    """Bits that a pixel is worth whose MS-SSIM is lost."""
    return distortion_weight(lambda_of_index(rate_index)) * MS_SSIM_WEIGHT


def bits_of_pictures(decoded: np.ndarray, image: np.ndarray, rate_index: int, metric: str = "mse") -> float:
    """The error of a decoded picture in bits; decoded, image: uint8 or uint16 [H, W, 3].

    metric: one of `rates.METRICS`. MS-SSIM is the mean of bands of rows, so that memory does not grow with the picture;
    where a side is under `metrics.MS_SSIM_MIN_SIDE_PX` there is none, and the squared error stands for it.
    """
    peak = 65535.0 if image.dtype == np.uint16 else 255.0
    bands = [(decoded[top:bottom], image[top:bottom]) for top, bottom in _bands(len(image))]
    if _by_ms_ssim(image.shape[:2], metric):
        lost = sum((1 - metrics.ms_ssim(*band, peak)) * band[0].shape[0] * band[0].shape[1] for band in bands)
        return _ms_ssim_weight(rate_index) * lost
    error = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in bands)
    return error_weight(rate_index) * error / peak**2


def bits_of_tensors(x_hat: Tensor, x: Tensor, rate_index: int, metric: str = "mse") -> Tensor:
    """The same of tensors, differentiable; x: float32 [1, 3, H, W] in 0..1, x_hat as large or [1, 1, H, W]."""
    if _by_ms_ssim(tuple(x.shape[2:]), metric):
        similarity = metrics.ms_ssim_of_tensors(x_hat.expand_as(x), x)
        return _ms_ssim_weight(rate_index) * x[0, 0].numel() * (1 - similarity).sum()
    return error_weight(rate_index) * (x_hat - x).square().sum()


def _by_ms_ssim(size: tuple[int, int], metric: str) -> bool:
    """Whether a picture of that (height, width) is judged by MS-SSIM."""
    return metric == "ms-ssim" and min(size) >= metrics.MS_SSIM_MIN_SIDE_PX


def _bands(height: int) -> list[tuple[int, int]]:
    """First and last row of bands of BAND_ROWS or more, each high enough for MS-SSIM."""
    tops = [BAND_ROWS * n for n in range(max(1, height // BAND_ROWS))]
    return list(zip(tops, [*tops[1:], height], strict=True))
