"""From a checkpoint of the ladder network to a PLN weights file: integers of each rate, tables of jumps and indices."""

import json
from pathlib import Path

import numpy as np
import torch

from latcodec.backends import pln as backend
from latcodec.backends.pln_model import (
    FACTOR_BITS,
    GAIN_BITS,
    RATES,
    ROWS_PER_NAT_BITS,
    VALUE_BITS,
    Model,
    config_of,
    floats,
    stored_config,
)
from latcodec.coding import Tables
from latcodec.errors import WeightsError
from latcodec.integer_net import FRACTION_BITS, quantise
from latcodec.latents import greedy, rejection
from latcodec.latents.coded_sampling import BIT
from latcodec.models.ladder import PLACE_MAX, RAMP, Ladder
from latcodec.train import data
from latcodec.train.loop import read_checkpoint
from latcodec.train.tables import quantize_pmf
from latcodec.weights import Weights, add_to_index, save

FIRST_PLACE = -0.25  # of row 1: 0.11 bit; dimensions below it are not coded
ROWS = 2 + int((PLACE_MAX - FIRST_PLACE) * 2**ROWS_PER_NAT_BITS)
LEAST_Z2_BITS = 0.1
JUMP_DEVIATIONS = 2.5  # of the marginal
UNCODED_JUMP = 4.2  # standard deviations of the evidence
JUMP_ROWS, JUMP_SYMBOLS = 26, 6
INDEX_ROWS = 24  # of the indices of rejection sampling: half bits of expected information
INDEX_SOURCES = 4000  # dimensions that each of them is counted on
SIDE_PX, RATE_STEP = 512, 16


def load_checkpoint(path: Path) -> Ladder:
    """The EMA network of a checkpoint; raises WeightsError if it is no checkpoint."""
    try:
        state = read_checkpoint(path, "cpu")
        network = Ladder(config_of(json.loads(state["config"])))
        network.load_state_dict({k: v.float() for k, v in state["ema"].items()})
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: not a checkpoint: {error}") from None
    return network.eval()


def row_tables() -> dict[str, np.ndarray]:
    """Integers of each class of dimension: see `Model`."""
    place = FIRST_PLACE + np.arange(-1, ROWS - 1) / 2**ROWS_PER_NAT_BITS
    nats = np.logaddexp(0, RAMP * place) / RAMP
    nats[0] = 0
    step = JUMP_DEVIATIONS * np.exp(place)
    step[0] = UNCODED_JUMP
    tables = {
        "bits": np.rint(nats * BIT / np.log(2)),
        "scale": np.rint(np.sqrt(np.expm1(2 * nats)) * 2**FACTOR_BITS),
        "step": np.rint(step * 2**VALUE_BITS),
        "first_place": np.array([FIRST_PLACE * 2**FRACTION_BITS]),
    }
    tables["index_row"] = JUMP_ROWS + np.minimum(tables["bits"] // (BIT // 2), INDEX_ROWS - 1)
    for shards in (2, 3):
        tables[f"amplitudes.{shards}"] = greedy.informative_amplitudes(shards, nats)
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


def fitted_jump_rows(model: Model, pictures: list[np.ndarray]) -> np.ndarray:
    """The row of each rate and channel of z2 and z1 that fits how often training pictures jump, int32 [256, Z + C]."""
    knots = np.arange(0, RATES + RATE_STEP - 1, RATE_STEP).clip(0, RATES - 1)
    jumps, seen = np.zeros((len(knots), model.rates.jump_row.shape[1])), np.zeros(len(knots))
    jumps += 0.5 * jump_share(12)
    seen += 0.5
    for number, picture in enumerate(pictures):
        latents = backend.analyse(model, picture)
        for knot in range(number % 4, len(knots), 4):
            jumps[knot] += backend.jump_counts(model, latents, int(knots[knot]))
            seen[knot] += 1
    shares = np.log2(jumps / seen[:, None])
    at = np.arange(RATES) / RATE_STEP
    left = np.minimum(at.astype(int), len(knots) - 2)
    weight = ((np.arange(RATES) - knots[left]) / (knots[left + 1] - knots[left]))[:, None]
    shares = shares[left] * (1 - weight) + shares[left + 1] * weight
    return np.rint(np.clip(2 * (-2 - shares), 0, JUMP_ROWS - 1)).astype(np.int32)


def tensors_of(network: Ladder) -> dict[str, np.ndarray]:
    """Everything a weights file holds, with jump rows that fit nothing in particular yet."""
    state = {k: v.detach().cpu().float() for k, v in network.cpu().state_dict().items() if floats(k)}
    tensors = {f"float.{k}": v.numpy().astype(np.float16 if v.dim() > 1 else np.float32) for k, v in state.items()}
    tensors |= row_tables() | rate_tables(network)
    channels = network.config.hyper_latent + network.config.latent
    tensors["rates.jump_row"] = np.full((RATES, channels), 12, np.int32)
    tensors |= {f"hyper.{k}": v for k, v in quantise(network.h_s).to_arrays().items()}
    frozen = tables()
    return tensors | {f"tables.{name}": getattr(frozen, name) for name in ("weights", "offsets", "minimums")}


def export(checkpoint: Path, out: Path, command: str, paths: list[str], pictures: int = 32) -> Path:
    """Write `out` (safetensors) from a checkpoint, tables fitted on training pictures of `paths`, and index it."""
    network = load_checkpoint(checkpoint)
    config, tensors = stored_config(network), tensors_of(network)
    model = Model(Weights(out, "0" * 64, "pln", config, tensors))
    files = [path for path in data.find(paths) if not data.is_validation(path)]
    loaded = (data.load_one(path) for path in files[:: max(1, len(files) // pictures)])
    crops = [p[:SIDE_PX, :SIDE_PX] for p in loaded if p is not None]
    tensors["rates.jump_row"] = fitted_jump_rows(model, crops)
    digest = save(out, "pln", config, command, tensors)
    add_to_index(out, "pln", config, command, digest)
    return out
