"""What a person asks of an encode: settings, codec strings `vbq:prior=hyper`, options of codecs."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path

from latcodec import backends, rates, weights
from latcodec.backends.base import Codec
from latcodec.errors import OptionError

DEFAULT_LAMBDA = 1.0
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def split_codec(text: str) -> tuple[str, dict[str, str]]:
    """Split `name` or `name:key=value,key=value` into the codec's name and its options; raises OptionError."""
    name, colon, rest = text.partition(":")
    options: dict[str, str] = {}
    for part in rest.split(",") if colon else []:
        key, equals, value = part.partition("=")
        if not (key.strip() and equals and value.strip()):
            raise OptionError(f"codec {text!r}: {part!r} is not of the form key=value")
        options[key.strip()] = value.strip()
    return name, options


def read_options(options_class: type, given: dict[str, str]) -> object:
    """Return a codec's options from texts, each read as the type of its field's default; raises OptionError."""
    known = {field.name: field for field in fields(options_class)}
    values: dict[str, object] = {}
    for key, text in given.items():
        if key not in known:
            raise OptionError(f"option {key!r} is unknown; there are: {', '.join(known) or 'none for this codec'}")
        kind = type(known[key].default)
        try:
            values[key] = _BOOLEANS[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            raise OptionError(f"option {key}={text}: not of type {kind.__name__}") from None
    return options_class(**values)


def choose_codec(codec: str | None, weights_path: str | None) -> str:
    """Return the codec to encode with: the one that is named, else that of a weights file, else the default.

    Args:
        codec: A codec's name, with options if any; None if nobody named one.
        weights_path: The argument of --weights, a file or a folder; None for the usual places.

    Raises:
        OptionError: The weights file belongs to another codec.
        WeightsError: The file holds no weights.
    """
    if weights_path is None or not Path(weights_path).is_file():
        return codec or backends.DEFAULT
    stored = weights.load_file(Path(weights_path)).backend
    named = stored if codec is None else split_codec(codec)[0]
    if named != stored:
        raise OptionError(
            f"{weights_path}: weights of {stored}, not of {named}; name codec {stored}, or weights of {named}"
        )
    return codec or stored


def check_codec(codec: str, flags: Collection[str] = ()) -> None:
    """Raise OptionError for a codec that does not exist, and for options that it does not have or cannot use.

    Args:
        codec: A codec's name, with options if any.
        flags: The names of the options that were given as flags of the command line, so that errors can name these.
    """
    name, given = split_codec(codec)
    backend = backends.by_name(name)
    if not given:
        return
    coder = backend.load()
    for flag in flags:
        if not _has_option(coder, flag):
            others = ", ".join(b.name for b in backends.BACKENDS if _has_option(b.load(), flag))
            raise OptionError(f"{_as_flag(flag)}: {name} has none; it works with {others}")
    options = read_options(coder.options_class, given)
    if "max_seconds" in given and options.max_seconds and not coder.searches(options):
        least = next(effort for effort in range(10) if coder.searches(replace(options, effort=effort)))
        option, advice = "option max_seconds", f"effort={least}"
        if "max_seconds" in flags:
            option, advice = _as_flag("max_seconds"), f"--effort {least}"
        raise OptionError(f"{option}: effort {options.effort} has no search that it could end; add {advice} or more")


def _has_option(coder: Codec, option: str) -> bool:
    return option in {field.name for field in fields(coder.options_class)}


def _as_flag(option: str) -> str:
    return "--" + option.replace("_", "-")


@dataclass(frozen=True)
class EncodeSettings:
    """How to encode; at most one of lmbda, quality, bpp, psnr and size_bytes is not None.

    Attributes:
        codec: A codec's name, with options if any: "name" or "name:key=value,key=value".
        lmbda: The price of a bit, 0.1..20, with some codecs up to 41; 1 if nothing else decides the rate.
        quality: 1..100, the same axis as lmbda.
        bpp: The most bits per pixel that the file may have.
        psnr: The lowest PSNR of the decoded picture, in dB.
        size_bytes: The most bytes that the file may have.
        device: auto, cpu or cuda.
        weights: A weights file or a folder of them; None for the usual places.
        verify: Whether the codec decodes the integers of the stream it wrote and compares them (law 5).
        strip: Whether ICC profile, EXIF and XMP are left out.
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
        """Raise OptionError for values that exclude each other or are out of range."""
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
        """The rate index of lmbda or quality; None if it has to be searched."""
        if self.bpp is not None or self.psnr is not None or self.size_bytes is not None:
            return None
        lmbda = rates.lambda_of_quality(self.quality) if self.quality is not None else self.lmbda
        lowest_index = self.backend.wire_format.lowest_index
        return rates.index_of_lambda(DEFAULT_LAMBDA if lmbda is None else lmbda, lowest_index)

    @property
    def backend(self) -> backends.Backend:
        """The codec's row of the table; raises OptionError."""
        return backends.by_name(split_codec(self.codec)[0])
