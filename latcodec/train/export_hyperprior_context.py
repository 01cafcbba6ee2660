"""From a checkpoint of the context hyperprior to its weights file."""

from pathlib import Path

import numpy as np

from latcodec.backends import hyperprior_context as backend
from latcodec.backends import search
from latcodec.train.checkpoint import averaged_network
from latcodec.train.export import fit
from latcodec.train.export_files import CALIBRATION_SIDE_PX, calibration_crops, write
from latcodec.weights import Weights

NAME = "hyperprior-context"
WHOLE_PX = 32  # sides are multiples of it, so that every latent of a 2x2 square is coded
FIRST_STEP, FIRST_PICTURES = 8, 12  # details: rate indices tried, pictures they are tried on
WORTH = 0.002  # of the Lagrangian: less is not worth the time that details take


def export(checkpoint: Path, out: Path, command: str, paths: list[str], pictures: int = 24) -> Path:
    """Write `out` (safetensors) from a checkpoint, tables fitted on training pictures of `paths`, and index it."""
    network = averaged_network(checkpoint, NAME)
    crops = calibration_crops(paths, pictures, CALIBRATION_SIDE_PX, whole_px=WHOLE_PX)
    tensors = fit(network, crops, NAME, backend)
    if network.details is not None:
        model = backend.Model(Weights(out, "0" * 64, NAME, backend.stored_config(network), tensors))
        step = max(1, len(crops) // FIRST_PICTURES)
        tensors["details.first"] = np.array([first_details(model, crops[::step])], np.int32)
    return write(out, NAME, backend.stored_config(network), command, tensors)


def first_details(model: backend.Model, crops: list[np.ndarray]) -> int:
    """The lowest rate index, of some, from which details make pictures cheaper by more than WORTH; 256 if none does.

    crops: uint8 [H, W, 3].
    """
    latents = [backend.analyse(model, crop) for crop in crops]
    for index in range(0, backend.RATES, FIRST_STEP):
        sums = []
        for model.details.first in (0, backend.RATES):
            prices = []
            for crop, one in zip(crops, latents, strict=True):
                coded = backend.code(model, one, backend.Options(index, verify=False))
                shown = backend.shown(model, coded, index, crop.shape[:2], False, 8)
                prices.append(search.price(coded, shown, crop, index))
            sums.append(sum(prices))
        if sums[0] < (1 - WORTH) * sums[1]:
            return index
    return backend.RATES
