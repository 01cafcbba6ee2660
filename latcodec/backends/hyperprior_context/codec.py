"""The hyperprior codec with its context model: quantising, bytes, pictures.

One stream: the symbols of z in four steps, those of y in four; where there may be details, how many sixteenths of their
frequencies are sent and whether there is a filter, the filter (`wiener.py`), and of each group of details the shifts of
its rows and the symbols. The table row of each symbol is computed in integers, in the order of
`hyperprior_context_model.py` and `details.py`. Fixed point: see `hyper.py`.

Parameters: none; or one byte, the rate index at which latents are coded beside details of the file's; or two, how far
below 0 the rate index of the file is: `Model.rate`; or those of `lossless.py`: then the stream is the picture itself.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from latcodec.backends.base import EncodeRequest
from latcodec.backends.common import distortion, search
from latcodec.backends.common import rdoq as pricing
from latcodec.backends.common.checks import check_single_stream, check_stream_length, crc_of, decode_checked
from latcodec.backends.common.fixed_point import MEAN_BITS, SCALE_ROWS, bounded, latents_in_steps, round_to_int32
from latcodec.backends.common.mean_scale import Latents, MeanScaleRelaxedRD
from latcodec.backends.common.mean_scale import MeanScaleCoded as HyperCoded
from latcodec.backends.common.mean_scale import sigmas as sigmas_of_latents
from latcodec.backends.common.memo import Evaluate, EvaluationMemo, evaluate
from latcodec.backends.common.pixels import latent_shapes
from latcodec.backends.common.rate_tables import RATES
from latcodec.backends.common.timing import timed_encode
from latcodec.backends.common.weights_parts import stored_config
from latcodec.backends.hyperprior_context import base_rate as bases
from latcodec.backends.hyperprior_context import lossless, wiener
from latcodec.backends.hyperprior_context import mode_decision as choice
from latcodec.backends.hyperprior_context import residual as details
from latcodec.backends.hyperprior_context.coding_order import from_coding_order, of_step, picked, spread, there
from latcodec.backends.hyperprior_context.entropy_model import ROWS, Model, Rate, Take, Walked
from latcodec.backends.hyperprior_context.export import export
from latcodec.backends.hyperprior_context.picture import LatentsAtRates, analyse, relaxed_rd_with_residual, synthesise
from latcodec.container import Payload
from latcodec.entropy.range_coder import RangeDecoder, RangeEncoder
from latcodec.errors import OptionError
from latcodec.nn.geometry import IMAGE_STRIDE
from latcodec.rates import METRICS
from latcodec.weights import Weights

SHORTEST_SEARCH_S = 0.01
# A channel is not sent at rates at which one of its steps is heard by the contexts as more units than this. At the
# lowest rates a third of them is so, whose symbols are 0 in nearly every picture; after another one contexts, which
# have not learned it, say anything.
TOO_LOUD = 16.0
STEPS = (0, 0, 15, 50, *search.SEARCH_STEPS[4:])  # of a search, by effort: 1 but fits a filter, where weights have one
SOON, FOUND_SOON = 30, (30.0, 60.0, 100.0)  # steps of a search; the roundings one of which is best after fewer
__all__ = ["RATES", "Codec", "Coded", "Latents", "Model", "Options", "analyse", "code", "decode", "encode", "export",
           "shown", "sigmas", "stored_config", "synthesise", "without_loss_at_once"]  # fmt: skip


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
        super().__post_init__()
        if self.metric and self.metric not in METRICS:
            raise OptionError(f"metric {self.metric} is unknown; there are: {', '.join(METRICS)}")

    @property
    def steps(self) -> int:
        """Of the search; 0 for none."""
        return super().steps if self.metric == "ms-ssim" else STEPS[self.effort]

    @property
    def searched_multipliers(self) -> tuple[float, ...]:
        return FOUND_SOON if self.steps < SOON else search.SEARCHED_MULTIPLIERS


@dataclass(frozen=True)
class Options(UserOptions, EncodeRequest):
    """A person's options and the encoder's request, together."""


@dataclass(frozen=True)
class Coded(HyperCoded):
    """Symbols int32 [n] of what is coded of z, and their rows; symbols and rows of the details and symbols of the
    filter, see `Walked`; what was computed on the way, for verification; all symbols of z and their means, see
    `Walked`."""

    z_symbols: np.ndarray | None = None
    z_rows: np.ndarray | None = None
    detail_symbols: np.ndarray | None = None
    detail_rows: np.ndarray | None = None
    filter_symbols: np.ndarray | None = None
    replay: EvaluationMemo | None = None
    z: tuple[np.ndarray, np.ndarray] | None = None

    def counted(self) -> tuple[np.ndarray, np.ndarray]:
        """Symbols int32 [n] and their rows uint16 [n], what tables are fitted to; of a picture whose latents are
        all coded."""
        every = np.concatenate([self.z_symbols, self.symbols.ravel(), self.detail_symbols.ravel()])
        return every, np.concatenate([self.z_rows, self.rows, self.detail_rows])


def sigmas() -> np.ndarray:
    """Standard deviation of each table row in steps, float64: those of y, of details, of z."""
    return np.tile(sigmas_of_latents(), ROWS // SCALE_ROWS)


def code(model: Model, latents: Latents | LatentsAtRates, options: Options) -> Coded:
    """Quantise and entropy-code latents at one rate, with the effort that the options say."""
    start, error_bits = time.perf_counter(), model.step_error_bits()
    options = replace(options, metric=model.metric)  # what the weights are for, however they were named
    analysed_s = latents.seconds
    plain = partial(_code, model, latents, options, error_bits)
    first = choice.cheapest(model, latents, options, plain, shown, without_loss)
    if first.parameters == lossless.PARAMETERS:
        return _with_analysis(first, latents, analysed_s)
    rate = model.rate(options.rate_index, first.parameters)
    photograph = options.steps and latents.image is not None and not bases.drawn(latents.image)
    if photograph and rate.index in bases.SEARCHED_AS_THEY_ARE:
        rate = model.rate(rate.index)
    elif options.effort and rate.base == rate.index and model.details is not None:
        bits = 8 * len(first.streams[0])
        lower = bases.searched(rate.base, bits) if options.steps else rate.base
        silent = rate.index >= 0 and not rate.details
        # What says at which rate latents are has room for a filter.
        if lower != rate.base or (silent and bits >= bases.SEARCHED_BITS):
            rate = model.rate(rate.index, bytes((lower,)))
    if options.max_seconds:
        left = options.max_seconds - (time.perf_counter() - start)
        options = replace(options, max_seconds=max(left, SHORTEST_SEARCH_S))
    problem = ContextSearch(model, latents.at(rate.base), options, rate)
    is_start = first.parameters == model.parameters(rate)
    coded = search.encode_with_search(
        problem, options, error_bits, first if is_start else None, None if is_start else first
    )
    return replace(_with_analysis(coded, latents, analysed_s), replay=None)


@dataclass(frozen=True)
class ContextSearch:
    """One picture at one rate, as the search sees it; see `search.SearchProblem`."""

    model: Model
    latents: Latents
    options: Options
    rate: Rate

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
        return _code(self.model, latents, self.options, distortion_multiplier, self.rate)

    def verify(self, coded: Coded) -> bool:
        """Return whether the stream decodes to the integers that the encoder coded."""
        shape, rate = tuple(self.latents.y.shape[1:]), self.model.rate(self.options.rate_index, coded.parameters)
        coded.replay.rewind()
        integers = decode_integers(self.model, coded.streams[0], rate, shape, coded.replay.evaluate)
        return _crc(integers) == coded.integers_crc

    def reconstruct(self, coded: Coded) -> np.ndarray:
        """Return the picture that a decoder shows."""
        image = self.latents.image
        return shown(self.model, coded, self.options.rate_index, image.shape[:2], self.options.gray, 8 * image.itemsize)

    def relaxed_rd(self, coded: Coded) -> MeanScaleRelaxedRD:
        """Return the codec with a relaxed quantiser, with the filter and residual layer of a result."""
        pixels = self.latents.y[0].numel() * IMAGE_STRIDE**2
        return relaxed_rd_with_residual(self.model, self.options.rate_index, coded, self.rate, pixels)

    def dequantised_start(self, coded: Coded) -> tuple[torch.Tensor, ...]:
        """Return y and z as they were coded."""
        y, z = (latents_in_steps(*one).numpy() for one in ((coded.symbols, coded.means), coded.z))
        pairs = (y, self.latents.y), (z, self.latents.z)
        return tuple(torch.from_numpy(from_coding_order(one, of.shape[1:])) for one, of in pairs)


def _with_analysis(coded: Coded, latents: Latents | LatentsAtRates, before_s: float) -> Coded:
    """With the seconds that were looked at a picture meanwhile, where `code` did that and not `analyse`."""
    if not isinstance(latents, LatentsAtRates):
        return coded
    return replace(coded, seconds=coded.seconds | {"analysis": latents.seconds - before_s})


def without_loss(image: np.ndarray, options: Options) -> Coded | None:
    """A picture as a stream without loss; None where it does not look as if that could cost less, or cannot be."""
    if not (options.lossless and bases.may_be_whole(image)):
        return None
    if (stream := lossless.pack(image, options.effort, options.verify)) is None:
        return None
    symbols, rows = np.zeros(0, np.int32), np.zeros(0, np.uint16)
    return Coded(
        (stream,), lossless.crc(image), 8.0 * len(stream), symbols, symbols, rows, parameters=lossless.PARAMETERS,
        details={"lossless": True}, z_symbols=symbols, z_rows=rows, detail_symbols=symbols, detail_rows=rows,
        filter_symbols=symbols,
    )  # fmt: skip


def without_loss_at_once(model: Model, image: np.ndarray, options: Options) -> Coded | None:
    """`choice.without_loss_at_once`: a picture without loss before any networks have seen it, where that is clear."""
    plain = Options(options.rate_index, verify=False, gray=options.gray, lossless=False)

    def with_loss(square: np.ndarray) -> float:
        coded = code(model, analyse(model, square), plain)
        decoded = shown(model, coded, options.rate_index, square.shape[:2], options.gray, 8)
        return distortion.rd_cost(coded, decoded, square, options.rate_index, model.metric)

    return choice.without_loss_at_once(image, options, with_loss, without_loss)


@torch.inference_mode()
def _code(model: Model, latents: Latents | LatentsAtRates, options: Options, error_bits: float, rate: Rate) -> Coded:
    latents = latents.at(rate.base)
    start = time.perf_counter()
    functions = model.at_rate(rate)
    shape = tuple(latents.y.shape[1:])
    encoder = RangeEncoder(model.tables)
    replay = EvaluationMemo() if options.verify else None

    def put(symbols: np.ndarray, rows: np.ndarray) -> np.ndarray:
        encoder.encode(symbols, rows)
        return symbols

    def taker(values: torch.Tensor, gain: str, weight: float, silent: np.ndarray) -> Take:
        scaled = (values * functions[gain][0].exp()).cpu().numpy()

        def take(step: int, means: np.ndarray, rows: np.ndarray, there: np.ndarray) -> np.ndarray:
            wanted = of_step(scaled, step)
            wanted[silent] = means[silent] * 2.0**-MEAN_BITS
            residual = torch.from_numpy(picked(wanted, there))
            residual -= torch.from_numpy(picked(means, there)) * 2.0**-MEAN_BITS
            if weight:
                symbols = pricing.rdoq(bounded(residual).numpy(), rows, model.tables, weight)
            else:
                symbols = round_to_int32(residual)
            return spread(put(symbols, rows), there)

        return take

    take_z = taker(latents.z, "z_log_gain", model.z_step_error_bits(error_bits), np.zeros(len(latents.z), bool))
    silent = (functions["context_log_gain"].exp() > TOO_LOUD).flatten().cpu().numpy()
    take_y = taker(latents.y, "y_log_gain", error_bits, silent)

    def begin_details(*y: np.ndarray) -> tuple[np.ndarray, int, details.Shift, details.Take]:
        filter_symbols, sixteenths, shift, choose = choice.rest(model, y, latents.image, functions, rate, options)
        put(*details.counted(sixteenths, bool(len(filter_symbols))))
        if len(filter_symbols):
            wiener.send(filter_symbols, put)
        return (
            filter_symbols,
            sixteenths,
            lambda group, rows: put(shift(group, rows), details.shift_rows(len(rows))),
            lambda group, rows: put(choose(group, rows), rows),
        )

    walked = model.walk(rate, shape, take_z, take_y, begin_details, replay.evaluate if replay else evaluate)
    stream = encoder.finish()
    crc = _crc(walked)
    z_symbols = picked(walked.z_symbols, np.concatenate(there(len(latents.z), latents.z.shape[1:])))
    seconds = {"entropy": time.perf_counter() - start}
    return Coded((stream,), crc, encoder.bits, walked.symbols, walked.means, walked.rows, seconds,
                 model.parameters(rate), z_symbols=z_symbols, z_rows=walked.z_rows,
                 detail_symbols=walked.detail_symbols, detail_rows=walked.detail_rows,
                 filter_symbols=walked.filter_symbols, replay=replay,
                 z=(walked.z_symbols, walked.z_means))  # fmt: skip


def shown(model: Model, coded: Coded, rate_index: int, size: tuple[int, int], gray: bool, depth: int) -> np.ndarray:
    """What a decoder shows of a picture just coded, uint8 or uint16 [H, W, 3]; size is (height, width)."""
    if coded.parameters == lossless.PARAMETERS:
        return lossless.unpack_pixels(coded.streams[0], size[1], size[0])
    rate = model.rate(rate_index, coded.parameters)
    y = coded.symbols, coded.means, coded.rows
    more = coded.filter_symbols, coded.detail_symbols
    return synthesise(model, y, more, rate, size, gray, depth)


encode = timed_encode(analyse, code)


def _crc(walked: Walked) -> int:
    return crc_of(*vars(walked).values())


def decode_integers(
    model: Model, stream: bytes, rate: Rate, shape: tuple[int, int], evaluate: Evaluate = evaluate
) -> Walked:
    """The integers of a stream; shape is (h, w) of y; ask: see `Model.walk`."""
    decoder = RangeDecoder(stream, model.tables)

    def take(step: int, means: np.ndarray, rows: np.ndarray, there: np.ndarray) -> np.ndarray:
        return spread(decoder.decode(rows), there)

    def begin_details(*y: np.ndarray) -> tuple[np.ndarray, int, details.Shift, details.Take]:
        sixteenths, filtered = details.count_of(decoder.decode(details.counted(0)[1]))
        filter_symbols = wiener.receive(decoder.decode) if filtered else wiener.none()
        shifts = lambda group, rows: decoder.decode(details.shift_rows(len(rows)))  # noqa: E731
        return filter_symbols, sixteenths, shifts, lambda group, rows: decoder.decode(rows)

    walked = model.walk(rate, shape, take, take, begin_details, evaluate)
    decoder.finish()
    return walked


def decode(model: Model | None, payload: Payload) -> np.ndarray:
    """Decode to an image, uint8 or uint16 [H, W, 3]; a file without loss needs no model.

    Raises DriftError if the integers differ from the encoder's, FormatError if the file has not the one stream this
    codec writes, or parameters that say nothing.
    """
    check_single_stream(payload, "hyperprior-context", parameters=True)
    if payload.parameters == lossless.PARAMETERS:
        return lossless.unpack(payload)
    shape, z_shape = latent_shapes(payload.width, payload.height)
    rate = model.rate(payload.rate_index, payload.parameters)
    check_stream_length(payload, model.least_bits_of_z(rate, z_shape))
    walked = decode_checked(lambda: decode_integers(model, payload.streams[0], rate, shape), payload, _crc)
    size = (payload.height, payload.width)
    y = walked.symbols, walked.means, walked.rows
    more = walked.filter_symbols, walked.detail_symbols
    return synthesise(model, y, more, rate, size, payload.gray, payload.depth)


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
        """Return the lossless encode of an image that a few squares show to be clearly cheapest; None elsewhere."""
        if not options.lossless:
            return None
        return without_loss_at_once(model, image, Options(**vars(request), **vars(options)))

    def lossless_trial(self, image: np.ndarray, options: UserOptions, request: EncodeRequest) -> Coded | None:
        """Return the lossless encode of an image that looks as if that could cost less; None elsewhere."""
        return without_loss(image, Options(**vars(request), **vars(options)))
