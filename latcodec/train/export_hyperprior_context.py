"""From a checkpoint of the context hyperprior to its weights file."""

import json
from pathlib import Path

from latcodec.backends import hyperprior_context as backend
from latcodec.errors import WeightsError
from latcodec.models.hyperprior_context import ContextHyperprior
from latcodec.train import data
from latcodec.train.export import CALIBRATION_SIDE_PX, fitted_tables
from latcodec.train.loop import read_checkpoint
from latcodec.train.tables import logistic_tables
from latcodec.weights import Weights, add_to_index, save

NAME = "hyperprior-context"
WHOLE_PX = 32  # sides are multiples of it, so that every latent of a 2x2 square is coded


def load_checkpoint(path: Path) -> ContextHyperprior:
    """The EMA network of a checkpoint; raises WeightsError if it is no checkpoint."""
    try:
        state = read_checkpoint(path, "cpu")
        network = ContextHyperprior(backend.config_of(json.loads(state["config"])))
        network.load_state_dict({k: v.float() for k, v in state["ema"].items()})
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: not a checkpoint: {error}") from None
    return network.eval()


def export(checkpoint: Path, out: Path, command: str, paths: list[str], pictures: int = 64) -> Path:
    """Write `out` (safetensors) from a checkpoint, tables fitted on training pictures of `paths`, and index it."""
    network = load_checkpoint(checkpoint)
    config = backend.stored_config(network)
    tensors = backend.export(network, logistic_tables(backend.sigmas()))
    model = backend.Model(Weights(out, "0" * 64, NAME, config, tensors))
    files = [path for path in data.find(paths) if not data.is_validation(path)]
    loaded = (data.load_one(path) for path in files[:: max(1, len(files) // pictures)])
    crops = []
    for picture in (p for p in loaded if p is not None):
        height, width = (min(side, CALIBRATION_SIDE_PX) // WHOLE_PX * WHOLE_PX for side in picture.shape[:2])
        if height and width:
            crops.append(picture[:height, :width])
    tables = fitted_tables(model, crops, backend)
    tensors |= {"tables.weights": tables.weights, "tables.offsets": tables.offsets, "tables.minimums": tables.minimums}
    digest = save(out, NAME, config, command, tensors)
    add_to_index(out, NAME, config, command, digest)
    return out
