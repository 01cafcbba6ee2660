"""Rate, distortion, time and memory of the codecs beside those in use today, on real files, in one run.

Rate is the whole file. Quality is of the 8-bit RGB picture that came back. Times are of whole calls in a warm process,
from the picture in memory to the file in memory and back, the median of the repetitions; CUDA is waited for. Memory is
what a call held at most beyond the process before it, in an untimed run at the largest setting. A round trip that
fails, differs between repetitions or drifts is a row with a text in `bugs`, and is never dropped.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from latcodec import images, metrics
from latcodec.bench import kodak
from latcodec.bench import timing as stopwatch
from latcodec.bench.contenders import Contender, Learned, Settings
from latcodec.errors import ImageError, OptionError

PHOTOGRAPHS = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png")  # of scikit-image
_NOT_NETWORKS = {"analysis", "hyper", "entropy"}  # stages of an encoder that the clock and the rest account for


@dataclass(frozen=True)
class Subject:
    """One picture to measure on. file: its name in the tables; sha256: of the file; kodak: kodim01 ... or None."""

    file: str
    path: Path
    width_px: int
    height_px: int
    gray: bool
    sha256: str
    kodak: str | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One picture, one codec, one setting. None: not known, not defined or, for psnr_db, infinite.

    estimated_bits: the tables' ideal code length, gap_bytes the file beyond it. mse_rgb and mean_error_rgb in 255ths,
    decoded minus original. encode_s is networks, quantise, entropy and verify together; read_s, the picture file, is
    not in it. weights: id of the weights file, hexadecimal. bugs: what went wrong, or nothing.
    """

    file: str
    codec: str
    kind: str
    setting: str
    value: float
    weights: str | None
    width_px: int
    height_px: int
    bytes: int | None = None
    bpp: float | None = None
    estimated_bits: float | None = None
    gap_bytes: float | None = None
    psnr_db: float | None = None
    mse_rgb: list[float] | None = None
    mean_error_rgb: list[float] | None = None
    ms_ssim: float | None = None
    ssim: float | None = None
    encode_s: float | None = None
    decode_s: float | None = None
    encode_networks_s: float | None = None
    encode_quantise_s: float | None = None
    encode_entropy_s: float | None = None
    encode_verify_s: float | None = None
    decode_networks_s: float | None = None
    decode_entropy_s: float | None = None
    read_s: float | None = None
    peak_memory_bytes: int | None = None
    device_memory_bytes: int | None = None
    bugs: str = ""


def photographs() -> list[Path]:
    """The photographs that come with scikit-image, as files."""
    from importlib.util import find_spec

    found = find_spec("skimage")
    if found is None or found.origin is None:
        raise OptionError("name pictures or folders; the photographs of scikit-image are not installed")
    return [path for name in PHOTOGRAPHS if (path := Path(found.origin).parent / "data" / name).exists()]


def inspect(path: Path, file: str) -> Subject:
    """Read a picture once, to know that it can be; raises ImageError, for more than 8 bits too."""
    picture = images.read_picture(path)
    if picture.pixels.dtype.itemsize != 1:
        raise ImageError(f"{path}: 16 bits; codecs are compared at 8 bits")
    notes = picture.notes + (("alpha left out",) if picture.alpha is not None else ())
    height, width = picture.pixels.shape[:2]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Subject(file, path, width, height, picture.gray, digest, kodak.name_of(picture.pixels), notes)


def read(path: Path) -> images.Picture:
    """Colour or gray alone: what every codec and anchor can carry."""
    picture = images.read_picture(path)
    return images.Picture(picture.pixels, picture.gray)


def run(
    subjects: Sequence[Subject],
    contenders: Sequence[Contender],
    settings: Settings,
    finished: Callable[[Contender, Subject, float], Row | None] = lambda *_: None,
) -> Iterator[Row]:
    """Rows by contender, picture and setting, each as soon as it is there.

    finished: gives the row of an earlier run, or None; what is finished is not measured again.
    """
    for contender in contenders:
        cold = True
        for subject in subjects:
            rows = {value: finished(contender, subject, value) for value in settings.values_of(contender)}
            if None in rows.values() and cold:
                warm(contender, settings)
                cold = False
            yield from _rows(contender, subject, rows, settings)


def _rows(contender: Contender, subject: Subject, rows: dict[float, Row | None], settings: Settings) -> Iterator[Row]:
    """The rows of one picture; those that are None are measured."""
    picture, read_s, memory = None, None, stopwatch.Memory()
    for value, row in rows.items():
        if row is None and picture is None:
            start = stopwatch.now()
            try:
                picture = read(subject.path)
            except ImageError as error:  # it was there before
                yield replace(blank(contender, subject, value), bugs=f"ImageError: {error}")
                continue
            read_s = stopwatch.now() - start
            memory = memory_of(contender, picture, settings)
        if row is None:
            row = measure(contender, subject, picture, value, settings)
            row = replace(
                row, read_s=read_s, peak_memory_bytes=memory.process_bytes, device_memory_bytes=memory.device_bytes
            )
        yield row


def warm(contender: Contender, settings: Settings) -> None:
    """Load what the first call would load, on a few pixels; what goes wrong here comes back in the rows."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    try:
        contender.decode(contender.encode(images.Picture(pixels, False), settings.values_of(contender)[0]))
    except Exception:
        return


def memory_of(contender: Contender, picture: images.Picture, settings: Settings) -> stopwatch.Memory:
    """What one round trip at the largest setting holds; the larger of encoding and decoding."""
    try:
        with stopwatch.peak_memory(settings.device) as memory:
            contender.decode(contender.encode(picture, settings.values_of(contender)[-1]))
    except Exception:  # the rows will say it
        return stopwatch.Memory()
    return memory


def blank(contender: Contender, subject: Subject, value: float) -> Row:
    """A row that says what was to be measured."""
    label, (width, height) = contender.label(value), (subject.width_px, subject.height_px)
    return Row(subject.file, contender.name, contender.kind, label, value, contender.weights, width, height)


def measure(contender: Contender, subject: Subject, picture: images.Picture, value: float, settings: Settings) -> Row:
    """Encode, decode and compare once a repetition. Whatever is raised but an interrupt becomes the row's bug."""
    row, original = blank(contender, subject, value), picture.pixels
    bugs: list[str] = []
    times: list[dict[str, float]] = []
    data = None
    try:
        for _ in range(settings.reps):
            before = data
            data, decoded, parts = _once(contender, picture, value, settings.device)
            times.append(parts)
            if before is not None and before != data:
                bugs.append("two runs of the encoder gave different files")
        bpp = 8 * len(data) / (row.width_px * row.height_px)
        row = replace(row, bytes=len(data), bpp=bpp, **_estimate(contender, len(data)))
        if decoded.shape != original.shape:
            shapes = ["x".join(str(side) for side in array.shape[1::-1]) for array in (original, decoded)]
            raise ImageError(f"{shapes[0]} came back as {shapes[1]}")
        mse, drift = metrics.errors_rgb(original, decoded)
        psnr = metrics.psnr_db(original, decoded)
        similarity = {"ms_ssim": metrics.ms_ssim(original, decoded), "ssim": metrics.ssim(original, decoded)}
    except Exception as error:  # a bug of a codec is a result here
        bugs.append(f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
        return replace(row, bugs="; ".join(dict.fromkeys(bugs)))
    medians = {name: statistics.median(part[name] for part in times) for name in times[0]}
    return replace(
        row,
        psnr_db=psnr if math.isfinite(psnr) else None,
        mse_rgb=mse,
        mean_error_rgb=drift,
        bugs="; ".join(dict.fromkeys(bugs)),
        **similarity,
        **medians,
    )


def _once(contender: Contender, picture: images.Picture, value: float, device: str):
    """(file, decoded pixels, seconds by part) of one round trip."""
    with stopwatch.entropy_clock() as clock:
        start = stopwatch.now(device)
        data = contender.encode(picture, value)
        encoded = stopwatch.now(device)
        entropy_s, check_s = clock.encode_s, clock.decode_s
        again = stopwatch.now(device)
        decoded = contender.decode(data)
        end = stopwatch.now(device)
    parts = {"encode_s": encoded - start, "decode_s": end - again}
    if isinstance(contender, Learned):
        stages = contender.last.seconds
        verify = stages.get("verify", 0.0)
        quantise = sum(v for name, v in stages.items() if name not in _NOT_NETWORKS | {"verify"})
        parts |= {"encode_entropy_s": entropy_s, "encode_verify_s": verify, "encode_quantise_s": quantise}
        parts["encode_networks_s"] = max(0.0, parts["encode_s"] - entropy_s - verify - quantise)
        parts["decode_entropy_s"] = clock.decode_s - check_s
        parts["decode_networks_s"] = parts["decode_s"] - parts["decode_entropy_s"]
    return data, decoded, parts


def _estimate(contender: Contender, size_bytes: int) -> dict[str, float]:
    if not isinstance(contender, Learned):
        return {}
    bits = float(contender.last.estimated_bits)
    return {"estimated_bits": bits, "gap_bytes": size_bytes - bits / 8}


class Pictures:
    """Pixels for the report: originals by their names in the tables, and files of a given size decoded."""

    def __init__(self, subjects: Sequence[Subject], contenders: Sequence[Contender]):
        self._paths = {subject.file: subject.path for subject in subjects}
        self._contenders = {contender.name: contender for contender in contenders}

    def original(self, file: str) -> np.ndarray:
        """uint8 [H, W, 3]."""
        return read(self._paths[file]).pixels

    def coded(self, file: str, name: str, bpp: float) -> tuple[np.ndarray, int] | None:
        """The largest file of a codec or anchor of at most `bpp` bits a pixel, decoded, and its bytes; or None."""
        picture, contender = read(self._paths[file]), self._contenders[name]
        try:
            data = contender.largest_within(picture, bpp * picture.pixels.shape[0] * picture.pixels.shape[1] / 8)
            return None if data is None else (contender.decode(data), len(data))
        except Exception:  # the rows tell of bugs; a crop is left out
            return None
