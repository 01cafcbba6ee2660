"""Training pictures: decoded once to uint8, cropped for ever.

The crops of a step are a pure function of (seed, step), so a resumed run sees what the uninterrupted one would have.
"""

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from latcodec import images
from latcodec.errors import ImageError, LatcodecError
from latcodec.images.formats import PICTURE_SUFFIXES


def _to_stderr(line: str) -> None:
    print(f"latcodec: {line}", file=sys.stderr)


def find(paths: list[str]) -> list[Path]:
    """Every picture file in the given files and folders, sorted by name; raises ImageError when there is none, and for
    a path that is not there or a folder that cannot be read."""
    files: set[Path] = set()

    def refuse(error: OSError) -> None:
        raise ImageError(f"{error.filename}: {error.strerror}")

    for path in map(Path, paths):
        if not path.exists():
            raise ImageError(f"{path}: no such file or folder")
        if not path.is_dir():
            files.add(path)
            continue
        for folder, _, names in os.walk(path, onerror=refuse, followlinks=True):
            files.update(Path(folder, name) for name in names if Path(name).suffix.lower() in PICTURE_SUFFIXES)
    if not files:
        raise ImageError(f"{', '.join(paths)}: no pictures found")
    return sorted(files, key=lambda p: (p.name, str(p)))  # one order for a resumed run, whatever the file system's


def load_one(path: Path, say: Callable[[str], None] = _to_stderr) -> np.ndarray | None:
    """A picture as `encode` would see it, uint8 [H, W, 3]; None, and a line that names it, if it cannot be read."""
    try:
        pixels = images.read_picture(path).pixels
    except (ImageError, OSError) as error:
        say(f"skipped: {error}")
        return None
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def is_validation(path: Path) -> bool:
    """True for a fixed 2 % of file names, whatever else is in the folder."""
    return hashlib.sha256(path.stem.encode()).digest()[0] < 5


def spread(paths: list[str], about: int, min_side_px: int, most: int | None = None) -> Iterator[np.ndarray]:
    """Training pictures, uint8 [H, W, 3], spread evenly over the names of the files, of those that can be read.

    about: how many; as every n-th file is taken, nearly twice as many may come. most: the limit, if there is one.
    Raises ImageError where there is no picture.
    """
    files = [path for path in find(paths) if not is_validation(path)]
    for picture in map(load_one, files[:: max(1, len(files) // about)][:most]):
        if picture is not None and min(picture.shape[:2]) >= min_side_px:
            yield picture


def _cached_at(path: Path, cache: Path) -> Path:
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:32]
    return cache / f"{key}.npy"


def _keep(pixels: np.ndarray, kept: Path) -> None:
    """Write a decoded picture whole or not at all; raises LatcodecError."""
    part = kept.with_suffix(f".{os.getpid()}.part")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            np.save(file, pixels)
        os.replace(part, kept)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise LatcodecError(f"{kept.parent}: decoded pictures cannot be kept there: {error.strerror}") from None


def load_cached(path: Path, cache: Path, say: Callable[[str], None] = _to_stderr) -> np.ndarray | None:
    """`load_one` through a folder of decoded pictures, memory-mapped, so that data need not fit in memory."""
    try:
        kept = _cached_at(path, cache)
        if not kept.exists():
            pixels = load_one(path, say)
            if pixels is None:
                return None
            _keep(pixels, kept)
        return np.load(kept, mmap_mode="r")
    except OSError as error:
        say(f"skipped: {path}: {error.strerror}")
        return None


def free_memory() -> int:
    """Bytes that this process may still take without swapping."""
    free = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    except (OSError, ValueError, IndexError):
        pass
    try:  # the limit of a container
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    if not free:
        free.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**32)
    return max(0, min(free))


class _Shelf:
    """Decoded pictures: in memory while there is room, in a folder and memory-mapped from then on."""

    def __init__(self, cache: Path | None, spill: Path | None, room: int, say: Callable[[str], None]):
        self.cache, self.spill, self.room, self.say = cache, spill, room, say
        self.lock = threading.Lock()

    def __call__(self, path: Path) -> np.ndarray | None:
        if self.cache is not None:
            return load_cached(path, self.cache, self.say)
        if self.spill is not None and self.room <= 0:
            return load_cached(path, self.spill, self.say)
        pixels = load_one(path, self.say)
        if pixels is None or self.spill is None:
            return pixels
        with self.lock:
            self.room, before = self.room - pixels.nbytes, self.room
        if self.room <= 0 < before:
            self.say(f"the pictures are too large for memory: the others are kept decoded in {self.spill}")
        return pixels


def load(
    paths: list[str], min_side_px: int, cache: str | None = None, workers: int | None = None, *,
    spill: Path | None = None, room: int | None = None, say: Callable[[str], None] = _to_stderr,
) -> tuple[list[np.ndarray], list[np.ndarray]]:  # fmt: skip
    """Decode pictures to uint8 [H, W, 3]: (training, validation); broken and too small ones are named or counted.

    cache: a folder to keep all of them in, decoded. spill: without it, where to keep what does not fit in `room`
    bytes, half of the free memory if None. say: told of what is skipped. Raises ImageError if nothing is left,
    LatcodecError if the folder cannot be written.
    """
    files = find(paths)
    room = free_memory() // 2 if room is None else room
    shelf = _Shelf(Path(cache) if cache is not None else None, spill, room, say)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        pictures = list(pool.map(shelf, files))
    kept = [(f, p) for f, p in zip(files, pictures, strict=True) if p is not None and min(p.shape[:2]) >= min_side_px]
    small = sum(p is not None for p in pictures) - len(kept)
    if small:
        say(f"{small} picture{'s' * (small != 1)} under {min_side_px} px skipped")
    training = [p for f, p in kept if not is_validation(f)]
    validation = [p for f, p in kept if is_validation(f)]
    if not training:
        raise ImageError(f"{', '.join(paths)}: no readable picture of at least {min_side_px} px")
    return training, validation


def digest(pictures: list[np.ndarray]) -> str:
    """What tells one list of pictures from another: their shapes and a few of their samples."""
    found = hashlib.sha256()
    for picture in pictures:
        found.update(
            f"{picture.shape}".encode() + picture[picture.shape[0] // 2, :: max(1, picture.shape[1] // 16)].tobytes()
        )
    return found.hexdigest()[:16]


class Crops:
    """Random crops with flips, pictures drawn in proportion to their area, rates from a part of their axis."""

    def __init__(self, pictures: list[np.ndarray], seed: int, t_range: tuple[float, float] = (0.0, 1.0)):
        self.pictures, self.seed, self.t_range = pictures, seed, t_range
        area = np.array([p.shape[0] * p.shape[1] for p in pictures], np.float64)
        self.cumulative = np.cumsum(area / area.sum())

    def plan(self, step: int, count: int, side_px: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of the crops of a step, int64 [count, 5]: picture, top, left, vertical and horizontal flip; and rate
        positions float32 [count] of `t_range`, one stratum of the rates each."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        places = np.empty((count, 5), np.int64)
        for i, pick in enumerate(np.searchsorted(self.cumulative, rng.random(count)).clip(0, len(self.pictures) - 1)):
            top, left = (int(rng.integers(0, s - side_px + 1)) for s in self.pictures[pick].shape[:2])
            places[i] = pick, top, left, *rng.integers(0, 2, 2)
        low, high = self.t_range
        t = low + (high - low) * ((rng.permutation(count) + rng.random(count)) / count)
        return places, t.astype(np.float32)

    def cut(self, places: np.ndarray, side_px: int) -> np.ndarray:
        """The crops at places as `plan` gives them, uint8 [count, 3, side, side]."""
        out = np.empty((len(places), 3, side_px, side_px), np.uint8)
        for i, (pick, top, left, vertical, horizontal) in enumerate(places):
            crop = self.pictures[pick][top : top + side_px, left : left + side_px]
            out[i] = crop[:: 1 - 2 * vertical, :: 1 - 2 * horizontal].transpose(2, 0, 1)
        return out

    def batch(self, step: int, count: int, side_px: int) -> tuple[np.ndarray, np.ndarray]:
        """The crops of a step, uint8 [count, 3, side, side], and their rate positions float32 [count]."""
        places, t = self.plan(step, count, side_px)
        return self.cut(places, side_px), t


class Feeder:
    """Has the crops of the next step ready, cut in a thread while this step computes.

    share: (rank, world): of the crops of a step, those that this process computes. waited_s: what `take` has waited.
    """

    def __init__(self, crops: Crops, cut: bool, share: tuple[int, int] = (0, 1)):
        self.crops, self.cut, self.share, self.waited_s = crops, cut, share, 0.0
        self._pool = ThreadPoolExecutor(1, "crops")
        self._next: tuple[tuple[int, int, int], Future] | None = None

    def take(self, step: int, count: int, side_px: int) -> tuple[np.ndarray, np.ndarray]:
        """(crops uint8 [n, 3, side, side], or places int64 [n, 5] if they are cut on a device; t float32 [n])."""
        start, wanted = time.perf_counter(), (step, count, side_px)
        if self._next is not None and self._next[0] == wanted:
            made = self._next[1].result()
        else:
            made = self._make(*wanted)
        following = (step + 1, count, side_px)
        self._next = following, self._pool.submit(self._make, *following)
        self.waited_s += time.perf_counter() - start
        return made

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(cancel_futures=True)

    def _make(self, step: int, count: int, side_px: int) -> tuple[np.ndarray, np.ndarray]:
        places, t = self.crops.plan(step, count, side_px)
        rank, world = self.share
        places, t = places[rank::world], t[rank::world]
        return self.crops.cut(places, side_px) if self.cut else places, t


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
