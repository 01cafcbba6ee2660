"""The PLN codec: posterior samples of a two-level ladder, coded with shared randomness; nothing is rounded.

Stream 0 is the range coder's: jumps of z2, jumps of z1 and, with sampler=rejection, its indices. A jump is an escape: a
whole number of steps of some 2.5 standard deviations by which the prior's mean is moved towards evidence that lies
where the candidates do not reach. Stream 1 holds indices of kappa bits: those of z2, Reed-Solomon parity of these
bytes, then those of z1. The decoder knows from z2, in integers, how much information each dimension has, and so which
dimensions share an index. Parameters section (`pln_wire.py`): sampler, kappa, shards. The container's header CRC
covers all but stream 1, so that damage there can be decoded.

Fixed point: z2 has FRACTION_BITS after the point; z1 VALUE_BITS, in units of its evidence's standard deviation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from latcodec.backends.base import Codec as BaseCodec
from latcodec.backends.base import EncodeRequest
from latcodec.backends.common.pixels import latent_shapes, pad_to_multiple, to_image, to_tensor
from latcodec.backends.common.timing import timed_encode
from latcodec.backends.pln import coded_sampling, samplers
from latcodec.backends.pln import parity as pln_parity
from latcodec.backends.pln import wire as pln_wire
from latcodec.backends.pln.coded_sampling import BIT, Machine
from latcodec.backends.pln.entropy_model import FACTOR_BITS, VALUE_BITS, Model, to_value
from latcodec.backends.pln.integers import Integers, bands, decode_integers
from latcodec.backends.pln.measure import Level
from latcodec.backends.pln.options import Options, UserOptions
from latcodec.backends.pln.samplers import Layout
from latcodec.container import Payload
from latcodec.entropy.integer_net import FRACTION_BITS
from latcodec.entropy.range_coder import RangeEncoder, ideal_bits
from latcodec.errors import DriftError, FormatError
from latcodec.nn.geometry import HYPER_STRIDE, IMAGE_STRIDE
from latcodec.nn.tiling import run_in_tiles
from latcodec.weights import Weights

REACH = (1.03, 0.86, -2.5, 1.08)  # of `jumps_to`; encoder only
_HALO = 2  # latents, as in the hyperprior


@dataclass(frozen=True)
class Latents:
    """What the networks say of one picture at every rate: evidence mu_x float32 [C, h, w], mu_2 float32 [Z, h', w']."""

    y: torch.Tensor
    z: torch.Tensor


@dataclass(frozen=True)
class Coded:
    """Encoder's result. estimated_bits: of indices, jumps and parameters; details: a report of each level."""

    streams: tuple[bytes, ...]
    integers_crc: int
    estimated_bits: float
    seconds: dict[str, float] = field(default_factory=dict)
    parameters: bytes | None = None
    details: dict[str, object] = field(default_factory=dict)


@torch.inference_mode()
def analyse(model: Model, image: np.ndarray) -> Latents:
    """Run g_a and h_a on an image, uint8 or uint16 [H, W, 3]; the result serves every rate."""
    y = run_in_tiles(model.network.analysis, to_tensor(image, model.device), IMAGE_STRIDE, 1, _HALO)
    z = model.network.hyper_analysis(pad_to_multiple(y, HYPER_STRIDE))
    # NaN and infinities of a strange picture must not reach the samplers.
    return Latents(torch.nan_to_num(y[0]).clamp(-1e6, 1e6).cpu(), torch.nan_to_num(z[0]).clamp(-1e6, 1e6).cpu())


def jumps_to(distance: np.ndarray, step: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """How many steps the prior's mean jumps towards evidence, int32 of the arrays' common shape.

    distance: float64, of the evidence from the prior's mean; step: int64, of a jump, in the unit of distance; bits:
    int64, expected information, 1/BIT bit. A jump pays where reaching so far without one would cost more: from about
    2.6 standard deviations on, later for dimensions with less information. REACH was fitted to training pictures.
    """
    least, more, fall, uncoded = REACH
    reach = np.where(bits > 0, least + more * np.exp(bits * (fall / BIT)), uncoded) * step
    jumps = np.sign(distance) * np.clip(np.rint(np.abs(distance) / step), 1, 2**20)
    return np.where(np.abs(distance) > reach, jumps, 0).astype(np.int32)


@contextmanager
def _machine() -> Iterator[Machine]:
    """As many searching threads as the networks have, each with one of its own inside the product."""

    def product(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        torch.mm(torch.from_numpy(a), torch.from_numpy(b), out=torch.from_numpy(out))

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield Machine(product, count)
    finally:
        torch.set_num_threads(count)


def _code_z2(model: Model, z: np.ndarray, sigma: np.ndarray, index: int, kappa: int, select: str):
    """Level 2: z2, jumps, indices and the measured level."""
    mean, scale, step = (
        v[index][:, None, None] for v in (model.rates.z2_mean, model.rates.z2_scale, model.rates.z2_step)
    )
    distance = z * 2.0**FRACTION_BITS - mean
    jumps = jumps_to(distance, step, model.rates.z2_bits[index][:, None, None])
    target = (distance - jumps * step) / scale
    noise = np.broadcast_to(sigma[:, None, None] * 2.0**FRACTION_BITS / scale, distance.shape)
    plan = model.blocks_of_z2(index, z[0].size, kappa)
    with _machine() as machine:
        indices = coded_sampling.choose(plan, target.ravel(), noise.ravel(), kappa, select, machine)
    z2 = model.z2_of(index, coded_sampling.sample(plan, indices, z.size).reshape(z.shape), jumps)
    level, unit = Level(len(z)), sigma[:, None, None] * 2.0**FRACTION_BITS
    bits = np.broadcast_to(model.rates.z2_bits[index][:, None, None], z.shape)
    level.add(bits, scale / unit, (distance - jumps * step) / unit, (z2 - mean - jumps * step) / unit)
    return z2, jumps, indices, level


@torch.inference_mode()
def code(model: Model, latents: Latents, options: Options) -> Coded:
    """Sample both levels at one rate and write their indices; q(z1) and its prior follow from the coded z2.

    Raises DriftError if what was written does not decode (law 5).
    """
    start = time.perf_counter()
    index, seconds = options.rate_index, {}
    sampler, kappa, shards, beams, select = options.settled()
    rate = model.network.at_rate(torch.tensor([index / 255], device=model.device))
    sigma1, sigma2 = (rate[k][0, :, 0, 0].double().cpu().exp().numpy() for k in ("z1_log_sigma", "z2_log_sigma"))
    z2, jumps2, chosen2, level2 = _code_z2(model, latents.z.double().numpy(), sigma2, index, kappa, select)
    seconds["level 2"] = time.perf_counter() - start

    start = time.perf_counter()
    means, rows = model.prior_of_z1(z2, index, latents.y.shape[1:])
    seconds["hyper"] = time.perf_counter() - start

    start = time.perf_counter()
    bits = model.classes.bits
    layout, level1 = Layout(sampler, kappa, shards), Level(len(rows))
    values, jumps1 = np.empty(rows.shape, np.int32), np.empty(rows.shape, np.int32)
    chosen, chosen_rows = [], []
    for band in bands(rows.shape):
        some = rows[:, band]
        distance = latents.y[:, band].double().numpy() / sigma1[:, None, None] * 2.0**VALUE_BITS - means[:, band]
        step, scale = model.row_step[some], model.row_scale[some]
        jumps = jumps1[:, band] = jumps_to(distance, step, bits[some])
        unit = np.maximum(1, scale) * 2.0 ** (VALUE_BITS - FACTOR_BITS)
        target, noise = (distance - jumps * step) / unit, 2.0**VALUE_BITS / unit
        flat = some.ravel()
        plan = samplers.plan(layout, bits[flat])
        with _machine() as machine:
            indices = samplers.choose(
                layout, model.classes, plan, flat, target.ravel(), noise.ravel(), select, beams, machine
            )
        samples = samplers.sample(layout, model.classes, plan, flat, indices).reshape(some.shape)
        values[:, band] = to_value(samples, scale, jumps, step, VALUE_BITS)
        jumped = jumps * step
        here, coded = (v * 2.0**-VALUE_BITS for v in (distance - jumped, values[:, band] - jumped))
        level1.add(bits[some], scale * 2.0**-FACTOR_BITS, here, coded)
        chosen.append(indices)
        chosen_rows.append(model.index_row[flat[bits[flat] > 0]])
    seconds["level 1"] = time.perf_counter() - start

    start = time.perf_counter()
    integers = Integers(z2, rows, means, values)
    encoder = RangeEncoder(model.tables)
    puts = {
        2: [(jumps2.ravel(), model.jumps_of_z2(index, z2[0].size))],
        1: [(jumps1.ravel(), model.jumps_of_z1(index, rows))],
    }
    encoder.encode(*puts[2][0])
    encoder.encode(*puts[1][0])
    raw = np.concatenate(chosen)
    if sampler == "rejection":
        puts[1].append((raw.astype(np.int32), np.concatenate(chosen_rows)))
        encoder.encode(*puts[1][1])
        raw = raw[:0]
    head = pln_wire.pack_indices(chosen2, kappa)
    protected = head + pln_parity.parity(head)
    streams = (encoder.finish(), protected + pln_wire.pack_indices(raw, kappa))
    parameters = pln_wire.pack_parameters(layout)
    jump_bits = {n: ideal_bits(*put[0], model.tables) for n, put in puts.items()}
    spent = {n: sum(ideal_bits(*one, model.tables) for one in put) for n, put in puts.items()}
    spent = {2: spent[2] + 8 * len(protected), 1: spent[1] + kappa * len(raw)}
    seconds["entropy"] = time.perf_counter() - start

    start = time.perf_counter()
    if options.verify:
        payload = Payload(0, b"", index, 0, 0, False, 8, 0, streams, parameters=parameters)
        if decode_integers(model, payload, latents.y.shape[1:]).crc() != integers.crc():
            raise DriftError("the streams just written do not decode to the same integers on this machine")
    seconds["verify"] = time.perf_counter() - start
    levels = [level.summary(n, spent[n], jump_bits[n]) for n, level in ((2, level2), (1, level1))]
    details = {"sampler": sampler, "kappa": kappa, "shards": shards, "beams": beams, "select": select, "levels": levels}
    return Coded(streams, integers.crc(), sum(spent.values()) + 8 * len(parameters), seconds, parameters, details)


@torch.inference_mode()
def first_look(model: Model, latents: Latents, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Jumps of z2 at a rate; distance of z1's evidence from its prior (VALUE_BITS) and rows: what export fits to."""
    rate = model.network.at_rate(torch.tensor([index / 255], device=model.device))
    sigma1, sigma2 = (rate[k][0, :, 0, 0].double().cpu().exp().numpy() for k in ("z1_log_sigma", "z2_log_sigma"))
    z2, jumps2, _, _ = _code_z2(model, latents.z.double().numpy(), sigma2, index, 12, "best")
    means, rows = model.prior_of_z1(z2, index, latents.y.shape[1:])
    return jumps2, latents.y.double().numpy() / sigma1[:, None, None] * 2.0**VALUE_BITS - means, rows


encode = timed_encode(analyse, code)


@torch.inference_mode()
def synthesise(
    model: Model, integers: Integers, rate_index: int, size: tuple[int, int], gray: bool, depth: int
) -> np.ndarray:
    """Latents of one rate to an image, uint8 or uint16 [H, W, 3]; size is (height, width)."""
    rate = model.network.at_rate(torch.tensor([rate_index / 255], device=model.device))
    z1 = (torch.from_numpy(integers.means) + torch.from_numpy(integers.values)).to(model.device).float()
    z1 = (z1[None] * (rate["z1_log_sigma"].exp() * 2.0**-VALUE_BITS)).contiguous(memory_format=torch.channels_last)
    x = run_in_tiles(lambda part: model.network.synthesis(part, model.autocast), z1, 1, IMAGE_STRIDE, _HALO)
    return to_image(x, size, gray, depth)


def decode(model: Model, payload: Payload, ignore_checksum: bool = False) -> np.ndarray:
    """Decode to an image, uint8 or uint16 [H, W, 3].

    Raises FormatError if the sections are not this codec's, DriftError if the integers differ from the encoder's. With
    `ignore_checksum` damaged indices are decoded: a wrong one of z1 hurts the dozen latents of its block, and the few
    of z2 have parity.
    """
    shape, z2_shape = latent_shapes(payload.width, payload.height)
    pln_wire.unpack_parameters(payload)
    # Before anything of the picture's size is allocated: indices hold at least the information of z2.
    least = int(model.rates.z2_bits[payload.rate_index].sum()) * z2_shape[0] * z2_shape[1] // BIT
    if least > 8 * len(payload.streams[1]):
        raise FormatError(
            f"field stream 1: {len(payload.streams[1])} bytes cannot hold {payload.width} x {payload.height} pixels"
        )
    try:
        integers = decode_integers(model, payload, shape, ignore_checksum)
    except FormatError as error:
        raise DriftError(f"the streams do not decode with these weights on this machine: {error}") from None
    if not ignore_checksum and integers.crc() != payload.integers_crc:
        raise DriftError(
            "field integers CRC: the decoded integers differ from the encoder's, although file and weights are right: "
            "this platform computes something else; please report it with the output of `latcodec info`"
        )
    size = (payload.height, payload.width)
    return synthesise(model, integers, payload.rate_index, size, payload.gray, payload.depth)


class Codec(BaseCodec):
    """The pln codec as the rest of latcodec sees it."""

    options_class = UserOptions
    decodes_damaged = True

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
        return decode(model, payload, ignore_checksum)
