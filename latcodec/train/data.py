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


def _report_to_stderr(line: str) -> None:
    print(f"latcodec: {line}", file=sys.stderr)


def find(paths: list[str]) -> list[Path]:
    """Return every picture file in the given files and folders, sorted by name.

    Raises:
        ImageError: There is none, a path does not exist, or a folder cannot be read.
    """
    found: set[Path] = set()
    for path in map(Path, paths):
        if not path.exists():
            raise ImageError(f"{path}: no such file or folder")
        if not path.is_dir():
            found.add(path)
            continue
        for folder, _, names in os.walk(path, onerror=_refuse_folder, followlinks=True):
            found.update(Path(folder, name) for name in names if Path(name).suffix.lower() in PICTURE_SUFFIXES)
    if not found:
        raise ImageError(f"{', '.join(paths)}: no pictures found")
    return sorted(found, key=lambda p: (p.name, str(p)))  # one order for a resumed run, whatever the file system's


def _refuse_folder(error: OSError) -> None:
    raise ImageError(f"{error.filename}: {error.strerror}")


def load_one(path: Path, report: Callable[[str], None] = _report_to_stderr) -> np.ndarray | None:
    """Return a picture as `encode` would see it, uint8 [H, W, 3]; None, and a line that names it, if it is broken."""
    try:
        pixels = images.read_picture(path).pixels
    except (ImageError, OSError) as error:
        report(f"skipped: {error}")
        return None
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def is_validation(path: Path) -> bool:
    """Return whether a picture is held out: a fixed 2 % of file names, whatever else is in the folder."""
    return hashlib.sha256(path.stem.encode()).digest()[0] < 5


def sample(paths: list[str], about: int, min_side_px: int, limit: int | None = None) -> Iterator[np.ndarray]:
    """Yield training pictures, uint8 [H, W, 3], evenly spaced in the list of file names, of those that can be read.

    Args:
        paths: Files and folders.
        about: How many pictures; as every n-th file is taken, nearly twice as many may come.
        min_side_px: Smaller pictures are left out.
        limit: Files to look at, at most.

    Raises:
        ImageError: There is no picture.
    """
    training = [path for path in find(paths) if not is_validation(path)]
    for picture in map(load_one, training[:: max(1, len(training) // about)][:limit]):
        if picture is not None and min(picture.shape[:2]) >= min_side_px:
            yield picture


def free_memory() -> int:
    """Return the bytes that this process may still take without swapping."""
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


class PictureStore:
    """Decodes pictures and keeps them: in memory while there is room, then in a folder, memory-mapped.

    Args:
        cache: A folder to keep all pictures in.
        spill: Without `cache`, the folder to keep in what does not fit in `room_bytes`.
        room_bytes: How much memory pictures may take; half of what is free if None.
        report: Receives lines about what is skipped.
    """

    def __init__(
        self,
        cache: str | Path | None = None,
        spill: Path | None = None,
        room_bytes: int | None = None,
        report: Callable[[str], None] = _report_to_stderr,
    ):
        self.cache, self.spill, self.report = cache and Path(cache), spill, report
        self.room_bytes = free_memory() // 2 if room_bytes is None else room_bytes
        self._lock = threading.Lock()

    def load(self, path: Path) -> np.ndarray | None:
        """Return a picture, uint8 [H, W, 3]; None if it cannot be read.

        Raises:
            LatcodecError: The folder cannot be written.
        """
        if self.cache is not None:
            return self._load_through(self.cache, path)
        if self.spill is not None and self.room_bytes <= 0:
            return self._load_through(self.spill, path)
        pixels = load_one(path, self.report)
        if pixels is None or self.spill is None:
            return pixels
        with self._lock:
            self.room_bytes, before = self.room_bytes - pixels.nbytes, self.room_bytes
        if self.room_bytes <= 0 < before:
            self.report(f"the pictures are too large for memory: the others are kept decoded in {self.spill}")
        return pixels

    def _load_through(self, folder: Path, path: Path) -> np.ndarray | None:
        try:
            decoded = _path_in(folder, path)
            if not decoded.exists():
                pixels = load_one(path, self.report)
                if pixels is None:
                    return None
                _write_decoded(pixels, decoded)
            return np.load(decoded, mmap_mode="r")
        except OSError as error:
            self.report(f"skipped: {path}: {error.strerror}")
            return None


def _path_in(folder: Path, path: Path) -> Path:
    """Where a folder keeps a decoded picture; another path once the picture changes."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:32]
    return folder / f"{key}.npy"


def _write_decoded(pixels: np.ndarray, path: Path) -> None:
    """Write a decoded picture whole or not at all; raises LatcodecError."""
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            np.save(file, pixels)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise LatcodecError(f"{path.parent}: decoded pictures cannot be kept there: {error.strerror}") from None


def load(
    paths: list[str], min_side_px: int, store: PictureStore | None = None, threads: int | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Decode pictures to uint8 [H, W, 3]: training pictures and those held out.

    Broken pictures are named and too small ones counted in lines that `store.report` receives.

    Args:
        paths: Files and folders.
        min_side_px: Smaller pictures are left out.
        store: Where decoded pictures are kept; in memory if None.
        threads: How many pictures are decoded at a time; one a core if None.

    Raises:
        ImageError: No picture is left.
        LatcodecError: The folder of decoded pictures cannot be written.
    """
    store, found = store or PictureStore(), find(paths)
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        decoded = list(pool.map(store.load, found))
    readable = [(path, picture) for path, picture in zip(found, decoded, strict=True) if picture is not None]
    large = [(path, picture) for path, picture in readable if min(picture.shape[:2]) >= min_side_px]
    too_small = len(readable) - len(large)
    if too_small:
        store.report(f"{too_small} picture{'s' * (too_small != 1)} under {min_side_px} px skipped")
    training = [picture for path, picture in large if not is_validation(path)]
    held_out = [picture for path, picture in large if is_validation(path)]
    if not training:
        raise ImageError(f"{', '.join(paths)}: no readable picture of at least {min_side_px} px")
    return training, held_out


def digest(pictures: list[np.ndarray]) -> str:
    """Return what tells one list of pictures from another, from their shapes and a few of their samples."""
    hashed = hashlib.sha256()
    for picture in pictures:
        samples = picture[picture.shape[0] // 2, :: max(1, picture.shape[1] // 16)]
        hashed.update(f"{picture.shape}".encode() + samples.tobytes())
    return hashed.hexdigest()[:16]


class Crops:
    """Random crops with flips; pictures are drawn in proportion to their area.

    Args:
        pictures: uint8 [H, W, 3] each.
        seed: With the number of a step it decides the crops of that step.
        t_range: The part of the axis t = rate index / 255 that rates are drawn from.
    """

    def __init__(self, pictures: list[np.ndarray], seed: int, t_range: tuple[float, float] = (0.0, 1.0)):
        self.pictures, self.seed, self.t_range = pictures, seed, t_range
        area = np.array([p.shape[0] * p.shape[1] for p in pictures], np.float64)
        self.cumulative = np.cumsum(area / area.sum())

    def plan(self, step: int, count: int, side_px: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the places of the crops of a step and their rate positions.

        Returns:
            int64 [count, 5]: picture, top, left, vertical flip, horizontal flip; and float32 [count] of `t_range`, one
            in each of `count` equal parts of it.
        """
        rng = np.random.Generator(np.random.Philox(key=[self.seed, step]))
        places = np.empty((count, 5), np.int64)
        for i, pick in enumerate(np.searchsorted(self.cumulative, rng.random(count)).clip(0, len(self.pictures) - 1)):
            top, left = (int(rng.integers(0, s - side_px + 1)) for s in self.pictures[pick].shape[:2])
            places[i] = pick, top, left, *rng.integers(0, 2, 2)
        low, high = self.t_range
        t = low + (high - low) * ((rng.permutation(count) + rng.random(count)) / count)
        return places, t.astype(np.float32)

    def cut(self, places: np.ndarray, side_px: int) -> np.ndarray:
        """Return the crops at places as `plan` gives them, uint8 [count, 3, side, side]."""
        out = np.empty((len(places), 3, side_px, side_px), np.uint8)
        for i, (pick, top, left, vertical, horizontal) in enumerate(places):
            crop = self.pictures[pick][top : top + side_px, left : left + side_px]
            out[i] = crop[:: 1 - 2 * vertical, :: 1 - 2 * horizontal].transpose(2, 0, 1)
        return out

    def batch(self, step: int, count: int, side_px: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the crops of a step, uint8 [count, 3, side, side], and their rate positions float32 [count]."""
        places, t = self.plan(step, count, side_px)
        return self.cut(places, side_px), t


class Feeder:
    """Has the crops of the next step ready, cut in a thread while this step computes.

    Args:
        crops: Training crops.
        cut: Whether crops are cut here; otherwise their places are given.
        share: (rank, world): of the crops of a step, those that this process computes.

    Attributes:
        waited_s: Seconds that `take` has waited so far.
    """

    def __init__(self, crops: Crops, cut: bool, share: tuple[int, int] = (0, 1)):
        self.crops, self.cut, self.share, self.waited_s = crops, cut, share, 0.0
        self._pool = ThreadPoolExecutor(1, "crops")
        self._next: tuple[tuple[int, int, int], Future] | None = None

    def take(self, step: int, count: int, side_px: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the crops of a step, uint8 [n, 3, side, side], or their places, int64 [n, 5]; and t float32 [n]."""
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
    """All pictures as one tensor on a device, where crops are cut: nothing else keeps a GPU busy.

    Args:
        pictures: uint8 [H, W, 3] each.
        device: A torch.device.
    """

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
        """Return the crops at places as `Crops.plan` gives them, float32 [count, 3, side, side] in 0..1."""
        import torch

        pick, top, left, vertical, horizontal = (places[:, i, None] for i in range(5))
        along = torch.arange(side_px, device=places.device)[None]
        rows = top + torch.where(vertical > 0, side_px - 1 - along, along)
        columns = left + torch.where(horizontal > 0, side_px - 1 - along, along)
        start = self.starts[pick] + 3 * rows * self.widths[pick]
        index = start[:, :, None, None] + 3 * columns[:, None, :, None] + torch.arange(3, device=places.device)
        return (self.flat[index].float() / 255).permute(0, 3, 1, 2)


def validation_crops(pictures: list[np.ndarray], side_px: int, limit: int = 16) -> np.ndarray:
    """Return the centres of up to `limit` pictures, uint8 [n, 3, side, side]."""
    chosen = pictures[:: max(1, len(pictures) // limit)][:limit]
    crops = []
    for picture in chosen:
        top, left = ((s - side_px) // 2 for s in picture.shape[:2])
        crops.append(picture[top : top + side_px, left : left + side_px].transpose(2, 0, 1))
    return np.stack(crops)
