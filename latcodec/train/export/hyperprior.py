"""From a checkpoint to a weights file: EMA weights, the integer network and tables fitted to what it meets."""

from pathlib import Path

import numpy as np

from latcodec.backends.hyperprior import codec as backend
from latcodec.entropy.tables import Tables
from latcodec.train.checkpoint import averaged_network
from latcodec.train.export.files import (
    CALIBRATION_SIDE_PX,
    CALIBRATION_STEP,
    calibration_crops,
    corrected_tables,
    write,
)
from latcodec.train.export.tables import logistic_tables
from latcodec.weights import Weights

NAME = "hyperprior"


def fitted_tables(model, pictures: list[np.ndarray], backend=backend) -> Tables:
    """Logistic tables corrected by the symbols of training pictures, uint8 [H, W, 3], at many rates.

    backend: the module of the model, whose Coded has `counted`.
    """
    base = logistic_tables(backend.sigmas())
    counts = [np.zeros(base.size(row)) for row in range(base.num_tables)]
    for number, picture in enumerate(pictures):
        latents = backend.analyse(model, picture)
        for index in range(model.lowest_index + number % CALIBRATION_STEP, backend.RATES, CALIBRATION_STEP):
            coded = backend.code(model, latents, backend.Options(index, verify=False))
            symbols, rows = coded.counted()
            for row in np.unique(rows):
                entries, escape = symbols[rows == row] - base.minimums[row], len(counts[row]) - 1
                entries = entries[(entries >= 0) & (entries < escape)]
                counts[row] += np.bincount(entries, minlength=escape + 1)
    return corrected_tables(base, counts, backend.sigmas().tolist())


def fit(
    network, pictures: list[np.ndarray], codec: str = NAME, backend=backend, passes: int = 1
) -> dict[str, np.ndarray]:
    """All tensors of the weights file; pictures are uint8 [H, W, 3]. backend: the module of the codec, as above.

    passes: how often tables are fitted, each time to symbols that are rounded by the price of those before.
    """
    tensors = backend.export(network, logistic_tables(backend.sigmas()))
    for _ in range(passes):
        model = backend.Model(Weights(Path("fit"), "0" * 64, codec, backend.stored_config(network), tensors))
        tensors = backend.export(network, fitted_tables(model, pictures, backend))
    return tensors


def export(checkpoint: Path, out: Path, command: str, paths: list[str], pictures: int = 64) -> Path:
    """Write `out` (safetensors) from a checkpoint, tables fitted on training pictures of `paths`, and index it."""
    network = averaged_network(checkpoint, NAME)
    tensors = fit(network, calibration_crops(paths, pictures, CALIBRATION_SIDE_PX))
    return write(out, NAME, backend.stored_config(network), command, tensors)
