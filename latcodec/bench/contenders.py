"""What a bench compares: learned codecs with their options and weights, and anchors; and at which settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from latcodec import api as codec
from latcodec import rates, weights
from latcodec.bench.anchors import Anchor
from latcodec.errors import OptionError
from latcodec.runtime import pick_device
from latcodec.settings import check_codec, split_codec

if TYPE_CHECKING:
    from latcodec.images import Picture

LAMBDAS = (20.0, 12.8, 6.4, 3.2, 1.6, 0.8, 0.4, 0.1)
RATES = len(LAMBDAS)
LARGER = 40.0  # The first lambda of codecs whose rate indices reach below 0.


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        lambdas: Settings of the codecs; None for a spread of `rates` lambdas.
        rates: Number of settings of each codec and anchor; None for RATES, and for one more where a codec has rate
            indices below 0.
        reps: Repetitions of each measurement.
        threads: CPU threads; None for the choice of each library.
        device: "cpu" or "cuda".
        weights: A weights file or a folder of them; None for the default places.
    """

    lambdas: tuple[float, ...] | None = None
    rates: int | None = None
    reps: int = 1
    threads: int | None = None
    device: str = "cpu"
    weights: str | None = None

    def __post_init__(self) -> None:
        for value in self.lambdas or ():
            rates.index_of_lambda(value, rates.LOWEST_INDEX)  # raises OptionError where no codec goes

    def values_of(self, contender: Contender) -> tuple[float, ...]:
        """Return the settings of one contender, from small files to large ones."""
        if isinstance(contender, Anchor):
            return spread(contender.values, self.rates or RATES, whole=contender.unit == "quality")
        known = (LARGER, *LAMBDAS) if rates.lambda_of_index(contender.lowest_index) >= LARGER else LAMBDAS
        lambdas = self.lambdas or spread(known, self.rates or len(known), logarithmic=True)
        return tuple(sorted(set(lambdas), reverse=True))


@dataclass
class Learned:
    """A learned codec with its options and weights, in the form of an `Anchor`. Made by `learned`."""

    name: str
    weights: str
    weights_sha256: str
    weights_file: str
    config: Settings
    lowest_index: int = 0
    kind: str = "codec"
    last: codec.Encoded | None = field(default=None, repr=False)

    @property
    def title(self) -> str:
        """The name as a person wrote it."""
        return self.name

    @property
    def settings(self) -> str:
        """The weights, for the report."""
        return f"weights {self.weights} ({self.weights_file})"

    def setting_label(self, value: float) -> str:
        """Return a setting in few characters: lambda 3.2."""
        return f"lambda {value:g}"

    def encode(self, picture: Picture, value: float) -> bytes:
        """Return a whole .lc file at one lambda, and keep the record of the encoder in `last`."""
        c = self.config
        settings = codec.EncodeSettings(self.name, lmbda=value, device=c.device, weights=c.weights, strip=True)
        self.last = codec.encode_picture(picture, settings)
        return self.last.data

    def decode(self, data: bytes) -> np.ndarray:
        """Return the picture of a file, uint8 [H, W, 3]."""
        return codec.decode_picture(data, device=self.config.device, weights=self.config.weights).pixels

    def largest_within(self, picture: Picture, limit_bytes: float) -> bytes | None:
        """Return the largest file of at most so many bytes, by the codec's own search; None if there is none."""
        c = self.config
        settings = codec.EncodeSettings(
            self.name, size_bytes=int(limit_bytes), device=c.device, weights=c.weights, strip=True
        )
        data = codec.encode_picture(picture, settings).data
        return data if len(data) <= limit_bytes else None


Contender = Learned | Anchor


def learned(name: str, settings: Settings) -> Learned:
    """Return the codec of `name` or `name:key=value,...`; raises OptionError or WeightsError if it cannot run."""
    check_codec(name)
    pick_device(settings.device)
    backend, options = split_codec(name)
    found = weights.load(backend, None, settings.weights, options.get("metric"))
    lowest = found.config.get("lowest_index", 0)
    for value in settings.lambdas or ():
        try:
            rates.index_of_lambda(value, lowest)
        except OptionError as error:
            raise OptionError(f"{name}: {error}") from None
    return Learned(name, found.id.hex(), found.sha256, found.path.name, settings, lowest)


def spread(ladder: Sequence[float], count: int, *, logarithmic: bool = False, whole: bool = False) -> tuple[float, ...]:
    """Return `count` values from the first to the last of a ladder, evenly spaced over its steps."""
    if count == len(ladder):
        return tuple(ladder)
    places = np.linspace(0, len(ladder) - 1, count) if count > 1 else [(len(ladder) - 1) / 2]
    values = np.interp(places, range(len(ladder)), np.log(ladder) if logarithmic else ladder)
    if whole:
        return tuple(dict.fromkeys(int(v) for v in values.round()))
    return tuple(float(f"{v:.3g}") for v in (np.exp(values) if logarithmic else values))


def split_names(text: str) -> list[str]:
    """The names of a comma-separated list, in which options follow their name: `a,b:x=1,y=2,c` is a, b:x=1,y=2, c."""
    names: list[str] = []
    for part in (part.strip() for part in text.split(",")):
        if names and "=" in part and ":" not in part:
            names[-1] += f",{part}"
        elif part and part != "none":
            names.append(part)
    return list(dict.fromkeys(names))
