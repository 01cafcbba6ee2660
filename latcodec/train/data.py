"""Training pictures: decoded once to uint8, cropped for ever.

The crops of a step are a pure function of (seed, step), so a resumed run sees what the uninterrupted one would have.
"""

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from latcodec import images
from latcodec.errors import ImageError
from latcodec.files import PICTURE_SUFFIXES


def find(paths: list[str]) -> list[Path]:
    """Every picture file in the given files and folders, sorted by name; raises ImageError when there is none."""
    files: list[Path] = []
    for path in map(Path, paths):
        files += sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise ImageError(f"{', '.join(paths)}: no pictures found")
    return sorted(set(files), key=lambda p: p.name)


def load_one(path: Path) -> np.ndarray | None:
    """A picture as `encode` would see it, uint8 [H, W, 3]; None, and a line that names it, if it cannot be read."""
    try:
        pixels = images.read(path).pixels
    except ImageError as error:
        print(f"latcodec: skipped: {error}", file=sys.stderr)
        return None
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def is_validation(path: Path) -> bool:
    """True for a fixed 2 % of file names, whatever else is in the folder."""
    return hashlib.sha256(path.stem.encode()).digest()[0] < 5


def load(paths: list[str], min_side_px: int, workers: int = 2) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Decode pictures to uint8 [H, W, 3]: (training, validation); broken and too small ones are named or counted."""
    files = find(paths)
    with ThreadPoolExecutor(workers) as pool:
        pictures = list(pool.map(load_one, files))
    kept = [(f, p) for f, p in zip(files, pictures, strict=True) if p is not None and min(p.shape[:2]) >= min_side_px]
    small = sum(p is not None for p in pictures) - len(kept)
    if small:
        print(f"latcodec: {small} pictures under {min_side_px} px skipped", file=sys.stderr)
    training = [p for f, p in kept if not is_validation(f)]
    validation = [p for f, p in kept if is_validation(f)]
    if not training:
        raise ImageError(f"{', '.join(paths)}: no readable picture of at least {min_side_px} px")
    return training, validation


class Crops:
    """Random crops with flips, pictures drawn in proportion to their area."""

    def __init__(self, pictures: list[np.ndarray], seed: int):
        self.pictures, self.seed = pictures, seed
        area = np.array([p.shape[0] * p.shape[1] for p in pictures], np.float64)
        self.cumulative = np.cumsum(area / area.sum())

    def batch(self, step: int, count: int, side_px: int) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [count, 3, side, side] and rate positions float32 [count] in 0..1, one stratum of the rates each."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        out = np.empty((count, 3, side_px, side_px), np.uint8)
        for i, pick in enumerate(np.searchsorted(self.cumulative, rng.random(count)).clip(0, len(self.pictures) - 1)):
            picture = self.pictures[pick]
            top, left = (int(rng.integers(0, s - side_px + 1)) for s in picture.shape[:2])
            crop = picture[top : top + side_px, left : left + side_px]
            vertical, horizontal = rng.integers(0, 2, 2)
            out[i] = crop[:: 1 - 2 * vertical, :: 1 - 2 * horizontal].transpose(2, 0, 1)
        return out, ((rng.permutation(count) + rng.random(count)) / count).astype(np.float32)


def validation_crops(pictures: list[np.ndarray], side_px: int, most: int = 16) -> np.ndarray:
    """The centre of each validation picture, uint8 [n, 3, side, side]."""
    chosen = pictures[:: max(1, len(pictures) // most)][:most]
    crops = []
    for picture in chosen:
        top, left = ((s - side_px) // 2 for s in picture.shape[:2])
        crops.append(picture[top : top + side_px, left : left + side_px].transpose(2, 0, 1))
    return np.stack(crops)
