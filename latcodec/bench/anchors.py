"""The codecs people use today, through Pillow, set up as their makers mean them to be used; settings are all in sight.

A name may carry options: `webp:method=4`. Pictures go in upright, without metadata, gray ones as one plane. The rate is
the whole file; JPEG 2000 is the bare codestream, which spares it the 85 bytes of the box around it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from latcodec.errors import OptionError
from latcodec.settings import split_codec

if TYPE_CHECKING:
    import numpy as np

    from latcodec.images import Picture


@dataclass(frozen=True)
class Anchor:
    """One codec of Pillow. format, options: Pillow's; values: eight settings from small files to large ones.

    unit: quality (Pillow's number) or bpp (JPEG 2000 is told its size). library: of Pillow's features or a package.
    """

    name: str
    title: str
    format: str
    options: dict[str, object]
    values: tuple[float, ...]
    library: str
    unit: str = "quality"
    kind: str = "anchor"
    weights: str | None = None

    def label(self, value: float) -> str:
        """A setting in few characters: q30, or 0.25 bpp."""
        return f"q{value:g}" if self.unit == "quality" else f"{value:g} bpp"

    @property
    def settings(self) -> str:
        """Library, its version and every option, for the report."""
        options = ", ".join(f"{key} {value}" for key, value in self.options.items())
        return f"{self.library} {_version(self.library)} through Pillow {version('pillow')}; {options}"

    def encode(self, picture: Picture, value: float) -> bytes:
        """A whole file of an 8-bit picture at one setting; alpha and metadata stay behind."""
        from PIL import Image

        image = Image.fromarray(picture.pixels[:, :, 0].copy() if picture.gray else picture.pixels)
        options = dict(self.options)
        if self.format == "JPEG2000":
            planes = 1 if picture.gray else 3
            options |= {"quality_mode": "rates", "quality_layers": [8 * planes / value], "no_jp2": True}
            options["mct"] = int(options["mct"] and planes == 3)
            # OpenJPEG cannot halve a picture more often than its shorter side.
            options["num_resolutions"] = min(options["num_resolutions"], min(image.size).bit_length())
        else:
            options["quality"] = int(value)
        if self.format == "AVIF":
            options["max_threads"] = _threads
        elif self.format == "JXL":
            options["num_threads"] = _threads or -1
        buffer = io.BytesIO()
        image.save(buffer, self.format, **options)
        return buffer.getvalue()

    def decode(self, data: bytes) -> np.ndarray:
        """The picture of a file, uint8 [H, W, 3]."""
        import numpy as np
        from PIL import Image

        with Image.open(io.BytesIO(data), formats=[self.format]) as image:
            return np.asarray(image.convert("RGB"))

    def largest_within(self, picture: Picture, limit_bytes: float) -> bytes | None:
        """The largest file of at most so many bytes, found by bisecting the setting; None if there is none."""
        if self.unit == "quality":
            candidates: Sequence[float] = range(101 if self.format != "JPEG" else 96)
        else:
            candidates = [step / 1000 for step in range(1, 16001)]
        low, high, best = 0, len(candidates), None
        while low < high:
            middle = (low + high) // 2
            data = self.encode(picture, candidates[middle])
            if len(data) <= limit_bytes:
                low, best = middle + 1, data if best is None or len(data) >= len(best) else best
            else:
                high = middle
        return best


_JPEG = {"progressive": False, "optimize": False, "subsampling": "4:2:0"}
_QUALITIES = (5, 10, 20, 35, 50, 70, 80, 90)
# OpenJPEG so (irreversible wavelet and colour transform, one layer, one tile) is above its published Kodak curves. JPEG
# XL halves the picture where the quality is under 20, which is good at 1 and bad near 10.
_ALL = (
    Anchor("jpeg", "JPEG, 4:2:0", "JPEG", _JPEG, _QUALITIES, "libjpeg_turbo"),
    Anchor(
        "jpeg-progressive", "JPEG, progressive and optimised, 4:2:0", "JPEG",
        _JPEG | {"progressive": True, "optimize": True}, _QUALITIES, "libjpeg_turbo",
    ),
    Anchor("webp", "WebP, method 6", "WEBP", {"method": 6}, (0, 5, 15, 30, 50, 75, 85, 90), "webp"),
    Anchor(
        "avif", "AVIF, 4:4:4, speed 6", "AVIF", {"subsampling": "4:4:4", "speed": 6},
        (5, 15, 28, 42, 55, 66, 77, 87), "avif",
    ),
    Anchor(
        "jpeg2000", "JPEG 2000", "JPEG2000", {"irreversible": True, "mct": 1, "num_resolutions": 6},
        (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0), "jpg_2000", unit="bpp",
    ),
    Anchor("jpegxl", "JPEG XL, effort 7", "JXL", {"effort": 7}, (1, 20, 33, 48, 62, 75, 85, 91), "pillow-jxl-plugin"),
)  # fmt: skip
ANCHORS = {anchor.name: anchor for anchor in _ALL}
_threads = 0  # as Pillow counts: 0 is one for each processor


def set_threads(count: int) -> None:
    """CPU threads of the codecs that can use several: AVIF and JPEG XL."""
    global _threads
    from PIL import AvifImagePlugin

    _threads = AvifImagePlugin.DEFAULT_MAX_THREADS = count
    if _jpegxl_is_there():
        from pillow_jxl import JpegXLImagePlugin

        JpegXLImagePlugin.DECODE_THREADS = count


def by_name(name: str) -> Anchor:
    """The anchor of `name` or `name:key=value`, able to run here; raises OptionError."""
    plain, given = split_codec(name)
    if plain not in ANCHORS:
        raise OptionError(f"anchor {plain!r} is unknown; there are: {', '.join(ANCHORS)}")
    anchor = ANCHORS[plain]
    options = dict(anchor.options)
    for key, text in given.items():
        if key not in options:
            raise OptionError(f"anchor {plain}: option {key!r} is unknown; there are: {', '.join(options)}")
        kind = type(options[key])
        try:
            options[key] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            raise OptionError(f"anchor {plain}: option {key}={text}: not of type {kind.__name__}") from None
    _check_library(anchor)
    title = anchor.title.partition(",")[0] + "".join(f", {key} {text}" for key, text in given.items())
    return replace(anchor, name=name, title=title, options=options) if given else anchor


def default_names() -> list[str]:
    """Every anchor that can run here."""
    return [name for name in ANCHORS if name != "jpegxl" or _jpegxl_is_there()]


def _check_library(anchor: Anchor) -> None:
    from PIL import features

    if anchor.name == "jpegxl":
        if not _jpegxl_is_there():
            raise OptionError("anchor jpegxl needs Pillow's plug-in for it: pip install pillow-jxl-plugin")
    elif anchor.library != "libjpeg_turbo" and not features.check(anchor.library):
        raise OptionError(f"anchor {anchor.name}: this Pillow was built without {anchor.library}")


def _jpegxl_is_there() -> bool:
    try:
        import pillow_jxl  # noqa: F401  (registers the format)
    except ImportError:
        return False
    return True


def _version(library: str) -> str:
    from PIL import features

    try:
        return version(library) if "-" in library else features.version(library) or "of unknown version"
    except PackageNotFoundError:
        return "of unknown version"
