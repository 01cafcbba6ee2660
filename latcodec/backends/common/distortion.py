"""The rate-distortion cost of an encoded picture, in bits: its rate, and its distortion times what a bit is worth.

Distortion is the squared error, or 1 - MS-SSIM for weights that were trained for it. Only encoders use it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor

from latcodec import metrics
from latcodec.rates import MS_SSIM_WEIGHT, distortion_weight, lambda_of_index

BAND_ROWS = 256  # rows of pixels whose distortion is summed at once
SECTION_BITS = 16  # of a file, for each section beside its content; longer sections take more


class CodedSections(Protocol):
    """What of an encoder's result goes into a file."""

    streams: tuple[bytes, ...]
    parameters: bytes | None


def rd_cost(
    coded: CodedSections, decoded: np.ndarray, image: np.ndarray, rate_index: int, metric: str = "mse"
) -> float:
    """Return the rate-distortion cost in bits, of which training minimises an estimate.

    Args:
        coded: the encoder's result.
        decoded: the picture it decodes to, uint8 or uint16 [H, W, 3].
        image: the picture that was encoded, of the same type and shape.
        rate_index: sets what the distortion is worth.
        metric: one of `rates.METRICS`.
    """
    sections = [*coded.streams, *([coded.parameters] if coded.parameters is not None else [])]
    bits = 8 * sum(map(len, sections)) + SECTION_BITS * len(sections)
    return bits + distortion_bits(decoded, image, rate_index, metric)


def error_weight(rate_index: int) -> float:
    """Return the bits that a squared error of 1 is worth, summed over all samples of the range 0..1."""
    return distortion_weight(lambda_of_index(rate_index)) * 255**2 / 3


def _ms_ssim_weight(rate_index: int) -> float:
    """Return the bits that a pixel is worth whose MS-SSIM is 0."""
    return distortion_weight(lambda_of_index(rate_index)) * MS_SSIM_WEIGHT


def distortion_bits(decoded: np.ndarray, image: np.ndarray, rate_index: int, metric: str = "mse") -> float:
    """Return the distortion of a decoded picture in bits.

    MS-SSIM is the mean over bands of rows, so that memory does not grow with the picture. Where a side is under
    `metrics.MS_SSIM_MIN_SIDE_PX` it is not defined, and the squared error stands for it.

    Args:
        decoded: uint8 or uint16 [H, W, 3].
        image: of the same type and shape.
        rate_index: sets what the distortion is worth.
        metric: one of `rates.METRICS`.
    """
    peak = 65535.0 if image.dtype == np.uint16 else 255.0
    bands = [(decoded[top:bottom], image[top:bottom]) for top, bottom in _bands(len(image))]
    if _is_by_ms_ssim(image.shape[:2], metric):
        lost = sum((1 - metrics.ms_ssim(*band, peak)) * band[0].shape[0] * band[0].shape[1] for band in bands)
        return _ms_ssim_weight(rate_index) * lost
    error = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in bands)
    return error_weight(rate_index) * error / peak**2


def relaxed_distortion_bits(x_hat: Tensor, x: Tensor, rate_index: int, metric: str = "mse") -> Tensor:
    """Return the distortion of tensors in bits, float32 [], differentiable.

    Args:
        x_hat: float32 [1, 3, H, W] in about 0..1, or gray [1, 1, H, W].
        x: float32 [1, 3, H, W] in 0..1.
        rate_index: sets what the distortion is worth.
        metric: one of `rates.METRICS`.
    """
    if _is_by_ms_ssim(tuple(x.shape[2:]), metric):
        similarity = metrics.ms_ssim_of_tensors(x_hat.expand_as(x), x)
        return _ms_ssim_weight(rate_index) * x[0, 0].numel() * (1 - similarity).sum()
    return error_weight(rate_index) * (x_hat - x).square().sum()


def _is_by_ms_ssim(size: tuple[int, int], metric: str) -> bool:
    """Return whether the distortion of a picture of that (height, width) is measured by MS-SSIM."""
    return metric == "ms-ssim" and min(size) >= metrics.MS_SSIM_MIN_SIDE_PX


def _bands(height: int) -> list[tuple[int, int]]:
    """Return the first and last row of bands of BAND_ROWS or more, each high enough for MS-SSIM."""
    tops = [BAND_ROWS * n for n in range(max(1, height // BAND_ROWS))]
    return list(zip(tops, [*tops[1:], height], strict=True))
