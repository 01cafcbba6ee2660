"""Measures one codec on one picture at one setting: rate, distortion, time and memory.

The rate is that of the whole file. The quality is that of the decoded 8-bit RGB picture. Times are those of whole calls
in a warm process, from the picture in memory to the file in memory and back; work on a GPU is waited for. Memory is
the most that a call held beyond what the process held before, in an untimed run at the largest setting. A round trip
that fails, or whose repetitions give different files, is a row with a text in `bugs` and is never dropped.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace

import numpy as np

from latcodec import metrics
from latcodec.bench import timing
from latcodec.bench.contenders import Contender, Learned, Settings
from latcodec.bench.subjects import Subject
from latcodec.errors import ImageError
from latcodec.images import Picture

# Stages of an encoder that are not counted as quantisation: the entropy clock measures the coder, "verify" has a column
# of its own, and networks are what remains.
_NOT_QUANTISATION = {"analysis", "hyper", "entropy", "verify"}


@dataclass(frozen=True)
class Row:
    """One picture, one codec, one setting. None stands for what is unknown, undefined or, for psnr_db, infinite.

    Attributes:
        file: Name of the picture.
        codec: Name of the codec or anchor.
        kind: "codec" or "anchor".
        setting: The setting as text.
        value: The setting: lambda of a codec, quality or bits per pixel of an anchor.
        weights: Id of the weights file, hexadecimal.
        width_px: Width of the picture.
        height_px: Height of the picture.
        bytes: Size of the whole file.
        bpp: Bits per pixel of the whole file.
        estimated_bits: Ideal code length by the tables of the codec.
        gap_bytes: Size of the file beyond the estimate.
        psnr_db: PSNR over all samples.
        mse_rgb: Mean squared error of each channel, in sample units of 0 ... 255.
        mean_error_rgb: Mean of decoded minus original of each channel, in the same units.
        ms_ssim: MS-SSIM.
        ssim: SSIM.
        encode_s: Seconds of encoding: networks, quantisation, entropy coding and verification together.
        decode_s: Seconds of decoding.
        encode_networks_s: What remains of `encode_s` without the next three.
        encode_quantise_s: Seconds of quantisation and search.
        encode_entropy_s: Seconds inside the entropy encoder.
        encode_verify_s: Seconds in which the encoder decodes its own file.
        decode_networks_s: What remains of `decode_s` without entropy decoding.
        decode_entropy_s: Seconds inside the entropy decoder.
        read_s: Seconds of reading the picture file, which no other column holds.
        peak_memory_bytes: Most memory of one call beyond what the process held before.
        device_memory_bytes: The same of the GPU.
        bugs: What went wrong; empty for a sound row.
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


@dataclass(frozen=True)
class RoundTrip:
    """One encoding and decoding.

    Attributes:
        data: The file.
        decoded: The decoded picture, uint8 [H, W, 3].
        seconds: Seconds by the name of their column in `Row`.
    """

    data: bytes
    decoded: np.ndarray
    seconds: dict[str, float]


def blank_row(contender: Contender, subject: Subject, value: float) -> Row:
    """Return a row that names a measurement and holds no result."""
    label, (width_px, height_px) = contender.setting_label(value), (subject.width_px, subject.height_px)
    return Row(subject.file, contender.name, contender.kind, label, value, contender.weights, width_px, height_px)


def warm_up(contender: Contender, settings: Settings) -> None:
    """Code a small picture, so that the first measurement does not include loading; failures show in the rows."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    try:
        contender.decode(contender.encode(Picture(pixels, False), settings.values_of(contender)[0]))
    except Exception:
        return


def memory_of(contender: Contender, picture: Picture, settings: Settings) -> timing.Memory:
    """Return the most memory that a round trip at the largest setting holds; empty if the round trip fails."""
    try:
        with timing.peak_memory(settings.device) as memory:
            contender.decode(contender.encode(picture, settings.values_of(contender)[-1]))
    except Exception:  # The rows name the failure.
        return timing.Memory()
    return memory


def measure(contender: Contender, subject: Subject, picture: Picture, value: float, settings: Settings) -> Row:
    """Encode, decode and compare, as often as the settings say.

    Every exception but an interrupt becomes the text in `bugs`, because a failure of a codec is a result of a bench.
    """
    row = blank_row(contender, subject, value)
    bugs: list[str] = []
    trips: list[RoundTrip] = []
    try:
        for _ in range(settings.reps):
            trips.append(_round_trip(contender, picture, value, settings.device))
            if trips[-1].data != trips[0].data:
                bugs.append("two runs of the encoder gave different files")
        size_bytes = len(trips[-1].data)
        bpp = 8 * size_bytes / (row.width_px * row.height_px)
        row = replace(row, bytes=size_bytes, bpp=bpp, **_estimate(contender, size_bytes))
        row = replace(row, **_quality(picture.pixels, trips[-1].decoded))
        medians = {name: statistics.median(trip.seconds[name] for trip in trips) for name in trips[0].seconds}
        row = replace(row, **medians)
    except Exception as error:
        bugs.append(f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
    return replace(row, bugs="; ".join(dict.fromkeys(bugs)))


def _round_trip(contender: Contender, picture: Picture, value: float, device: str) -> RoundTrip:
    with timing.entropy_clock() as clock:
        start = timing.now(device)
        data = contender.encode(picture, value)
        encoded = timing.now(device)
        entropy_s, verify_entropy_s = clock.encode_s, clock.decode_s
        decode_start = timing.now(device)
        decoded = contender.decode(data)
        end = timing.now(device)
    seconds = {"encode_s": encoded - start, "decode_s": end - decode_start}
    if isinstance(contender, Learned):
        stages = contender.last.seconds
        verify_s = stages.get("verify", 0.0)
        quantise_s = sum(stage_s for name, stage_s in stages.items() if name not in _NOT_QUANTISATION)
        seconds |= {"encode_entropy_s": entropy_s, "encode_verify_s": verify_s, "encode_quantise_s": quantise_s}
        seconds["encode_networks_s"] = max(0.0, seconds["encode_s"] - entropy_s - verify_s - quantise_s)
        seconds["decode_entropy_s"] = clock.decode_s - verify_entropy_s
        seconds["decode_networks_s"] = seconds["decode_s"] - seconds["decode_entropy_s"]
    return RoundTrip(data, decoded, seconds)


def _quality(original: np.ndarray, decoded: np.ndarray) -> dict[str, object]:
    """Return the columns of quality; raises ImageError for a picture of another size."""
    if decoded.shape != original.shape:
        shapes = ["x".join(str(side) for side in array.shape[1::-1]) for array in (original, decoded)]
        raise ImageError(f"{shapes[0]} came back as {shapes[1]}")
    mse_rgb, mean_error_rgb = metrics.errors_rgb(original, decoded)
    psnr_db = metrics.psnr_db(original, decoded)
    return {
        "psnr_db": psnr_db if math.isfinite(psnr_db) else None,
        "mse_rgb": mse_rgb,
        "mean_error_rgb": mean_error_rgb,
        "ms_ssim": metrics.ms_ssim(original, decoded),
        "ssim": metrics.ssim(original, decoded),
    }


def _estimate(contender: Contender, size_bytes: int) -> dict[str, float]:
    if not isinstance(contender, Learned):
        return {}
    bits = float(contender.last.estimated_bits)
    return {"estimated_bits": bits, "gap_bytes": size_bytes - bits / 8}
