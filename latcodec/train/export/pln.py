"""From a checkpoint of the ladder network to a PLN weights file: integers of each rate, tables of jumps and indices."""

from pathlib import Path

import numpy as np
import torch

from latcodec.backends.common.weights_parts import stored_config
from latcodec.backends.pln import codec as backend
from latcodec.backends.pln import greedy, rejection
from latcodec.backends.pln.coded_sampling import BIT
from latcodec.backends.pln.entropy_model import (
    FACTOR_BITS,
    GAIN_BITS,
    RATES,
    ROWS_PER_NAT_BITS,
    VALUE_BITS,
    Model,
    floats,
)
from latcodec.backends.pln.network import PLACE_MAX, RAMP, Ladder
from latcodec.entropy.integer_net import FRACTION_BITS, quantise
from latcodec.entropy.tables import Tables
from latcodec.train.checkpoint import averaged_network
from latcodec.train.export.files import calibration_crops, write
from latcodec.train.export.tables import quantize_pmf
from latcodec.weights import Weights

NAME = "pln"
FIRST_PLACE = -0.25  # of row 1: 0.11 bit; dimensions below it are not coded
ROWS = 2 + int((PLACE_MAX - FIRST_PLACE) * 2**ROWS_PER_NAT_BITS)
ALLOCATED = 0.85  # of the expected information: jumps and the slack of blocks add to it. BD-rate hardly depends on it
SHARED_OUT = 0.6  # of the information, for the shards' variances: later shards then reach what the first left
RATE_SHIFT = 0.05  # of the rates, which it moves: so the slope at each lambda is what lambda says
LEAST_Z2_BITS = 0.1
JUMP_DEVIATIONS = 2.5  # of the marginal
UNCODED_JUMP = 4.2  # standard deviations of the evidence
JUMP_ROWS, JUMP_SYMBOLS = 26, 6
INDEX_ROWS = 24  # of the indices of rejection sampling: half bits of expected information
INDEX_SOURCES = 4000  # dimensions that each of them is counted on
SIDE_PX, RATE_STEP = 512, 16
CLASSES, CLASS_BITS = 16, BIT // 3  # of dimensions with like information, for the shares of jumps


def row_tables() -> dict[str, np.ndarray]:
    """Integers of each class of dimension: see `Model`."""
    place = FIRST_PLACE + np.arange(-1, ROWS - 1) / 2**ROWS_PER_NAT_BITS
    nats = np.logaddexp(0, RAMP * place) / RAMP
    nats[0] = 0
    step = JUMP_DEVIATIONS * np.exp(place)
    step[0] = UNCODED_JUMP
    tables = {
        "bits": np.rint(ALLOCATED * nats * BIT / np.log(2)),
        "scale": np.rint(np.sqrt(np.expm1(2 * nats)) * 2**FACTOR_BITS),
        "step": np.rint(step * 2**VALUE_BITS),
        "first_place": np.array([FIRST_PLACE * 2**FRACTION_BITS]),
    }
    tables["index_row"] = JUMP_ROWS + np.minimum(tables["bits"] // (BIT // 2), INDEX_ROWS - 1)
    for shards in (2, 3):
        tables[f"amplitudes.{shards}"] = greedy.informative_amplitudes(shards, SHARED_OUT * nats)
    return {f"rows.{name}": values.astype(np.int32) for name, values in tables.items()}


def rate_tables(network: Ladder) -> dict[str, np.ndarray]:
    """Integers of every rate index, but for the jumps': see `RateTables`."""
    with torch.no_grad():
        rate = network.at_rate(torch.arange(RATES) / (RATES - 1))
        nats = network.nats_of_z2(rate)[:, :, 0, 0].double().numpy()
    rate = {k: v[:, :, 0, 0].double().numpy() for k, v in rate.items()}
    spread = np.sqrt(np.exp(2 * rate["z2_log_std"]) + np.exp(2 * rate["z2_log_sigma"]))
    bits = nats / np.log(2)
    tables = {
        "z2_mean": rate["z2_mean"] * 2**FRACTION_BITS,
        "z2_scale": np.maximum(1, np.exp(rate["z2_log_std"]) * 2**FACTOR_BITS),
        "z2_step": np.maximum(1, JUMP_DEVIATIONS * spread * 2**FRACTION_BITS),
        "z2_bits": np.where(bits < LEAST_Z2_BITS, 0, bits * BIT),
        "mean_gain": np.exp(rate["mean_log_gain"] - rate["z1_log_sigma"]) * 2**GAIN_BITS,
        "scale_offset": (rate["scale_offset"] - rate["z1_log_sigma"]) * 2**FRACTION_BITS,
    }
    return {f"rates.{name}": np.rint(values).astype(np.int32) for name, values in tables.items()}


def jump_share(row: np.ndarray) -> np.ndarray:
    """Share of jumps that a table row expects: half an octave from one to the next."""
    return 2.0 ** (-2 - np.asarray(row) / 2)


def jump_pmfs(ratio: float = 0.15) -> list[np.ndarray]:
    """Probabilities of jumps -JUMP_SYMBOLS .. JUMP_SYMBOLS, then of an escape, one row after another."""
    magnitude = ratio ** np.arange(JUMP_SYMBOLS + 1)
    side = magnitude / magnitude.sum() / 2
    rows = []
    for share in jump_share(np.arange(JUMP_ROWS)):
        half = share * side[:-1]
        rows.append(np.concatenate([half[::-1], [1 - share], half, [2 * share * side[-1]]]))
    return rows


def index_pmfs(count: int) -> list[np.ndarray]:
    """Probabilities of the indices of rejection sampling by half bits, from Gaussian sources; every index has some."""
    rng = np.random.Generator(np.random.Philox(key=[0, 1]))
    nats = np.repeat((np.arange(INDEX_ROWS) / 2 + 0.25) * np.log(2), count)
    noise = np.expm1(2 * nats) ** -0.5
    target = rng.standard_normal(len(nats)) * np.sqrt(1 + noise**2)
    chosen = rejection.choose(np.ones(len(nats), np.int64), target, noise).reshape(INDEX_ROWS, count)
    at = np.arange(1 << rejection.BUDGET_BITS)
    low, high = np.maximum(0, at - np.maximum(1, at // 4)), np.minimum(len(at), at + np.maximum(1, at // 4) + 1)
    rows = []
    for row in chosen:  # rare indices are averaged with their neighbours
        sums = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(at)))])
        rows.append(np.append((sums[high] - sums[low]) / (high - low) + 0.05, 0))
    return rows


def tables() -> Tables:
    """Jumps, then the indices of rejection sampling."""
    indices = index_pmfs(INDEX_SOURCES)
    return quantize_pmf(jump_pmfs() + indices, [-JUMP_SYMBOLS] * JUMP_ROWS + [0] * INDEX_ROWS)


@torch.no_grad()
def shift_rates(network: Ladder, by: float) -> None:
    """Let every function of the rate be that of a rate position higher by so much, extended in a line at the end."""
    weight = by * (network.config.knots - 1)
    for knots in (network.z1_log_sigma, network.mean_log_gain, network.scale_offset, network.z2_log_sigma,
                  network.z2_mean, network.z2_log_std):  # fmt: skip
        after = torch.cat([knots[1:], 2 * knots[-1:] - knots[-2:-1]])
        knots.lerp_(after, weight)


@torch.no_grad()
def calibrate(network: Ladder, model: Model, latents: list[backend.Latents]) -> None:
    """Shift the predicted scales of each channel and rate by what the evidence of training pictures says."""
    knots = len(network.scale_offset)
    nats = 0.5 * np.log1p(np.square(model.row_scale * 2.0**-FACTOR_BITS))
    seen, expected = (np.full((knots, network.config.latent), 10.0) for _ in range(2))
    for number, found in enumerate(latents):
        for knot in range(number % 2, knots, 2):
            _, distance, rows = backend.first_look(model, found, round(255 * knot / (knots - 1)))
            weight = -np.expm1(-2 * nats)[rows]
            expected[knot] += weight.sum((1, 2))
            seen[knot] += (weight * np.square(distance * 2.0**-VALUE_BITS * np.exp(-nats)[rows])).sum((1, 2))
    shift = 0.5 * np.log(seen / expected)
    network.scale_offset.add_(torch.from_numpy(np.clip(shift, -0.3, 0.3)).float())


def fitted_jump_rows(model: Model, latents: list[backend.Latents], rounds: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """How often training pictures jump: table rows of each rate and channel of z2 and z1, int32 [256, Z + C], and what
    each class of z1 adds to them, int32 [rows]."""
    knots = np.arange(0, RATES + RATE_STEP - 1, RATE_STEP).clip(0, RATES - 1)
    classes = np.minimum(model.classes.bits // CLASS_BITS, CLASSES - 2) + (model.classes.bits > 0)
    top = model.rates.z2_mean.shape[1]
    jumps, seen = (np.zeros((len(knots), model.rates.jump_row.shape[1], CLASSES)) for _ in range(2))
    for number, found in enumerate(latents):
        for knot in range(number % 4, len(knots), 4):
            jumps2, distance, rows = backend.first_look(model, found, int(knots[knot]))
            jumps1 = backend.jumps_to(distance, model.row_step[rows], model.classes.bits[rows])
            jumps[knot, :top, 0] += (jumps2 != 0).sum((1, 2))
            seen[knot, :top, 0] += jumps2[0].size
            place = np.arange(len(rows))[:, None, None] * CLASSES + classes[rows]
            for counts, what in ((jumps, (jumps1 != 0).ravel()), (seen, None)):
                summed = np.bincount(place.ravel(), what, len(rows) * CLASSES)
                counts[knot, top:] += summed.reshape(len(rows), CLASSES)
    of_class = np.ones(CLASSES)
    for _ in range(rounds):  # share of jumps = share of the channel at the rate * factor of the class
        of_channel = (jumps.sum(2) + 0.02) / ((seen * of_class).sum(2) + 2)
        expected = (seen * of_channel[:, :, None])[:, top:].sum((0, 1))
        of_class = (jumps[:, top:].sum((0, 1)) + 0.5) / (expected + 0.5)
    logs, at = np.log2(of_channel), np.arange(RATES)
    left = np.minimum(at // RATE_STEP, len(knots) - 2)
    weight = ((at - knots[left]) / (knots[left + 1] - knots[left]))[:, None]
    logs = logs[left] * (1 - weight) + logs[left + 1] * weight
    rows = np.rint(np.clip(2 * (-2 - logs), -JUMP_ROWS, 2 * JUMP_ROWS)).astype(np.int32)
    return rows, np.rint(-2 * np.log2(of_class))[classes].astype(np.int32)


def networks_of(network: Ladder) -> dict[str, np.ndarray]:
    """float16 networks, the integer network and the integers of each rate but for the jumps."""
    state = {k: v.detach().cpu().float() for k, v in network.cpu().state_dict().items() if floats(k)}
    tensors = {f"float.{k}": v.numpy().astype(np.float16 if v.dim() > 1 else np.float32) for k, v in state.items()}
    return tensors | rate_tables(network) | {f"hyper.{k}": v for k, v in quantise(network.h_s).to_arrays().items()}


def tensors_of(network: Ladder) -> dict[str, np.ndarray]:
    """Everything a weights file holds, fitted to nothing in particular yet."""
    frozen, channels = tables(), network.config.hyper_latent + network.config.latent
    tensors = networks_of(network) | row_tables()
    tensors |= {"rates.jump_row": np.full((RATES, channels), 12, np.int32), "rows.jump": np.zeros(ROWS, np.int32)}
    return tensors | {f"tables.{name}": getattr(frozen, name) for name in ("weights", "offsets", "minimums")}


def fit(network: Ladder, pictures: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a weights file, priors and tables fitted to pictures, uint8 [H, W, 3]."""
    config = stored_config(network)

    def model() -> Model:
        return Model(Weights(Path("fit"), "0" * 64, NAME, config, tensors))

    shift_rates(network, RATE_SHIFT)
    tensors = tensors_of(network)
    latents = [backend.analyse(model(), picture) for picture in pictures]
    calibrate(network, model(), latents)
    tensors |= networks_of(network)
    tensors["rates.jump_row"], tensors["rows.jump"] = fitted_jump_rows(model(), latents)
    return tensors


def export(checkpoint: Path, out: Path, command: str, paths: list[str], pictures: int = 40) -> Path:
    """Write `out` (safetensors) from a checkpoint, priors and tables fitted on pictures of `paths`, and index it."""
    network = averaged_network(checkpoint, NAME)
    tensors = fit(network, calibration_crops(paths, pictures, SIDE_PX))
    return write(out, NAME, stored_config(network), command, tensors)
