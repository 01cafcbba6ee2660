"""One picture at one setting: what a codec makes of it, in a file.

An `Encoder` joins a picture, a codec with its options and weights, and the container. `latcodec.api` calls it once for
a fixed rate; `latcodec.rate_control` calls it at several rates until a target is met.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from latcodec import backends, container, rates
from latcodec.backends import loading
from latcodec.backends.base import Coded, EncodeRequest
from latcodec.container import Payload
from latcodec.errors import OptionError
from latcodec.settings import EncodeSettings, read_options, split_codec

if TYPE_CHECKING:
    import numpy as np

    from latcodec.images import Picture

WHOLE_RANGE = (0.0, 1.0)


@dataclass(frozen=True)
class Trial:
    """One encode.

    Attributes:
        rate_index: The rate index of the file.
        data: The bytes of the file.
        coded: What the codec made of the picture.
        psnr_db: The PSNR of the decoded colour samples, in dB; None unless the target is a PSNR.
    """

    rate_index: int
    data: bytes
    coded: Coded
    psnr_db: float | None = None


@dataclass(frozen=True)
class Encoded:
    """A finished encode.

    Attributes:
        data: The bytes of the file.
        rate_index: The rate index of the file.
        lmbda: The lambda of the file.
        bpp: The bits per pixel of `data`.
        estimated_bits: The ideal code length by the tables of the entropy coder.
        psnr_db: The PSNR of the decoded colour samples, in dB; None unless the target was a PSNR.
        seconds: The seconds that each stage took.
        trials: How many encodes were made.
        notes: One phrase for each thing that a person should know.
        details: What else the codec reports.
        missed: The target that cannot be reached, and what was reached instead, which is also a note; else "".
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


class Encoder:
    """A picture, a codec with its options and weights, and the container.

    Attributes:
        picture: The picture to encode.
        settings: How to encode it.
        options: The codec's options, an instance of its `options_class`.
        model: The codec's networks and tables.
    """

    def __init__(
        self, picture: Picture, settings: EncodeSettings, progress: Callable[[float], None] | None = None
    ) -> None:
        """Load the codec and its weights.

        Args:
            picture: The picture to encode.
            settings: How to encode it.
            progress: Called with 0..1 by a codec that searches for long.

        Raises:
            OptionError: The codec or its options do not exist, or contradict the settings.
            WeightsError: The weights are missing or belong to another codec.
        """
        name, given = split_codec(settings.codec)
        self._backend = backends.by_name(name)
        self._codec = self._backend.load()
        self.options = read_options(self._codec.options_class, given)
        self._fixed_lambda = self._codec.fixed_lambda(self.options)
        if self._fixed_lambda is not None and settings.rate_index is None:
            raise OptionError("free_lambda leaves nothing to search: give it or one of bpp, psnr and size")
        self.model = loading.load_model(self._backend, None, settings.weights, settings.device, given.get("metric"))
        self.picture, self.settings, self._progress = picture, settings, progress
        self._started_s = time.perf_counter()
        self._analysis_s = 0.0
        self._header = self._payload_without_streams()

    @property
    def size_px(self) -> int:
        """The number of pixels of the picture."""
        height, width = self.picture.pixels.shape[:2]
        return height * width

    @property
    def effort(self) -> int | None:
        """The effort of a codec that searches for long; None if it does not search."""
        return self.options.effort if self._codec.searches(self.options) else None

    @property
    def deadline_s(self) -> float:
        """When all searches together have to end, by `time.perf_counter`; infinity if there is no limit."""
        return self._started_s + self.options.max_seconds if self.options.max_seconds else math.inf

    def encode(self) -> Trial:
        """Encode at the rate of the settings; raises OptionError or DriftError."""
        rate_index, lowest_index = self.settings.rate_index, self.model.lowest_index
        if rate_index < lowest_index:
            largest = math.floor(rates.lambda_of_index(lowest_index))
            raise OptionError(f"lambda {self.settings.lmbda:g}: with these weights it ends at {largest}")
        request = self._request(rate_index, self.settings.verify, WHOLE_RANGE)
        coded = self._codec.early_lossless(self.model, self.picture.pixels, self.options, request)
        if coded is None:
            coded = self._codec.code(self.model, self._latents, self.options, request)
        return self._finish_trial(rate_index, coded)

    def encode_at(
        self,
        rate_index: int,
        verify: bool,
        effort: int | None = None,
        max_seconds: float = 0.0,
        progress_range: tuple[float, float] = WHOLE_RANGE,
    ) -> Trial:
        """Encode lossily at one rate, as one of several trials; raises DriftError.

        Args:
            rate_index: The rate, from the model's lowest index to 255.
            verify: Whether to decode the integers again (law 5).
            effort: The effort of the search; None for that of the options.
            max_seconds: The time that the search may take, in seconds; 0 for no limit. It goes with `effort`.
            progress_range: The part of the whole progress that this trial covers.
        """
        options = self._codec.lossy_options(self.options)
        if effort is not None:
            options = replace(options, effort=effort, max_seconds=max_seconds)
        request = self._request(rate_index, verify, progress_range)
        return self._finish_trial(rate_index, self._codec.code(self.model, self._latents, options, request))

    def lossless_trial(self) -> Trial | None:
        """Encode losslessly, if the options allow it and the picture looks like it; raises DriftError."""
        request = EncodeRequest(0, self.settings.verify)
        coded = self._codec.lossless_trial(self.picture.pixels, self.options, request)
        return None if coded is None else self._finish_trial(rates.MAX_INDEX, coded)

    def quality(self, trial: Trial) -> float:
        """Return the quality of a trial by the metric of the weights, the larger the better."""
        from latcodec.backends.common.distortion import distortion_bits

        return -distortion_bits(self._decode(trial.data), self.picture.pixels, 0, self.model.metric)

    def finish(self, trial: Trial, trials: int = 1, notes: tuple[str, ...] = (), missed: str = "") -> Encoded:
        """Return the report of an encode whose file is that of a trial.

        Args:
            trial: The best trial.
            trials: How many encodes were made.
            notes: Phrases for the person, beside those of the encoder.
            missed: The target that was missed, or "".
        """
        picture = self.picture
        if self.settings.strip and any((picture.icc, picture.exif, picture.xmp)):
            notes = (*notes, "metadata left out (--strip)")
        return Encoded(
            data=trial.data,
            rate_index=trial.rate_index,
            lmbda=self._fixed_lambda or rates.lambda_of_index(trial.rate_index),
            bpp=8 * len(trial.data) / self.size_px,
            estimated_bits=trial.coded.estimated_bits,
            psnr_db=trial.psnr_db,
            seconds={"analysis": self._analysis_s} | trial.coded.seconds,
            trials=trials,
            notes=notes,
            details=trial.coded.details,
            missed=missed,
        )

    @cached_property
    def _latents(self) -> Any:
        start = time.perf_counter()
        latents = self._codec.analyse(self.model, self.picture.pixels)
        self._analysis_s = time.perf_counter() - start
        return latents

    def _payload_without_streams(self) -> Payload:
        from latcodec.images.alpha import pack_alpha

        picture, strip = self.picture, self.settings.strip
        height, width = picture.pixels.shape[:2]
        return Payload(
            backend_id=self._backend.wire_id,
            weights_id=self.model.weights_id,
            rate_index=0,
            width=width,
            height=height,
            gray=picture.gray,
            depth=8 * picture.pixels.dtype.itemsize,
            integers_crc=0,
            streams=(b"",),
            alpha=None if picture.alpha is None else pack_alpha(picture.alpha),
            icc=None if strip else picture.icc or None,
            exif=None if strip else picture.exif or None,
            xmp=None if strip else picture.xmp or None,
            has_header_crc=self._codec.decodes_damaged,
        )

    def _request(self, rate_index: int, verify: bool, progress_range: tuple[float, float]) -> EncodeRequest:
        progress = None if self._progress is None else partial(self._report_progress, *progress_range)
        return EncodeRequest(rate_index, verify, self.picture.gray, progress)

    def _report_progress(self, start: float, end: float, fraction: float) -> None:
        self._progress(start + (end - start) * fraction)

    def _finish_trial(self, rate_index: int, coded: Coded) -> Trial:
        """Pack what was coded into a file, whose header has no rate index below 0."""
        written_index = max(rate_index, 0)
        if self._backend.wire_format.is_lossless(coded.parameters):
            rate_index = written_index
        payload = replace(
            self._header,
            rate_index=written_index,
            streams=coded.streams,
            integers_crc=coded.integers_crc,
            parameters=coded.parameters,
        )
        data = container.pack(payload)
        return Trial(rate_index, data, coded, None if self.settings.psnr is None else self._psnr_db(data))

    def _decode(self, data: bytes) -> np.ndarray:
        return self._codec.decode(self.model, container.unpack(data, max_pixels=self.size_px))

    def _psnr_db(self, data: bytes) -> float:
        from latcodec.metrics import psnr_db

        return float(psnr_db(self.picture.pixels, self._decode(data), 2**self._header.depth - 1))
