"""Training pictures: decoded once to uint8, cropped for ever.

The crops of a step are a pure function of (seed, step), so a resumed run sees what the uninterrupted one would have.
"""

import hashlib
import os
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


def load_cached(path: Path, cache: Path) -> np.ndarray | None:
    """`load_one` through a folder of decoded pictures, memory-mapped, so that data need not fit in memory."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:32]
    kept = cache / f"{key}.npy"
    if not kept.exists():
        pixels = load_one(path)
        if pixels is None:
            return None
        part = cache / f"{key}.{os.getpid()}.part"
        with open(part, "wb") as file:
            np.save(file, pixels)
        os.replace(part, kept)
    return np.load(kept, mmap_mode="r")


def load(
    paths: list[str], min_side_px: int, cache: str | None = None, workers: int | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Decode pictures to uint8 [H, W, 3]: (training, validation); broken and too small ones are named or counted."""
    files = find(paths)
    if cache is not None:
        Path(cache).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        pictures = list(pool.map(load_one if cache is None else lambda p: load_cached(p, Path(cache)), files))
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

    def plan(self, step: int, count: int, side_px: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of the crops of a step, int64 [count, 5]: picture, top, left, vertical and horizontal flip; and rate
        positions float32 [count] in 0..1, one stratum of the rates each."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        places = np.empty((count, 5), np.int64)
        for i, pick in enumerate(np.searchsorted(self.cumulative, rng.random(count)).clip(0, len(self.pictures) - 1)):
            top, left = (int(rng.integers(0, s - side_px + 1)) for s in self.pictures[pick].shape[:2])
            places[i] = pick, top, left, *rng.integers(0, 2, 2)
        return places, ((rng.permutation(count) + rng.random(count)) / count).astype(np.float32)

    def batch(self, step: int, count: int, side_px: int) -> tuple[np.ndarray, np.ndarray]:
        """The crops of a step, uint8 [count, 3, side, side], and their rate positions float32 [count]."""
        places, t = self.plan(step, count, side_px)
        out = np.empty((count, 3, side_px, side_px), np.uint8)
        for i, (pick, top, left, vertical, horizontal) in enumerate(places):
            crop = self.pictures[pick][top : top + side_px, left : left + side_px]
            out[i] = crop[:: 1 - 2 * vertical, :: 1 - 2 * horizontal].transpose(2, 0, 1)
        return out, t


class DevicePictures:
    """All pictures as one tensor on a device, cut there: nothing else keeps a GPU busy."""

    def __init__(self, pictures: list[np.ndarray], device):
        import torch

        self.flat = torch.empty(sum(p.size for p in pictures), dtype=torch.uint8, device=device)
        starts = np.cumsum([0] + [p.size for p in pictures])
        for picture, start in zip(pictures, starts[:-1], strict=True):
            pixels = torch.from_numpy(np.array(picture, order="C").ravel())
            self.flat[start : start + picture.size] = pixels.to(device)
        self.starts = torch.from_numpy(starts[:-1].astype(np.int64)).to(device)
        self.widths = torch.tensor([p.shape[1] for p in pictures], device=device)

    def crop(self, places, side_px: int):
        """places int64 [count, 5] as `Crops.plan` gives them -> float32 [count, 3, side, side] in 0..1."""
        import torch

        pick, top, left, vertical, horizontal = (places[:, i, None] for i in range(5))
        along = torch.arange(side_px, device=places.device)[None]
        rows = top + torch.where(vertical > 0, side_px - 1 - along, along)
        columns = left + torch.where(horizontal > 0, side_px - 1 - along, along)
        start = self.starts[pick] + 3 * rows * self.widths[pick]
        index = start[:, :, None, None] + 3 * columns[:, None, :, None] + torch.arange(3, device=places.device)
        return (self.flat[index].float() / 255).permute(0, 3, 1, 2)


def validation_crops(pictures: list[np.ndarray], side_px: int, most: int = 16) -> np.ndarray:
    """The centre of each validation picture, uint8 [n, 3, side, side]."""
    chosen = pictures[:: max(1, len(pictures) // most)][:most]
    crops = []
    for picture in chosen:
        top, left = ((s - side_px) // 2 for s in picture.shape[:2])
        crops.append(picture[top : top + side_px, left : left + side_px].transpose(2, 0, 1))
    return np.stack(crops)
