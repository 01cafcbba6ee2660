"""From a checkpoint of the context hyperprior to its weights file."""

from pathlib import Path

from latcodec.backends.hyperprior_context import codec as backend
from latcodec.train.checkpoint import averaged_network
from latcodec.train.export.files import CALIBRATION_SIDE_PX, calibration_crops, write
from latcodec.train.export.hyperprior import fit

NAME = "hyperprior-context"
PASSES = 2  # what the first tables make the encoder round is not what they were fitted to
WHOLE_PX = 32  # sides are multiples of it, so that every latent of a 2x2 square is coded


def export(checkpoint: Path, out: Path, command: str, paths: list[str], pictures: int = 24) -> Path:
    """Write `out` (safetensors) from a checkpoint, tables fitted on training pictures of `paths`, and index it."""
    network = averaged_network(checkpoint, NAME)
    crops = calibration_crops(paths, pictures, CALIBRATION_SIDE_PX, whole_px=WHOLE_PX)
    return write(out, NAME, backend.stored_config(network), command, fit(network, crops, NAME, backend, PASSES))
