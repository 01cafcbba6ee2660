"""From a checkpoint of NC-VAE to its weights file: transforms, integer contexts, tables fitted to training pictures."""

import math
from pathlib import Path

import numpy as np

from latcodec.backends.nc_vae import codec as backend
from latcodec.backends.nc_vae import contexts as ctx
from latcodec.backends.nc_vae.network import NCVAE
from latcodec.entropy.tables import Tables
from latcodec.train.checkpoint import averaged_network
from latcodec.train.export.files import (
    CALIBRATION_SIDE_PX,
    CALIBRATION_STEP,
    calibration_crops,
    corrected_tables,
    write,
)
from latcodec.train.export.tables import quantize_pmf
from latcodec.weights import Weights

NAME = "nc-vae"
TAIL_MASS = 2.0**-13


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
    for scale_row, sigma in enumerate(ctx.scale_sigmas().tolist()):
        for fraction in range(ctx.FRACTIONS):
            row = int(ctx.table_index_of(np.array(scale_row), np.array(fraction)))
            if row not in rows:
                rows[row] = logistic_pmf(sigma, fraction * 8 / 64 if scale_row < ctx.NARROW_SCALES else 0.0)
    return quantize_pmf([rows[r][0] for r in range(ctx.NUM_TABLES)], [rows[r][1] for r in range(ctx.NUM_TABLES)])


class _Census:
    """Takes an encoder's place and counts symbols by row."""

    def __init__(self, tables: Tables):
        self.counts = [np.zeros(tables.size(row)) for row in range(tables.num_tables)]

    def encode(self, symbols: np.ndarray, rows: np.ndarray, tables: Tables, counts: np.ndarray | None) -> None:
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
            backend.quantise_and_encode(model, latents, index, census)
    near_zero = {
        int(ctx.table_index_of(np.array(s), np.array(0))): size for s, size in enumerate(ctx.scale_sigmas().tolist())
    }
    return corrected_tables(base, census.counts, [near_zero.get(row) for row in range(base.num_tables)])


def fit(network: NCVAE, pictures: list[np.ndarray]) -> dict[str, np.ndarray]:
    """All tensors of the weights file; pictures are uint8 [H, W, 3]."""
    config = backend.stored_config(network)
    tensors = backend.export(network, logistic_tables())
    model = backend.Model(Weights(Path("fit"), "0" * 64, NAME, config, tensors))
    return backend.export(network, fitted_tables(model, pictures))


def export(checkpoint: Path, out: Path, command: str, paths: list[str], pictures: int = 64) -> Path:
    """Write `out` (safetensors) from a checkpoint, tables fitted on training pictures of `paths`, and index it."""
    network = averaged_network(checkpoint, NAME)
    tensors = fit(network, calibration_crops(paths, pictures, CALIBRATION_SIDE_PX, most=pictures))
    return write(out, NAME, backend.stored_config(network), command, tensors)
