"""What an encode is asked and what it answers. Part of the room `codec`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from latcodec import backends, rates
from latcodec import rate_control as codec_targets
from latcodec.errors import OptionError

DEFAULT_LAMBDA = 1.0


@dataclass(frozen=True)
class EncodeSettings:
    """How to encode. At most one of lmbda (0.1..20, 41 with some codecs), quality (1..100), bpp, psnr (dB) and
    size_bytes; default lambda 1.

    codec: its name, with options if any: "name:key=value,key=value". device: auto, cpu or cuda. weights: a file or
    folder, None for the usual places. strip leaves ICC, EXIF, XMP out.
    """

    codec: str = backends.DEFAULT
    lmbda: float | None = None
    quality: float | None = None
    bpp: float | None = None
    psnr: float | None = None
    size_bytes: int | None = None
    device: str = "auto"
    weights: str | None = None
    verify: bool = True
    strip: bool = False

    def __post_init__(self) -> None:
        given = [n for n in ("lmbda", "quality", "bpp", "psnr", "size_bytes") if getattr(self, n) is not None]
        if len(given) > 1:
            raise OptionError(f"{' and '.join(given)} exclude each other; give one")
        if self.lmbda is not None or self.quality is not None:
            _ = self.rate_index  # raises OptionError out of range
        for name in {"bpp", "psnr", "size_bytes"} & set(given):
            if not 0 < getattr(self, name) < math.inf:
                raise OptionError(f"{name} {getattr(self, name)}: not a positive number")

    @property
    def rate_index(self) -> int | None:
        """The rate index that lambda or quality say, None if it has to be searched."""
        if self.bpp is not None or self.psnr is not None or self.size_bytes is not None:
            return None
        lmbda = rates.lambda_of_quality(self.quality) if self.quality is not None else self.lmbda
        return rates.index_of_lambda(DEFAULT_LAMBDA if lmbda is None else lmbda, self.backend.lowest_index)

    @property
    def backend(self) -> backends.Backend:
        """The row of the codec's table; raises OptionError."""
        return backends.by_name(backends.split_name(self.codec)[0])

    def target(self, pixels: int) -> codec_targets.Target | None:
        """What bpp, psnr or size ask of a picture of so many pixels, None without one of them."""
        if self.rate_index is not None:
            return None
        limit_bytes = self.size_bytes if self.bpp is None else self.bpp * pixels / 8
        return codec_targets.Target(limit_bytes, self.psnr)

    def missed(self, trial: codec_targets.Trial, pixels: int) -> str:
        """What a picture of so many pixels could not reach, and what it did."""
        size, bpp = f"{len(trial.data)} bytes", f"{8 * len(trial.data) / pixels:.3g} bpp"
        if self.psnr is not None:
            return f"{self.psnr:g} dB cannot be reached; this is the best quality: {trial.psnr_db:.2f} dB, {size}"
        if self.bpp is not None:
            return f"{self.bpp:g} bpp cannot be reached; this is the smallest file: {bpp}, {size}"
        asked = f"{self.size_bytes} byte{'s' if self.size_bytes != 1 else ''}"
        return f"{asked} cannot be reached; this is the smallest file: {size}"


@dataclass(frozen=True)
class Encoded:
    """The file's bytes and how it came about. bpp is that of `data`; estimated_bits is the tables' ideal code length.

    psnr_db: of the decoded colour samples, None unless a search needed it. seconds by stage. trials: encodes done.
    missed: which bpp, psnr or size cannot be reached, and what was instead, which is a note too; or "".
    """

    data: bytes
    rate_index: int
    lmbda: float
    bpp: float
    estimated_bits: float
    psnr_db: float | None
    seconds: dict[str, float]
    trials: int
    notes: tuple[str, ...]
    details: dict[str, object]
    missed: str = ""
