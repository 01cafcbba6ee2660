"""The hyperprior codec: network, integers, bytes.

One stream: the symbols of z, then those of y, both coded with the logistic tables; the row of each is computed in
integers. Fixed point: means have MEAN_BITS bits after the point, in units of the quantiser's step.
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F

from latcodec.backends import search
from latcodec.coding import Decoder, Encoder, Tables, ideal_bits
from latcodec.container import Payload
from latcodec.errors import DriftError, FormatError, WeightsError
from latcodec.integer_net import FRACTION_BITS, IntegerNet, quantise, shift_round
from latcodec.models.hyperprior import (
    HYPER_STRIDE,
    IMAGE_STRIDE,
    SIGMA_MAX,
    SIGMA_MIN,
    Config,
    Hyperprior,
)
from latcodec.models.layers import logistic_bits
from latcodec.models.precision import bf16_is_fast
from latcodec.models.strips import in_strips
from latcodec.weights import Weights

MEAN_BITS = 6
GAIN_BITS = 16  # of the gains that means are multiplied by
INVERSE_BITS = 12  # of the factor from z's symbols to the hyper-synthesis' input
SCALE_ROWS = 64
ROWS_PER_NAT = (SCALE_ROWS - 1) / np.log(SIGMA_MAX / SIGMA_MIN)
ROWS_PER_NAT_FIXED = 31973  # the same with 12 bits after the point, written out because it decides rows
RATES = 256
_HALO = 2  # latents: the transforms reach 30 px, or 2 latents, beyond a strip


def sigmas() -> np.ndarray:
    """Standard deviation of each table row in steps, float64 [SCALE_ROWS], evenly spaced in the logarithm."""
    return np.geomspace(SIGMA_MIN, SIGMA_MAX, SCALE_ROWS)


@dataclass(frozen=True)
class Options:
    """rate_index: 0..255, larger is better. verify: decode the integers of the written stream (law 5).

    effort: 0 rounds, 1 rounds by rate and distortion, 2..9 search better latents, each in about twice the time of the
    one before; max_seconds: of the search, 0 for no limit; progress: called with 0..1.
    """

    rate_index: int
    verify: bool = True
    effort: int = 0
    max_seconds: float = 0.0
    progress: Callable[[float], None] | None = None

    def __post_init__(self) -> None:
        search.check(self.effort, self.max_seconds)


@dataclass(frozen=True)
class Latents:
    """What the networks say of one picture at every rate: y float32 [C, h, w], z float32 [Z, h', w']; the picture."""

    y: torch.Tensor
    z: torch.Tensor
    image: np.ndarray | None = None


@dataclass(frozen=True)
class Coded:
    """Encoder's result: streams and CRC for the file, and what a person may ask.

    estimated_bits is the tables' ideal code length; symbols int32 [C, h, w] and means int32 (2**-MEAN_BITS steps) make
    the decoder's latents, rows uint16 [C * h * w] their price; seconds by stage.
    """

    streams: tuple[bytes, ...]
    integers_crc: int
    estimated_bits: float
    symbols: np.ndarray
    means: np.ndarray
    rows: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)
    parameters: bytes | None = None
    details: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class RateTables:
    """Integers of every rate index, [256, channels]: see `Model.prior_of_z` and `Model.prior_of_y` for their use."""

    z_mean: np.ndarray
    z_row: np.ndarray
    z_inverse_gain: np.ndarray
    mean_gain: np.ndarray
    scale_offset: np.ndarray


class Model:
    """Networks, integer network, frozen tables, ready to code on a device. autocast runs synthesis in bf16."""

    def __init__(self, weights: Weights, device: str = "cpu", autocast: bool = False):
        tensors = weights.tensors
        try:
            self.network = Hyperprior(config_of(weights.config))
            state = {
                k: torch.from_numpy(tensors[f"float.{k}"]).float() for k in self.network.state_dict() if _floats(k)
            }
            self.network.load_state_dict(state, strict=False)
            self.hyper = IntegerNet.from_arrays(_part(tensors, "hyper."))
            self.tables = Tables(tensors["tables.weights"], tensors["tables.offsets"], tensors["tables.minimums"])
            self.rates = RateTables(**{k: v.astype(np.int64) for k, v in _part(tensors, "rates.").items()})
        except (KeyError, TypeError, RuntimeError, WeightsError) as error:
            raise WeightsError(f"{weights.path}: not hyperprior weights: {error}") from None
        self.weights_id = weights.id
        self.device, self.autocast = torch.device(device), autocast
        self.network.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    def floats_of_integers(self) -> dict[str, torch.Tensor]:
        """Parameters of the networks that decide bits as floats, for a search by gradient in the encoder."""
        state = self.hyper.to_floats("h_s", 2)
        return state

    def prior_of_z(self, rate_index: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Integer means int64 [Z, 1, 1] and table rows uint16 [Z * h * w] of z."""
        rows = np.repeat(self.rates.z_row[rate_index].astype(np.uint16), shape[0] * shape[1])
        return self.rates.z_mean[rate_index][:, None, None], rows

    def prior_of_y(
        self, z_symbols: np.ndarray, rate_index: int, shape: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Integer means int32 [C, h, w] and table rows uint16 [C * h * w] of y, from z's symbols int32 [Z, h', w'].

        Law 1: integers only. mean = m * gain; row = (l + offset - log SIGMA_MIN) * ROWS_PER_NAT, rounded.
        """
        z_hat = (z_symbols.astype(np.int64) << MEAN_BITS) + self.rates.z_mean[rate_index][:, None, None]
        # Beyond this no trained latent goes; it keeps the product within int64 whatever a file says.
        z_hat = np.clip(z_hat, -(2**30), 2**30)
        fixed = shift_round(z_hat * self.rates.z_inverse_gain[rate_index][:, None, None], INVERSE_BITS)
        out = self.hyper(fixed)[:, : shape[0], : shape[1]]
        mean, log_scale = out[: len(out) // 2], out[len(out) // 2 :]
        gain = self.rates.mean_gain[rate_index][:, None, None]
        means = np.clip(shift_round(mean * gain, FRACTION_BITS + GAIN_BITS - MEAN_BITS), -(2**24), 2**24)
        place = log_scale + self.rates.scale_offset[rate_index][:, None, None]
        rows = shift_round(place * ROWS_PER_NAT_FIXED, FRACTION_BITS + 12)
        return means.astype(np.int32), np.clip(rows, 0, SCALE_ROWS - 1).astype(np.uint16).ravel()


def _floats(name: str) -> bool:
    """h_s runs in integers only; the float functions of the rate that the encoder needs stay."""
    return not name.startswith("h_s.")


def _part(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def latent_shapes(width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(h, w) of y and of z for a picture in px: y has just the cells the picture touches."""
    y = (-(-height // IMAGE_STRIDE), -(-width // IMAGE_STRIDE))
    return y, (-(-y[0] // HYPER_STRIDE), -(-y[1] // HYPER_STRIDE))


def _replicate(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad [1, C, h, w] on the right and below by replication to a multiple; smooth continuations cost few bits."""
    down, right = -x.shape[2] % multiple, -x.shape[3] % multiple
    return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x


@torch.inference_mode()
def analyse(model: Model, image: np.ndarray) -> Latents:
    """Run g_a and h_a on an image, uint8 or uint16 [H, W, 3]; the result serves every rate."""
    peak = 65535 if image.dtype == np.uint16 else 255
    x = torch.from_numpy(image.astype(np.float32)).to(model.device)
    x = _replicate(x.permute(2, 0, 1)[None] / peak, IMAGE_STRIDE)
    y = in_strips(model.network.analysis, x, IMAGE_STRIDE, 1, _HALO)
    z = model.network.hyper_analysis(_replicate(y, HYPER_STRIDE))
    return Latents(y[0], z[0], image)


def code(model: Model, latents: Latents, options: Options) -> Coded:
    """Quantise and entropy-code latents at one rate, with the effort that the options say."""
    if not options.effort or latents.image is None:
        return _code(model, latents, options)
    start = time.perf_counter()
    size, depth = latents.image.shape[:2], 8 * latents.image.itemsize
    coded = search.best(
        latents, latents.image, options.rate_index, options.effort,
        lambda these, rounding: _code(model, these, replace(options, verify=False), rounding),
        lambda one: synthesise(model, one.symbols, one.means, options.rate_index, size, False, depth),
        lambda steps: _searched(model, latents, options, steps, start),
    )  # fmt: skip
    seconds = {"search": time.perf_counter() - start} | coded.seconds
    if options.verify:
        again = time.perf_counter()
        _verify(model, coded, options.rate_index, latents.y.shape[1:])
        seconds["verify"] = time.perf_counter() - again
    return replace(coded, seconds=seconds)


def _searched(model: Model, latents: Latents, options: Options, steps: int, start: float) -> Latents:
    model.network.load_state_dict(model.floats_of_integers(), strict=False)
    position = torch.tensor([options.rate_index / 255], device=model.device)
    rate, autocast = model.network.at_rate(position), bf16_is_fast(model.device)

    def transmit(now: tuple[torch.Tensor, ...], quantise: Callable) -> tuple[torch.Tensor, torch.Tensor]:
        x_hat, prices = model.network.transmit(*now, rate, quantise, autocast)
        return x_hat, sum(logistic_bits(symbols, sigma).sum() for _, symbols, sigma in prices)

    found = search.refine(
        transmit, search.picture(latents.image, model.device), (latents.y, latents.z),
        (rate["y_log_gain"].exp(), rate["z_log_gain"].exp()), options.rate_index, steps,
        start + options.max_seconds if options.max_seconds else math.inf, options.progress,
    )  # fmt: skip
    return Latents(*found)


@torch.inference_mode()
def _code(model: Model, latents: Latents, options: Options, rounding: float = 0.0) -> Coded:
    start = time.perf_counter()
    index, position = options.rate_index, torch.tensor([options.rate_index / 255], device=model.device)
    rate = {k: v[0].cpu() for k, v in model.network.at_rate(position).items()}
    z_mean, z_rows = model.prior_of_z(index, latents.z.shape[1:])
    z_symbols = _round(latents.z.cpu() * rate["z_log_gain"].exp() - torch.from_numpy(z_mean / 2.0**MEAN_BITS))
    means, y_rows = model.prior_of_y(z_symbols, index, latents.y.shape[1:])
    networks = time.perf_counter()
    y_scaled = latents.y.cpu() * rate["y_log_gain"].exp()
    residual = y_scaled - torch.from_numpy(means).float() * 2.0**-MEAN_BITS
    y_symbols = _round(residual)
    if rounding:
        flat = torch.nan_to_num(residual).clamp(-(2**24), 2**24).numpy().ravel()
        y_symbols = search.round_by_price(flat, y_rows, model.tables, rounding).reshape(y_symbols.shape)
    encoder = Encoder(model.tables)
    encoder.put(z_symbols.ravel(), z_rows)
    encoder.put(y_symbols.ravel(), y_rows)
    stream = encoder.finish()
    crc = _crc(z_symbols, y_symbols, means, y_rows)
    coded = time.perf_counter()
    bits = ideal_bits(z_symbols.ravel(), z_rows, model.tables) + ideal_bits(y_symbols.ravel(), y_rows, model.tables)
    seconds = {"hyper": networks - start, "entropy": coded - networks}
    result = Coded((stream,), crc, bits, y_symbols, means, y_rows, seconds)
    if options.verify:
        _verify(model, result, index, latents.y.shape[1:])
        seconds["verify"] = time.perf_counter() - coded
    return result


def _verify(model: Model, coded: Coded, rate_index: int, shape: tuple[int, int]) -> None:
    """Raise DriftError unless the stream decodes to the integers that were coded (law 5)."""
    if _crc(*_decode_integers(model, coded.streams[0], rate_index, shape)) != coded.integers_crc:
        raise DriftError("the stream just written does not decode to the same integers on this machine")


def encode(model: Model, image: np.ndarray, options: Options) -> Coded:
    """Encode an image, uint8 or uint16 [H, W, 3]."""
    start = time.perf_counter()
    latents = analyse(model, image)
    analysed = time.perf_counter() - start
    coded = code(model, latents, options)
    coded.seconds["analysis"] = analysed
    return coded


def _round(x: torch.Tensor) -> np.ndarray:
    # NaN and infinities of a strange picture must not reach the coder as undefined integers.
    return torch.nan_to_num(x).clamp(-(2**24), 2**24).round().to(torch.int32).numpy()


def _crc(z_symbols: np.ndarray, y_symbols: np.ndarray, means: np.ndarray, rows: np.ndarray) -> int:
    crc = 0
    for array, kind in ((z_symbols, "<i4"), (y_symbols, "<i4"), (means, "<i4"), (rows, "<u2")):
        crc = zlib.crc32(np.ascontiguousarray(array, kind), crc)
    return crc


def _decode_integers(model: Model, stream: bytes, rate_index: int, shape: tuple[int, int]):
    """Symbols of z and y, means and rows; shape is (h, w) of y."""
    h, w = (-(-side // HYPER_STRIDE) for side in shape)
    decoder = Decoder(stream, model.tables)
    _, z_rows = model.prior_of_z(rate_index, (h, w))
    z_symbols = decoder.get(z_rows).reshape(-1, h, w)
    means, y_rows = model.prior_of_y(z_symbols, rate_index, shape)
    y_symbols = decoder.get(y_rows).reshape(means.shape)
    decoder.finish()
    return z_symbols, y_symbols, means, y_rows


@torch.inference_mode()
def synthesise(
    model: Model, symbols: np.ndarray, means: np.ndarray, rate_index: int, size: tuple[int, int], gray: bool, depth: int
) -> np.ndarray:
    """Latents of one rate, int32 [C, h, w] both, to an image, uint8 or uint16 [H, W, 3]; size is (height, width)."""
    position = torch.tensor([rate_index / 255], device=model.device)
    inverse = model.network.at_rate(position)["y_log_inverse_gain"].exp()
    y = torch.from_numpy(symbols).to(model.device).float() + torch.from_numpy(means).to(model.device) * 2.0**-MEAN_BITS
    y = (y[None] * inverse).contiguous(memory_format=torch.channels_last)
    x = in_strips(lambda part: model.network.synthesis(part, model.autocast), y, 1, IMAGE_STRIDE, _HALO)
    x = x[0, :, : size[0], : size[1]]
    if gray:
        x = x.mean(0, keepdim=True).expand(3, -1, -1)
    peak = 65535 if depth == 16 else 255
    x = torch.nan_to_num(x).clamp(0, 1).mul(peak).round().permute(1, 2, 0).contiguous().cpu()
    return x.numpy().astype(np.uint16 if depth == 16 else np.uint8)


def decode(model: Model, payload: Payload) -> np.ndarray:
    """Decode to an image, uint8 or uint16 [H, W, 3].

    Raises DriftError if the integers differ from the encoder's: the file's own checksum was right, so this platform
    computes something else; FormatError if the file has not the one stream this codec writes.
    """
    if len(payload.streams) != 1 or payload.parameters is not None:
        raise FormatError(
            f"field sections: {len(payload.streams)} streams, the hyperprior codec has exactly 1 and no more"
        )
    shape, z_shape = latent_shapes(payload.width, payload.height)
    # Before anything of the picture's size is allocated: a stream bounds the number of symbols it can hold.
    least = np.minimum.reduceat(model.tables.bits, model.tables.offsets[:-1])[model.rates.z_row[payload.rate_index]]
    if least.sum() * z_shape[0] * z_shape[1] > 8 * len(payload.streams[0]) + 64:
        raise FormatError(
            f"field stream: {len(payload.streams[0])} bytes cannot hold {payload.width} x {payload.height} pixels"
        )
    try:
        z, y, means, rows = _decode_integers(model, payload.streams[0], payload.rate_index, shape)
    except FormatError as error:
        raise DriftError(f"the stream does not decode with these weights on this machine: {error}") from None
    if _crc(z, y, means, rows) != payload.integers_crc:
        raise DriftError(
            "field integers CRC: the decoded integers differ from the encoder's, although file and weights are right: "
            "this platform computes something else; please report it with the output of `latcodec info`"
        )
    size = (payload.height, payload.width)
    return synthesise(model, y, means, payload.rate_index, size, payload.gray, payload.depth)


def export(network: Hyperprior, tables: Tables) -> dict[str, np.ndarray]:
    """Everything a weights file holds: float16 networks, the integer network, frozen tables, integers of each rate."""
    state = {k: v.detach().cpu().float() for k, v in network.state_dict().items() if _floats(k)}
    tensors = {f"float.{k}": v.numpy().astype(np.float16 if v.dim() > 1 else np.float32) for k, v in state.items()}
    positions = torch.arange(RATES) / (RATES - 1)
    with torch.no_grad():
        rate = {k: v[:, :, 0, 0].double().cpu().numpy() for k, v in network.cpu().at_rate(positions).items()}
    z_gain = np.exp(rate["z_log_gain"])
    z_row = np.rint((np.maximum(rate["z_log_sigma"], np.log(SIGMA_MIN)) - np.log(SIGMA_MIN)) * ROWS_PER_NAT)
    integers = RateTables(
        z_mean=np.rint(rate["z_mean"] * 2**MEAN_BITS).astype(np.int32),
        z_row=np.clip(z_row, 0, SCALE_ROWS - 1).astype(np.int32),
        z_inverse_gain=np.rint(2.0 ** (FRACTION_BITS + INVERSE_BITS - MEAN_BITS) / z_gain).astype(np.int32),
        mean_gain=np.rint(np.exp(rate["mean_log_gain"]) * 2**GAIN_BITS).astype(np.int32),
        scale_offset=np.rint((rate["scale_offset"] - np.log(SIGMA_MIN)) * 2**FRACTION_BITS).astype(np.int32),
    )
    tensors |= {f"rates.{k}": v for k, v in vars(integers).items()}
    tensors |= {f"hyper.{k}": v for k, v in quantise(network.h_s.cpu()).to_arrays().items()}
    tensors |= {"tables.weights": tables.weights, "tables.offsets": tables.offsets, "tables.minimums": tables.minimums}
    return tensors


def config_of(stored: dict) -> Config:
    """The configuration that `stored_config` gave; raises WeightsError for other keys."""
    known = set(Config.__dataclass_fields__)
    if not isinstance(stored, dict) or set(stored) != known:
        raise WeightsError(f"config {str(stored)[:200]} does not have the keys {sorted(known)}")
    return Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})


def stored_config(network: Hyperprior) -> dict:
    """The configuration as JSON keeps it."""
    return json.loads(json.dumps(asdict(network.config)))
