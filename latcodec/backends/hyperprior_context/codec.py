"""The default codec: a picture to one stream of bytes, and back.

    encode    analyse -> choose_mode -> search -> verify        a picture to a stream
    decode    decode_integers -> reconstruct                    a stream to a picture

Parameters of a file: see `wire.py`. The stream of a lossless file is the picture itself (`lossless.py`); every other
stream is laid out in `step_coder.py`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from latcodec.backends.base import EncodeRequest
from latcodec.backends.common import distortion, search
from latcodec.backends.common.checks import check_single_stream, check_stream_length, decode_checked
from latcodec.backends.common.fixed_point import SCALE_ROWS, latents_in_steps
from latcodec.backends.common.mean_scale import Latents, MeanScaleCoded, MeanScaleRelaxedRD
from latcodec.backends.common.mean_scale import sigmas as latent_sigmas
from latcodec.backends.common.memo import Evaluate, EvaluationMemo, evaluate
from latcodec.backends.common.pixels import latent_shapes
from latcodec.backends.common.rate_tables import RATES
from latcodec.backends.common.weights_parts import stored_config
from latcodec.backends.hyperprior_context import lossless
from latcodec.backends.hyperprior_context.content import is_lossless_candidate
from latcodec.backends.hyperprior_context.entropy_model import CodedIntegers, CodedLatents, run_entropy_model
from latcodec.backends.hyperprior_context.export import export
from latcodec.backends.hyperprior_context.mode_decision import choose_mode, lossless_limit, search_point
from latcodec.backends.hyperprior_context.model import NUM_TABLES, Model, OperatingPoint
from latcodec.backends.hyperprior_context.picture import LatentsAtRates, analyse, reconstruct, relaxed_rd_with_residual
from latcodec.backends.hyperprior_context.quadtree import gather_valid, merge_quadtree_steps
from latcodec.backends.hyperprior_context.step_coder import StepDecoder, StepEncoder
from latcodec.backends.hyperprior_context.tuning import TUNING
from latcodec.backends.hyperprior_context.wire import LOSSLESS_PARAMETERS
from latcodec.container import Payload
from latcodec.errors import OptionError
from latcodec.nn.geometry import IMAGE_STRIDE
from latcodec.rates import METRICS
from latcodec.weights import Weights

MIN_SEARCH_S = 0.01
SEARCH_STEPS = (0, 0, TUNING.effort_2_steps, TUNING.effort_3_steps, *search.SEARCH_STEPS[4:])  # by effort
__all__ = ["RATES", "Codec", "Coded", "Latents", "Model", "Options", "analyse", "code", "decode", "encode", "export",
           "shown", "sigmas", "stored_config"]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class UserOptions(search.UserOptions):
    """What a person may set; raises OptionError for wrong values.

    Attributes:
        lossless: Whether screen content may be stored losslessly where that costs less.
        metric: The distortion that the weights were trained for, one of `rates.METRICS`; "" for the default weights.
            The caller selects matching weights.
    """

    lossless: bool = True
    metric: str = ""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.metric and self.metric not in METRICS:
            raise OptionError(f"metric {self.metric} is unknown; there are: {', '.join(METRICS)}")

    @property
    def steps(self) -> int:
        """Steps of the search; 0 for none."""
        return super().steps if self.metric == "ms-ssim" else SEARCH_STEPS[self.effort]

    @property
    def searched_multipliers(self) -> tuple[float, ...]:
        """Distortion multipliers with which searched latents are quantised, one after another."""
        is_short = self.steps < TUNING.short_search_steps
        return TUNING.short_search_multipliers if is_short else search.SEARCHED_MULTIPLIERS


@dataclass(frozen=True)
class Options(UserOptions, EncodeRequest):
    """A person's options and the encoder's request, together."""


@dataclass(frozen=True)
class Coded(MeanScaleCoded):
    """The encoder's result.

    Attributes:
        integers: What the stream stands for; None for a lossless stream.
        replay: What was computed on the way, for verification; None without verification and after it.
    """

    integers: CodedIntegers | None = None
    replay: EvaluationMemo | None = None

    def counted(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the symbols int32 [n] and table indices uint16 [n] that tables are fitted to.

        The sides of the picture must be multiples of 32 px, so that every latent of y is valid.
        """
        if self.integers is None:
            return np.zeros(0, np.int32), np.zeros(0, np.uint16)
        z, y = self.integers.z, self.integers.y
        symbols = [gather_valid(z.symbols, z.valid_mask()), y.symbols.ravel(), self.integers.residual_symbols.ravel()]
        table_index = [z.table_index, y.table_index, self.integers.residual_table_index]
        return np.concatenate(symbols), np.concatenate(table_index)


def sigmas() -> np.ndarray:
    """Return the standard deviation of each table in steps, float64: those of y, of the residual layer, of z."""
    return np.tile(latent_sigmas(), NUM_TABLES // SCALE_ROWS)


def encode(model: Model, image: np.ndarray, options: Options) -> Coded:
    """Encode an image, uint8 or uint16 [H, W, 3]; raises DriftError if the stream does not decode (law 5)."""
    start = time.perf_counter()
    latents = analyse(model, image)
    analysis_s = time.perf_counter() - start
    coded = code(model, latents, options)
    return replace(coded, seconds=coded.seconds | {"analysis": analysis_s + coded.seconds.get("analysis", 0.0)})


def code(model: Model, latents: Latents | LatentsAtRates, options: Options) -> Coded:
    """Quantise and entropy-code latents at one rate: decide on a mode, and with an effort search from there.

    Args:
        model: Networks and tables.
        latents: The result of `analyse`.
        options: Those of the encoder.

    Raises:
        DriftError: The stream does not decode to the same integers.
    """
    start = time.perf_counter()
    options = replace(options, metric=model.metric)  # what the weights are for, whatever the person called it
    coder = _PictureCoder(model, latents, options)
    analysed_s = coder.analysis_s
    if latents.image is None:
        coded = coder.encode_at(model.operating_point(options.rate_index))
    else:
        coded = choose_mode(coder)
    if coded.parameters != LOSSLESS_PARAMETERS:
        if options.max_seconds:
            left_s = options.max_seconds - (time.perf_counter() - start)
            coder.options = replace(options, max_seconds=max(left_s, MIN_SEARCH_S))
        coded = replace(coder.search(coded), replay=None)
    if isinstance(latents, LatentsAtRates):
        coded = replace(coded, seconds=coded.seconds | {"analysis": coder.analysis_s - analysed_s})
    return coded


class _PictureCoder:
    """Codes one picture with the same options in several ways: see `mode_decision.PictureCoder`."""

    def __init__(self, model: Model, latents: Latents | LatentsAtRates, options: Options):
        self.model, self.latents, self.options = model, latents, options
        self.image = latents.image

    @property
    def analysis_s(self) -> float:
        return self.latents.seconds

    def encode_at(self, point: OperatingPoint) -> Coded:
        """Code latents at an operating point."""
        return encode_at(self.model, self.latents, self.options, self.model.step_error_bits(), point)

    def lossless_trial(self) -> Coded | None:
        """Code the picture without loss; None where that cannot be, or is not likely to be cheaper."""
        return lossless_trial(self.image, self.options)

    def rd_cost(self, coded: Coded) -> float:
        """Return the bits of a result and what its error is worth in bits."""
        image, options = self.image, self.options
        if coded.parameters == LOSSLESS_PARAMETERS:
            return distortion.rd_cost(coded, image, image, options.rate_index)
        decoded = shown(self.model, coded, options.rate_index, image.shape[:2], options.gray, 8 * image.itemsize)
        return distortion.rd_cost(coded, decoded, image, options.rate_index, self.model.metric)

    def search(self, first: Coded) -> Coded:
        """Return the cheapest result of a search from the first one, and verify it."""
        model = self.model
        point = search_point(model, first, self.image, self.options)
        problem = ContextSearch(model, self.latents.at(point.base_rate_index), self.options, point)
        is_start = first.parameters == model.parameters(point)
        start, alternative = (first, None) if is_start else (None, first)
        return search.encode_with_search(problem, self.options, model.step_error_bits(), start, alternative)


@dataclass(frozen=True)
class ContextSearch:
    """One picture at one operating point, as the search sees it; see `search.SearchProblem`."""

    model: Model
    latents: Latents
    options: Options
    point: OperatingPoint

    @property
    def metric(self) -> str:
        """The distortion that the weights were trained for."""
        return self.model.metric

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return self.model.device

    def encode(self, latents: Latents, distortion_multiplier: float) -> Coded:
        """Quantise and entropy-code latents."""
        return encode_at(self.model, latents, self.options, distortion_multiplier, self.point)

    def verify(self, coded: Coded) -> bool:
        """Return whether the stream decodes to the integers that were coded; no network runs again."""
        return verify(self.model, coded, self.options.rate_index, tuple(self.latents.y.shape[1:]))

    def reconstruct(self, coded: Coded) -> np.ndarray:
        """Return the picture that a decoder shows."""
        image, options = self.latents.image, self.options
        return shown(self.model, coded, options.rate_index, image.shape[:2], options.gray, 8 * image.itemsize)

    def relaxed_rd(self, coded: Coded) -> MeanScaleRelaxedRD:
        """Return the codec with a relaxed quantiser, with the filter and residual layer of a result."""
        pixels = self.latents.y[0].numel() * IMAGE_STRIDE**2
        return relaxed_rd_with_residual(self.model, coded.integers, self.point, pixels)

    def dequantised_start(self, coded: Coded) -> tuple[torch.Tensor, ...]:
        """Return y and z as they were coded, float32 [C, h, w] in steps."""
        return _dequantised(coded.integers.y), _dequantised(coded.integers.z)


@torch.inference_mode()
def encode_at(
    model: Model, latents: Latents | LatentsAtRates, options: Options, error_bits: float, point: OperatingPoint
) -> Coded:
    """Quantise and entropy-code latents at an operating point.

    Args:
        model: Networks and tables.
        latents: The result of `analyse`.
        options: Those of the encoder.
        error_bits: Bits that a squared error of one step of y is worth.
        point: The operating point.
    """
    latents = latents.at(point.base_rate_index)
    start = time.perf_counter()
    replay = EvaluationMemo() if options.verify else None
    coder = StepEncoder(model, latents, point, options, error_bits)
    integers = run_entropy_model(
        model, point, tuple(latents.y.shape[1:]), coder, replay.evaluate if replay else evaluate
    )
    stream = coder.finish()
    crc = integers.crc()
    y = integers.y
    return Coded(
        (stream,), crc, coder.range_coder.bits, y.symbols, y.means, y.table_index,
        {"entropy": time.perf_counter() - start}, model.parameters(point), integers=integers, replay=replay,
    )  # fmt: skip


def shown(model: Model, coded: Coded, rate_index: int, size: tuple[int, int], gray: bool, depth: int) -> np.ndarray:
    """Return what a decoder shows of a picture just coded, uint8 or uint16 [H, W, 3].

    Args:
        model: Networks and tables.
        coded: The encoder's result.
        rate_index: Rate index of the file.
        size: (height, width) in px.
        gray: Whether the three channels are averaged.
        depth: Bits per sample, 8 or 16.
    """
    if coded.parameters == LOSSLESS_PARAMETERS:
        return lossless.unpack_pixels(coded.streams[0], size[1], size[0])
    point = model.operating_point(rate_index, coded.parameters)
    return reconstruct(model, coded.integers, point, size, gray, depth)


def _dequantised(latents: CodedLatents) -> torch.Tensor:
    planes = latents_in_steps(latents.symbols, latents.means).numpy()
    return torch.from_numpy(merge_quadtree_steps(planes, latents.shape))


def verify(model: Model, coded: Coded, rate_index: int, shape: tuple[int, int]) -> bool:
    """Return whether the stream decodes to the integers that were written; networks are not run again."""
    point = model.operating_point(rate_index, coded.parameters)
    coded.replay.rewind()
    return decode_integers(model, coded.streams[0], point, shape, coded.replay.evaluate).crc() == coded.integers_crc


def lossless_trial(image: np.ndarray, options: Options) -> Coded | None:
    """Return the lossless result of an image, uint8 [H, W, 3]; None where it is no candidate, or cannot be."""
    if not (options.lossless and is_lossless_candidate(image)):
        return None
    if (stream := lossless.pack(image, options.effort, options.verify)) is None:
        return None
    symbols, table_index = np.zeros(0, np.int32), np.zeros(0, np.uint16)
    return Coded(
        (stream,), lossless.crc(image), 8.0 * len(stream), symbols, symbols, table_index,
        parameters=LOSSLESS_PARAMETERS, details={"lossless": True},
    )  # fmt: skip


class _TileCoder:
    """Tells what a tile of a picture costs: see `mode_decision.TileCoder`."""

    def __init__(self, model: Model, options: Options, tile: np.ndarray):
        self.model, self.options, self.tile = model, options, tile

    def lossy_cost(self) -> float:
        """Return the rate-distortion cost of the tile with loss and without effort."""
        plain = Options(self.options.rate_index, verify=False, gray=self.options.gray, lossless=False)
        latents = analyse(self.model, self.tile)
        return _PictureCoder(self.model, latents, plain).rd_cost(code(self.model, latents, plain))

    def lossless_cost(self) -> float:
        """Return its cost without loss; infinite where that cannot be."""
        coded = lossless_trial(self.tile, self.options)
        return np.inf if coded is None else distortion.rd_cost(coded, self.tile, self.tile, self.options.rate_index)


def early_lossless(model: Model, image: np.ndarray, options: Options) -> Coded | None:
    """Return the lossless result of a large image before any network has seen all of it.

    Args:
        model: Networks and tables, which see a few tiles.
        image: uint8 or uint16 [H, W, 3].
        options: Those of the encoder.

    Returns:
        None where it is not clear that lossless is the cheapest.
    """
    start = time.perf_counter()
    limit = lossless_limit(image, partial(_TileCoder, model, options))
    if limit is None:
        return None
    coded = lossless_trial(image, options)
    if coded is None or distortion.rd_cost(coded, image, image, options.rate_index) >= limit:
        return None
    return replace(coded, seconds={"choice": time.perf_counter() - start})


def decode(model: Model | None, payload: Payload) -> np.ndarray:
    """Decode to an image, uint8 or uint16 [H, W, 3]; a lossless file needs no model.

    Raises:
        FormatError: The file does not have the one stream that this codec writes, or its parameters are not valid.
        DriftError: The integers differ from the encoder's.
    """
    check_single_stream(payload, "hyperprior-context", parameters=True)
    if payload.parameters == LOSSLESS_PARAMETERS:
        return lossless.unpack(payload)
    shape, z_shape = latent_shapes(payload.width, payload.height)
    point = model.operating_point(payload.rate_index, payload.parameters)
    check_stream_length(payload, model.min_bits_of_z(point, z_shape))
    integers = decode_checked(
        lambda: decode_integers(model, payload.streams[0], point, shape), payload, CodedIntegers.crc
    )
    return reconstruct(model, integers, point, (payload.height, payload.width), payload.gray, payload.depth)


def decode_integers(
    model: Model, stream: bytes, point: OperatingPoint, shape: tuple[int, int], evaluate: Evaluate = evaluate
) -> CodedIntegers:
    """Return the integers of a stream; raises FormatError.

    Args:
        model: Networks and tables.
        stream: The stream of a file.
        point: Operating point of the file.
        shape: (h, w) of y.
        evaluate: See `run_entropy_model`.
    """
    coder = StepDecoder(stream, model.tables)
    integers = run_entropy_model(model, point, shape, coder, evaluate)
    coder.finish()
    return integers


class Codec(search.SearchingCodec):
    """The hyperprior-context codec as the rest of latcodec sees it."""

    options_class = UserOptions

    def load_model(self, weights: Weights, device: str) -> Model:
        """Return the model of a weights file on a device; raises WeightsError."""
        return Model(weights, device)

    def analyse(self, model: Model, image: np.ndarray) -> Latents | LatentsAtRates:
        """Return the latents of an image, uint8 or uint16 [H, W, 3]."""
        return analyse(model, image)

    def code(
        self, model: Model, latents: Latents | LatentsAtRates, options: UserOptions, request: EncodeRequest
    ) -> Coded:
        """Quantise and entropy-code latents at the requested rate; raises DriftError."""
        return code(model, latents, Options(**vars(request), **vars(options)))

    def decode(self, model: Model | None, payload: Payload, ignore_checksum: bool = False) -> np.ndarray:
        """Decode a file to an image, uint8 or uint16 [H, W, 3]; raises FormatError or DriftError."""
        return decode(model, payload)

    def lossy_options(self, options: UserOptions) -> UserOptions:
        """Return these options with lossless=False."""
        return replace(options, lossless=False)

    def early_lossless(
        self, model: Model, image: np.ndarray, options: UserOptions, request: EncodeRequest
    ) -> Coded | None:
        """Return the lossless encode of an image that a few tiles show to be clearly cheapest; None elsewhere."""
        if not options.lossless:
            return None
        return early_lossless(model, image, Options(**vars(request), **vars(options)))

    def lossless_trial(self, image: np.ndarray, options: UserOptions, request: EncodeRequest) -> Coded | None:
        """Return the lossless encode of an image that looks as if that could cost less; None elsewhere."""
        return lossless_trial(image, Options(**vars(request), **vars(options)))
