"""From a checkpoint of NC-VAE to its weights file: transforms, integer contexts, tables fitted to training pictures."""

import json
import math
from pathlib import Path

import numpy as np

from latcodec.backends import ncvae as backend
from latcodec.coding import Tables
from latcodec.errors import WeightsError
from latcodec.latents import contexts as ctx
from latcodec.models.ncvae import NCVAE
from latcodec.train import data
from latcodec.train.loop import read_checkpoint
from latcodec.train.tables import quantize_pmf
from latcodec.weights import Weights, add_to_index, save

CALIBRATION_STEP = 16  # every so many rate indices, from another start in each picture
CALIBRATION_SIDE_PX = 512
LOGISTIC_COUNT = 2000.0  # what the logistic of a row weighs against the symbols counted in it
TAIL_MASS = 2.0**-13


def load_checkpoint(path: Path) -> NCVAE:
    """The EMA network of a checkpoint; raises WeightsError if it is no checkpoint."""
    try:
        state = read_checkpoint(path, "cpu")
        network = NCVAE(backend.config_of(json.loads(state["config"])))
        network.load_state_dict({k: v.float() for k, v in state["ema"].items()})
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: not a checkpoint: {error}") from None
    return network.eval()


def logistic_pmf(sigma: float, mean: float) -> tuple[np.ndarray, int]:
    """A logistic over whole symbols with a two-sided geometric tail: (pmf whose last entry is the escape, minimum)."""
    reach = math.ceil(6 * sigma) + 4
    edges = np.arange(-reach, reach + 2) - 0.5 - mean
    cumulative = 1 / (1 + np.exp(-np.clip(edges * (math.pi / math.sqrt(3) / sigma), -700, 700)))
    ratio = math.exp(-3 / reach)
    tail = ratio ** np.abs(np.arange(-reach, reach + 1))
    pmf = (1 - TAIL_MASS) * np.diff(cumulative) + TAIL_MASS * 0.9 * tail / tail.sum()
    return np.append(pmf, max(0.0, 1 - pmf.sum())), -reach


def logistic_tables() -> Tables:
    """Tables of every row before any picture was seen."""
    rows: dict[int, tuple[np.ndarray, int]] = {}
    for scale_row, sigma in enumerate(ctx.sizes().tolist()):
        for fraction in range(ctx.FRACTIONS):
            row = int(ctx.rows_of(np.array(scale_row), np.array(fraction)))
            if row not in rows:
                rows[row] = logistic_pmf(sigma, fraction * 8 / 64 if scale_row < ctx.NARROW_ROWS else 0.0)
    return quantize_pmf([rows[r][0] for r in range(ctx.ROWS)], [rows[r][1] for r in range(ctx.ROWS)])


class _Census:
    """Takes an encoder's place and counts symbols by row."""

    def __init__(self, tables: Tables):
        self.counts = [np.zeros(tables.size(row)) for row in range(tables.rows)]

    def put(self, symbols: np.ndarray, rows: np.ndarray, tables: Tables, counts: np.ndarray | None) -> None:
        order = np.argsort(rows, kind="stable")
        starts = np.flatnonzero(np.diff(rows[order], prepend=-1))
        for places in np.split(order, starts[1:]):
            row = int(rows[places[0]])
            entries = symbols[places] - tables.minimums[row]
            escape = tables.size(row) - 1
            entries = np.where((entries < 0) | (entries > escape), escape, entries)
            self.counts[row] += np.bincount(entries, minlength=escape + 1)


def fitted_tables(model: backend.Model, pictures: list[np.ndarray]) -> Tables:
    """Logistic tables corrected by the symbols of training pictures, uint8 [H, W, 3], at many rates."""
    base, census = model.tables, _Census(model.tables)
    for number, picture in enumerate(pictures):
        latents = backend.analyse(model, picture)
        for index in range(number % CALIBRATION_STEP, backend.RATES, CALIBRATION_STEP):
            backend.transcribe(model, latents, backend.Options(index), census)
    sigmas, pmfs = ctx.sizes(), []
    wide = {int(ctx.rows_of(np.array(s), np.array(0))): s for s in range(ctx.SCALE_ROWS)}  # rows of means near 0
    for row, counts in enumerate(census.counts):
        weights = base.weights[base.offsets[row] : base.offsets[row + 1]]
        body = counts[:-1]
        if row in wide:
            body = (body + body[::-1]) / 2
            half_width = int(sigmas[wide[row]] / 4)  # in wide rows a single symbol is rare: smooth
            if half_width:
                body = np.convolve(body, np.ones(2 * half_width + 1) / (2 * half_width + 1), "same")
        pmfs.append(np.append(body, counts[-1]) + LOGISTIC_COUNT * weights / weights.sum())
    return quantize_pmf(pmfs, base.minimums.tolist())


def fit(network: NCVAE, pictures: list[np.ndarray]) -> dict[str, np.ndarray]:
    """All tensors of the weights file; pictures are uint8 [H, W, 3]."""
    config = backend.stored_config(network)
    tensors = backend.export(network, logistic_tables())
    model = backend.Model(Weights(Path("fit"), "0" * 64, "nc-vae", config, tensors))
    return backend.export(network, fitted_tables(model, pictures))


def export(checkpoint: Path, out: Path, command: str, paths: list[str], pictures: int = 64) -> Path:
    """Write `out` (safetensors) from a checkpoint, tables fitted on training pictures of `paths`, and index it."""
    network = load_checkpoint(checkpoint)
    files = [path for path in data.find(paths) if not data.is_validation(path)]
    loaded = (data.load_one(path) for path in files[:: max(1, len(files) // pictures)][:pictures])
    crops = [p[:CALIBRATION_SIDE_PX, :CALIBRATION_SIDE_PX] for p in loaded if p is not None]
    tensors, config = fit(network, crops), backend.stored_config(network)
    digest = save(out, "nc-vae", config, command, tensors)
    add_to_index(out, "nc-vae", config, command, digest)
    return out
