"""The VBQ codec: one VAE, a posterior, and at encode time a choice of code points for any lambda.

One stream: the symbols of z (not with prior=factorized), then those of y. Options that are not the defaults travel in
the parameters section, 4 bytes: quantizer, prior, then int16 little-endian, 256 log2 lambda, NO_LAMBDA for that of the
rate index. Latents, scales and logarithms are the fixed point of `latents/grids.py`.
"""

from __future__ import annotations

import math
import struct
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from latcodec.backends.base import Codec as BaseCodec
from latcodec.backends.base import EncodeRequest
from latcodec.backends.common.checks import check_stream_length, crc_of, decode_checked
from latcodec.backends.common.fixed_point import MEAN_BITS, round_to_int32
from latcodec.backends.common.pixels import latent_shapes, pad_to_multiple, to_image, to_tensor
from latcodec.backends.common.timing import timed_encode
from latcodec.backends.vbq.entropy_model import NO_LAMBDA, Model
from latcodec.backends.vbq.grids import Posterior
from latcodec.backends.vbq.quantiser import VALUE_BITS
from latcodec.container import Payload
from latcodec.entropy.range_coder import RangeDecoder, RangeEncoder, ideal_bits
from latcodec.errors import DriftError, FormatError, OptionError
from latcodec.nn.geometry import HYPER_STRIDE, IMAGE_STRIDE
from latcodec.nn.tiling import run_in_tiles
from latcodec.weights import Weights

QUANTIZERS = ("vbq", "algorithm1", "uniform", "kmeans", "lloyd")  # ids on the wire, append-only
PRIORS = ("hyper", "factorized")
FREE_LAMBDA_MIN, FREE_LAMBDA_MAX = 2.0**-8, 2.0**7
_LOG2_20 = 4752010194740  # of the largest lambda, 40 bits after the point; the smallest is 2 / 20
_HALO = 2


@dataclass(frozen=True, kw_only=True)
class UserOptions:
    """What a person may set; raises OptionError for wrong values.

    quantizer: vbq; algorithm1, the paper's with bit length as rate; uniform, kmeans, lloyd, which ignore the posterior.
    prior: hyper, or factorized as in the paper. free_lambda: 2**-8..2**7 instead of that of the rate index; 0: not.
    """

    quantizer: str = "vbq"
    prior: str = "hyper"
    free_lambda: float = 0.0

    def __post_init__(self) -> None:
        for name, known in (("quantizer", QUANTIZERS), ("prior", PRIORS)):
            if getattr(self, name) not in known:
                raise OptionError(f"{name} {getattr(self, name)!r} is unknown; there are: {', '.join(known)}")
        if self.free_lambda and not FREE_LAMBDA_MIN <= self.free_lambda <= FREE_LAMBDA_MAX:
            raise OptionError(
                f"free_lambda {self.free_lambda:g} is outside {FREE_LAMBDA_MIN:g} ... {FREE_LAMBDA_MAX:g}"
            )

    @property
    def lambda_code(self) -> int:
        """int16 of the parameters section."""
        return round(256 * math.log2(self.free_lambda)) if self.free_lambda else NO_LAMBDA


@dataclass(frozen=True)
class Options(UserOptions, EncodeRequest):
    """A person's options and the encoder's request, together."""

    @property
    def nearest_index(self) -> int:
        """The rate index of the networks."""
        if not self.free_lambda:
            return self.rate_index
        # Law 1, and lambda sqrt(2) is just between two: 255 log(20 / lambda) / log(20 / 0.1) in integers, halves up.
        above, whole = _LOG2_20 * 256 - (self.lambda_code << 40), (2 * _LOG2_20 - (1 << 40)) * 256
        return min(255, max(0, (2 * 255 * above + whole) // (2 * whole)))


@dataclass(frozen=True)
class Latents:
    """What the networks say of one picture at every rate: y and log h float32 [C, h, w], z float32 [Z, h', w']."""

    y: torch.Tensor
    log_h: torch.Tensor
    z: torch.Tensor


@dataclass(frozen=True)
class Coded:
    """Encoder's result. symbols int32 [C, h, w], latents int32 (2**-VALUE_BITS), rows uint16 [C * h * w]."""

    streams: tuple[bytes, ...]
    integers_crc: int
    estimated_bits: float
    symbols: np.ndarray
    latents: np.ndarray
    rows: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)
    parameters: bytes | None = None
    details: dict[str, object] = field(default_factory=dict)


@torch.inference_mode()
def analyse(model: Model, image: np.ndarray) -> Latents:
    """Run g_a and h_a on an image, uint8 or uint16 [H, W, 3]; the result serves every rate."""
    x = to_tensor(image, model.device)
    both = run_in_tiles(lambda part: torch.cat(model.network.likelihood(part), 1), x, IMAGE_STRIDE, 1, _HALO)
    y, log_h = (torch.nan_to_num(part) for part in both.chunk(2, 1))
    z = model.network.hyper_analysis(pad_to_multiple(y, HYPER_STRIDE))
    return Latents(y[0].contiguous(), log_h[0].contiguous(), z[0])


def posterior_of(latents: Latents, noise: int, caution: float = 1.0) -> Posterior:
    """What a quantiser of y should meet: mode and precision of the likelihood; the prior's share is the code length's.

    caution: a factor of the precision. The errors of a quantiser that saves bits all lean towards the prior's mean, and
    together they distort more than each alone; `Model.caution` is what training pictures ask for.
    """
    y = latents.y.cpu().numpy().clip(-2000, 2000)
    return Posterior(y, np.exp(latents.log_h.cpu().numpy()) * np.float32(caution), noise)


@torch.inference_mode()
def code(model: Model, latents: Latents, options: Options) -> Coded:
    """Quantise and entropy-code latents at one rate."""
    start = time.perf_counter()
    index, shape = options.nearest_index, latents.y.shape[1:]
    noise = model.noise(index, options.lambda_code)
    first, count, grid = model.sets[options.quantizer, options.prior]
    if options.prior == "hyper":
        z_mean, z_rows = model.prior_of_z(index, latents.z.shape[1:])
        gain = model.network.at_rate(torch.tensor([index / 255], device=model.device))["z_log_gain"][0].exp().cpu()
        z_symbols = round_to_int32(latents.z.cpu() * gain - torch.from_numpy(z_mean / 2.0**MEAN_BITS))
        field = model.prior_of_y(z_symbols, index, shape)
    else:
        z_symbols, z_rows = np.zeros((0, 1, 1), np.int32), np.zeros(0, np.uint16)
        field = model.factorized_prior()
    networks = time.perf_counter()
    caution = 1.0 if options.quantizer == "algorithm1" else model.caution[PRIORS.index(options.prior), index]
    posterior = posterior_of(latents, noise, caution)
    local = np.broadcast_to(grid.rows(field, noise), latents.y.shape)
    offsets = model.tables.offsets
    bits = [model.tables.bits[offsets[r] : offsets[r + 1]] for r in range(first, first + count)]
    symbols = grid.choose(posterior, local, field, bits)
    values = grid.values(symbols, local, field, noise)
    rows = (local.ravel() + first).astype(np.uint16)
    del field, posterior, local  # 40 bytes a pixel that verifying need not carry
    chosen = time.perf_counter()
    encoder = RangeEncoder(model.tables)
    encoder.encode(z_symbols.ravel(), z_rows)
    encoder.encode(symbols.ravel(), rows)
    stream = encoder.finish()
    crc = crc_of(z_symbols, symbols, values, rows)
    coded = time.perf_counter()
    if options.verify and crc_of(*decode_integers(model, stream, options, shape)) != crc:
        raise DriftError("the stream just written does not decode to the same integers on this machine")
    seconds = {
        "hyper": networks - start,
        "quantise": chosen - networks,
        "entropy": coded - chosen,
        "verify": time.perf_counter() - coded,
    }
    return Coded((stream,), crc, encoder.bits, symbols, values, rows, seconds, _pack(options))


encode = timed_encode(analyse, code)


def _pack(options: Options) -> bytes | None:
    quantizer, prior = QUANTIZERS.index(options.quantizer), PRIORS.index(options.prior)
    packed = struct.pack("<BBh", quantizer, prior, options.lambda_code)
    return None if packed == struct.pack("<BBh", 0, 0, NO_LAMBDA) else packed


def _unpack(payload: Payload) -> Options:
    if payload.parameters is None:
        return Options(payload.rate_index)
    if len(payload.parameters) != 4:
        raise FormatError(f"field parameters: {len(payload.parameters)} bytes, the vbq codec writes 4 or none")
    quantizer, prior, code_ = struct.unpack("<BBh", payload.parameters)
    if quantizer >= len(QUANTIZERS) or prior >= len(PRIORS) or not (code_ == NO_LAMBDA or -2048 <= code_ <= 1792):
        raise FormatError(f"field parameters: {payload.parameters.hex()} is no option of the vbq codec")
    free = 0.0 if code_ == NO_LAMBDA else 2 ** (code_ / 256)
    return Options(payload.rate_index, quantizer=QUANTIZERS[quantizer], prior=PRIORS[prior], free_lambda=free)


def decode_integers(model: Model, stream: bytes, options: Options, shape: tuple[int, int]):
    """Symbols of z, symbols, latents and rows of y; shape is (h, w) of y."""
    index = options.nearest_index
    noise = model.noise(index, options.lambda_code)
    first, _, grid = model.sets[options.quantizer, options.prior]
    decoder = RangeDecoder(stream, model.tables)
    if options.prior == "hyper":
        h, w = (-(-side // HYPER_STRIDE) for side in shape)
        z_symbols = decoder.decode(model.prior_of_z(index, (h, w))[1]).reshape(-1, h, w)
        field = model.prior_of_y(z_symbols, index, shape)
    else:
        z_symbols, field = np.zeros((0, 1, 1), np.int32), model.factorized_prior()
    local = np.broadcast_to(grid.rows(field, noise), (model.network.config.latent, *shape))
    rows = (local.ravel() + first).astype(np.uint16)
    symbols = decoder.decode(rows).reshape(local.shape)
    decoder.finish()
    try:
        return z_symbols, symbols, grid.values(symbols, local, field, noise), rows
    except ValueError as error:
        raise FormatError(f"stream is damaged: {error}") from None


@torch.inference_mode()
def synthesise(model: Model, values: np.ndarray, size: tuple[int, int], gray: bool, depth: int) -> np.ndarray:
    """Latents int32 [C, h, w] (2**-VALUE_BITS) to an image, uint8 or uint16 [H, W, 3]; size is (height, width)."""
    y = torch.from_numpy(values).to(model.device).float() * 2.0**-VALUE_BITS
    y = y[None].contiguous(memory_format=torch.channels_last)
    x = run_in_tiles(lambda part: model.network.synthesis(part, model.autocast), y, 1, IMAGE_STRIDE, _HALO)
    return to_image(x, size, gray, depth)


def _integers_of(model: Model, payload: Payload):
    if len(payload.streams) != 1:
        raise FormatError(f"field sections: {len(payload.streams)} streams, the vbq codec has exactly 1")
    options = _unpack(payload)
    if (options.quantizer, options.prior) not in model.sets:
        raise FormatError(f"field parameters: these weights have no tables for {options.quantizer}, {options.prior}")
    shape, z_shape = latent_shapes(payload.width, payload.height)
    least = np.minimum.reduceat(model.tables.bits, model.tables.offsets[:-1])
    if options.prior == "hyper":
        least_bits = least[model.rates.z_row[options.nearest_index]].sum() * z_shape[0] * z_shape[1]
    else:
        first, _, grid = model.sets[options.quantizer, options.prior]
        noise = model.noise(options.nearest_index, options.lambda_code)
        least_bits = least[grid.rows(model.factorized_prior(), noise) + first].sum() * shape[0] * shape[1]
    check_stream_length(payload, least_bits)
    return decode_checked(
        lambda: decode_integers(model, payload.streams[0], options, shape), payload, lambda found: crc_of(*found)
    )


def decode(model: Model, payload: Payload) -> np.ndarray:
    """Decode to an image, uint8 or uint16 [H, W, 3]; raises FormatError, or DriftError for other integers."""
    _, _, values, _ = _integers_of(model, payload)
    return synthesise(model, values, (payload.height, payload.width), payload.gray, payload.depth)


def channel_bits(model: Model, payload: Payload) -> np.ndarray:
    """The bits that each channel of y takes in a file, float64 [C], by the tables; raises what decode raises."""
    _, symbols, _, rows = _integers_of(model, payload)
    rows = rows.reshape(len(symbols), -1)
    return np.array([ideal_bits(s.ravel(), r, model.tables) for s, r in zip(symbols, rows, strict=True)])


class Codec(BaseCodec):
    """The vbq codec as the rest of latcodec sees it."""

    options_class = UserOptions

    def load_model(self, weights: Weights, device: str) -> Model:
        """Return the model of a weights file on a device; raises WeightsError."""
        return Model(weights, device)

    def analyse(self, model: Model, image: np.ndarray) -> Latents:
        """Return the latents of an image, uint8 or uint16 [H, W, 3]."""
        return analyse(model, image)

    def code(self, model: Model, latents: Latents, options: UserOptions, request: EncodeRequest) -> Coded:
        """Quantise and entropy-code latents at the requested rate; raises DriftError."""
        return code(model, latents, Options(**vars(request), **vars(options)))

    def decode(self, model: Model, payload: Payload, ignore_checksum: bool = False) -> np.ndarray:
        """Decode a file to an image, uint8 or uint16 [H, W, 3]; raises FormatError or DriftError."""
        return decode(model, payload)

    def fixed_lambda(self, options: UserOptions) -> float | None:
        """Return free_lambda, None if it is not set."""
        return options.free_lambda or None

    def channel_bits(self, model: Model, payload: Payload) -> np.ndarray:
        """Return the bits of each channel of y in a file, float64 [C]; raises what `decode` raises."""
        return channel_bits(model, payload)
