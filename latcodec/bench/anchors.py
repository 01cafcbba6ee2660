"""The codecs in use today, through Pillow, set up as their makers intend. A new anchor is one row of the table `_ROWS`.

A name may carry options: `webp:method=4`. Pictures are coded upright and without metadata, gray ones with one channel.
The rate is that of the whole file. JPEG 2000 is the bare codestream, without the 85 bytes of the box around it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from latcodec.errors import OptionError
from latcodec.settings import split_codec

if TYPE_CHECKING:
    import numpy as np

    from latcodec.images import Picture


@dataclass(frozen=True)
class Anchor:
    """One codec of Pillow with its options.

    Attributes:
        name: Name on the command line, with the options that a person gave.
        title: Name and main options for tables.
        format: Pillow's name of the format.
        options: Options of Pillow's encoder that are the same at every setting.
        values: Eight settings, from small files to large ones.
        library: The library, by its name among Pillow's features or as a package.
        setting_options: Function of an anchor, a picture and a setting that returns all options of Pillow's encoder.
        search_values: All settings that `largest_within` may take, from small files to large ones.
        unit: What a setting is: "quality" or "bpp".
        plugin: Module that adds the format to Pillow; None for a format of Pillow itself.
        kind: "anchor", as opposed to "codec".
        weights: None, because an anchor has no weights.
    """

    name: str
    title: str
    format: str
    options: dict[str, object]
    values: tuple[float, ...]
    library: str
    setting_options: Callable[[Anchor, Picture, float], dict[str, object]]
    search_values: Sequence[float] = range(101)
    unit: str = "quality"
    plugin: str | None = None
    kind: str = "anchor"
    weights: str | None = None

    @property
    def settings(self) -> str:
        """Library, its version and every option, for the report."""
        options = ", ".join(f"{key} {value}" for key, value in self.options.items())
        return f"{self.library} {_version(self.library)} through Pillow {version('pillow')}; {options}"

    def setting_label(self, value: float) -> str:
        """Return a setting in few characters: q30, or 0.25 bpp."""
        return f"q{value:g}" if self.unit == "quality" else f"{value:g} bpp"

    def is_available(self) -> bool:
        """Return whether this installation can run the anchor."""
        from PIL import features

        if self.plugin is not None:
            return _can_import(self.plugin)
        return self.library == "libjpeg_turbo" or bool(features.check(self.library))

    def encode(self, picture: Picture, value: float) -> bytes:
        """Return a whole file of an 8-bit picture, without alpha and metadata.

        Args:
            picture: The picture.
            value: The setting, in `unit`.
        """
        from PIL import Image

        image = Image.fromarray(picture.pixels[:, :, 0].copy() if picture.gray else picture.pixels)
        buffer = io.BytesIO()
        image.save(buffer, self.format, **self.setting_options(self, picture, value))
        return buffer.getvalue()

    def decode(self, data: bytes) -> np.ndarray:
        """Return the picture of a file, uint8 [H, W, 3]."""
        import numpy as np
        from PIL import Image

        with Image.open(io.BytesIO(data), formats=[self.format]) as image:
            return np.asarray(image.convert("RGB"))

    def largest_within(self, picture: Picture, limit_bytes: float) -> bytes | None:
        """Return the largest file of at most so many bytes, by bisection of the setting; None if there is none."""
        low, high, best = 0, len(self.search_values), None
        while low < high:
            middle = (low + high) // 2
            data = self.encode(picture, self.search_values[middle])
            if len(data) <= limit_bytes:
                low, best = middle + 1, data if best is None or len(data) >= len(best) else best
            else:
                high = middle
        return best


def _by_quality(anchor: Anchor, picture: Picture, quality: float) -> dict[str, object]:
    return anchor.options | {"quality": int(quality)}


def _avif(anchor: Anchor, picture: Picture, quality: float) -> dict[str, object]:
    return anchor.options | {"quality": int(quality), "max_threads": _thread_count}


def _jpeg_xl(anchor: Anchor, picture: Picture, quality: float) -> dict[str, object]:
    return anchor.options | {"quality": int(quality), "num_threads": _thread_count or -1}


def _jpeg_2000(anchor: Anchor, picture: Picture, bpp: float) -> dict[str, object]:
    channels = 1 if picture.gray else 3
    shorter_side_px = min(picture.pixels.shape[:2])
    return anchor.options | {
        "quality_mode": "rates",
        "quality_layers": [8 * channels / bpp],
        "no_jp2": True,
        "mct": int(anchor.options["mct"] and channels == 3),
        # OpenJPEG cannot halve a picture more often than its shorter side allows.
        "num_resolutions": min(anchor.options["num_resolutions"], shorter_side_px.bit_length()),
    }


_JPEG = {"progressive": False, "optimize": False, "subsampling": "4:2:0"}
_JPEG_QUALITIES = (5, 10, 20, 35, 50, 70, 80, 90)
# The options of OpenJPEG (irreversible wavelet and colour transform, one layer, one tile) give results above its
# published Kodak curves. JPEG XL halves the picture at qualities under 20, which is good at 1 and bad near 10.
_ROWS = (
    Anchor("jpeg", "JPEG, 4:2:0", "JPEG", _JPEG, _JPEG_QUALITIES, "libjpeg_turbo", _by_quality, range(96)),
    Anchor("jpeg-progressive", "JPEG, progressive and optimised, 4:2:0", "JPEG",
           _JPEG | {"progressive": True, "optimize": True}, _JPEG_QUALITIES, "libjpeg_turbo", _by_quality, range(96)),
    Anchor("webp", "WebP, method 6", "WEBP", {"method": 6}, (0, 5, 15, 30, 50, 75, 85, 90), "webp", _by_quality),
    Anchor("avif", "AVIF, 4:4:4, speed 6", "AVIF", {"subsampling": "4:4:4", "speed": 6},
           (5, 15, 28, 42, 55, 66, 77, 87), "avif", _avif),
    Anchor("jpeg2000", "JPEG 2000", "JPEG2000", {"irreversible": True, "mct": 1, "num_resolutions": 6},
           (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0), "jpg_2000", _jpeg_2000,
           [step / 1000 for step in range(1, 16001)], unit="bpp"),
    Anchor("jpegxl", "JPEG XL, effort 7", "JXL", {"effort": 7}, (1, 20, 33, 48, 62, 75, 85, 91),
           "pillow-jxl-plugin", _jpeg_xl, plugin="pillow_jxl"),
)  # fmt: skip
ANCHORS = {anchor.name: anchor for anchor in _ROWS}
_thread_count = 0  # As Pillow counts: 0 is one thread for each processor.


def set_threads(count: int) -> None:
    """Set the number of CPU threads of the anchors that can use several: AVIF and JPEG XL."""
    global _thread_count
    from PIL import AvifImagePlugin

    _thread_count = AvifImagePlugin.DEFAULT_MAX_THREADS = count
    if ANCHORS["jpegxl"].is_available():
        from pillow_jxl import JpegXLImagePlugin

        JpegXLImagePlugin.DECODE_THREADS = count


def by_name(name: str) -> Anchor:
    """Return the anchor of `name` or `name:key=value,key=value`.

    Raises:
        OptionError: The name or an option is unknown, or the anchor cannot run here.
    """
    plain_name, given = split_codec(name)
    if plain_name not in ANCHORS:
        raise OptionError(f"anchor {plain_name!r} is unknown; there are: {', '.join(ANCHORS)}")
    anchor = ANCHORS[plain_name]
    options = _with_options(anchor, given)
    if not anchor.is_available():
        if anchor.plugin is not None:
            raise OptionError(f"anchor {plain_name} needs Pillow's plug-in for it: pip install {anchor.library}")
        raise OptionError(f"anchor {plain_name}: this Pillow was built without {anchor.library}")
    title = anchor.title.partition(",")[0] + "".join(f", {key} {text}" for key, text in given.items())
    return replace(anchor, name=name, title=title, options=options) if given else anchor


def available_names() -> list[str]:
    """Return the names of the anchors that can run here."""
    return [name for name, anchor in ANCHORS.items() if anchor.is_available()]


def _with_options(anchor: Anchor, given: dict[str, str]) -> dict[str, object]:
    """Return an anchor's options with those that a person gave as text; raises OptionError."""
    options = dict(anchor.options)
    for key, text in given.items():
        if key not in options:
            raise OptionError(f"anchor {anchor.name}: option {key!r} is unknown; there are: {', '.join(options)}")
        kind = type(options[key])
        try:
            options[key] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            raise OptionError(f"anchor {anchor.name}: option {key}={text}: not of type {kind.__name__}") from None
    return options


def _can_import(module: str) -> bool:
    try:
        import_module(module)  # Importing the plug-in registers its format.
    except ImportError:
        return False
    return True


def _version(library: str) -> str:
    from PIL import features

    try:
        return version(library) if "-" in library else features.version(library) or "of unknown version"
    except PackageNotFoundError:
        return "of unknown version"
