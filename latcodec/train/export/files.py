"""What every export does: training pictures to fit to, tables corrected by what is counted there, a weights file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from latcodec.entropy.tables import Tables
from latcodec.train import data
from latcodec.train.export.tables import quantize_pmf
from latcodec.weights import add_to_index, save

CALIBRATION_STEP = 16  # every so many rate indices, from another start in each picture
CALIBRATION_SIDE_PX = 512
LOGISTIC_COUNT = 2000.0  # what the logistic of a row weighs against the symbols counted in it


def calibration_crops(
    paths: list[str], about: int, side_px: int, *, most: int | None = None, whole_px: int = 1
) -> list[np.ndarray]:
    """Top left corners of the training pictures of `data.sample`, uint8 [H, W, 3].

    side_px: of a corner at most. whole_px: sides are multiples of it, and smaller pictures are left out. Raises
    ImageError where there is no picture.
    """
    crops = []
    for picture in data.sample(paths, about, whole_px, most):
        height, width = (min(side, side_px) // whole_px * whole_px for side in picture.shape[:2])
        crops.append(picture[:height, :width])
    return crops


def corrected_tables(base: Tables, counts: Sequence[np.ndarray], sigmas: Sequence[float | None]) -> Tables:
    """Logistic tables corrected by the symbols counted in each row.

    The residuals of a trained network are not quite the logistic it predicts, and tables are data: the true shape of
    each row costs nothing at run time. counts: float64 [entries], the escape last. sigmas: standard deviation of each
    row that is symmetric around 0, in symbols: its counts are folded and, where it is so wide that a single symbol is
    rare, smoothed. None for other rows.
    """
    pmfs = []
    for row, (count, sigma) in enumerate(zip(counts, sigmas, strict=True)):
        weights = base.weights[base.offsets[row] : base.offsets[row + 1]]
        body = count[:-1]
        if sigma is not None:
            body = (body + body[::-1]) / 2
            half_width = int(sigma / 4)
            if half_width:
                body = np.convolve(body, np.ones(2 * half_width + 1) / (2 * half_width + 1), "same")
        pmfs.append(np.append(body, count[-1]) + LOGISTIC_COUNT * weights / weights.sum())
    return quantize_pmf(pmfs, base.minimums.tolist())


def write(out: Path, codec: str, config: dict, command: str, tensors: dict[str, np.ndarray]) -> Path:
    """Write a weights file (safetensors) and its entry in the index beside it; returns its path.

    config: as the codec's `stored_config` gives it. command: what made the weights.
    """
    digest = save(out, codec, config, command, tensors)
    add_to_index(out, codec, config, command, digest)
    return out
