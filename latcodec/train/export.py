"""From a checkpoint to a weights file: EMA weights, the integer network and tables fitted to what it meets."""

import json
from pathlib import Path

import numpy as np

from latcodec.backends import hyperprior as backend
from latcodec.coding import Tables
from latcodec.errors import WeightsError
from latcodec.models.hyperprior import Hyperprior
from latcodec.train import data
from latcodec.train.loop import read_checkpoint
from latcodec.train.tables import logistic_tables, quantize_pmf
from latcodec.weights import Weights, add_to_index, save

CALIBRATION_STEP = 16  # every so many rate indices, from another start in each picture
CALIBRATION_SIDE_PX = 512
LOGISTIC_COUNT = 2000.0  # what the logistic of a row weighs against the symbols counted in it


def load_checkpoint(path: Path) -> tuple[Hyperprior, dict]:
    """The EMA network of a checkpoint and what its run was; raises WeightsError if it is no checkpoint."""
    try:
        state = read_checkpoint(path, "cpu")
        network = Hyperprior(backend.config_of(json.loads(state["config"])))
        network.load_state_dict(state["ema"])
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: not a checkpoint: {error}") from None
    return network.eval(), {**json.loads(state["settings"]), "steps_done": state["step"], "seconds": state["elapsed_s"]}


def fitted_tables(model, pictures: list[np.ndarray], backend=backend) -> Tables:
    """Logistic tables corrected by the symbols of training pictures, uint8 [H, W, 3], at many rates, folded at zero.

    backend: the module of the model, whose Coded has as many symbols as rows. The residuals of a trained
    network are not quite the logistic it predicts, and tables are data: the true shape of each row costs nothing at run
    time.
    """
    base = model.tables
    counts = [np.zeros(base.size(row) - 1) for row in range(base.rows)]
    for number, picture in enumerate(pictures):
        latents = backend.analyse(model, picture)
        for index in range(number % CALIBRATION_STEP, backend.RATES, CALIBRATION_STEP):
            coded = backend.code(model, latents, backend.Options(index, verify=False))
            symbols = coded.symbols.ravel()
            for row in np.unique(coded.rows):
                entries = symbols[coded.rows == row] - base.minimums[row]
                entries = entries[(entries >= 0) & (entries < len(counts[row]))]
                counts[row] += np.bincount(entries, minlength=len(counts[row]))
    pmfs = []
    for row, count in enumerate(counts):
        weights = base.weights[base.offsets[row] : base.offsets[row + 1]]
        folded = np.append((count + count[::-1]) / 2, 0)
        half_width = int(backend.sigmas()[row] / 4)  # in wide rows a single symbol is rare: smooth
        if half_width:
            kernel = np.ones(2 * half_width + 1) / (2 * half_width + 1)
            folded[:-1] = np.convolve(folded[:-1], kernel, "same")
        pmfs.append(folded + LOGISTIC_COUNT * weights / weights.sum())
    return quantize_pmf(pmfs, base.minimums.tolist())


def export(checkpoint: Path, out: Path, command: str, paths: list[str], pictures: int = 64) -> Path:
    """Write `out` (safetensors) from a checkpoint, tables fitted on training pictures of `paths`, and index it."""
    network, _ = load_checkpoint(checkpoint)
    start = logistic_tables(backend.sigmas())
    config = backend.stored_config(network)
    tensors = backend.export(network, start)
    model = backend.Model(Weights(out, "0" * 64, "hyperprior", config, tensors))
    files = [path for path in data.find(paths) if not data.is_validation(path)]
    loaded = (data.load_one(path) for path in files[:: max(1, len(files) // pictures)])
    crops = [p[:CALIBRATION_SIDE_PX, :CALIBRATION_SIDE_PX] for p in loaded if p is not None]
    tables = fitted_tables(model, crops)
    tensors |= {"tables.weights": tables.weights, "tables.offsets": tables.offsets, "tables.minimums": tables.minimums}
    digest = save(out, "hyperprior", config, command, tensors)
    add_to_index(out, "hyperprior", config, command, digest)
    return out
