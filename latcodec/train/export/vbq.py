"""From a checkpoint of the VBQ model to its weights file: empirical priors, codebooks and tables, all fitted."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from latcodec.backends.common.weights_parts import stored_config
from latcodec.backends.vbq import codec as backend
from latcodec.backends.vbq.network import GaussianVAE
from latcodec.train.checkpoint import averaged_network
from latcodec.train.export import vbq_sets
from latcodec.train.export.files import calibration_crops, write
from latcodec.train.export.vbq_fit import Fit, settle_hyper_latent

NAME = "vbq"
SIDE_PX = 384


@torch.inference_mode()
def fit(network: GaussianVAE, pictures: list[np.ndarray], report: Callable[[str], None] = print,
        rivals: bool = True, priors: tuple[str, ...] = backend.PRIORS) -> dict[str, np.ndarray]:  # fmt: skip
    """All tensors of the weights file; pictures are uint8 [H, W, 3]. rivals: the paper's comparisons too."""
    report(f"z coarser by exp({settle_hyper_latent(network, pictures):g})")
    making = Fit(network, pictures, report)
    making.fit_hyper_shape()
    making.fit_factorized()
    for prior in priors:
        vbq_sets.code_points(making, prior)
        if rivals:
            vbq_sets.algorithm_1(making, prior)
            vbq_sets.uniform(making, prior)
            vbq_sets.books(making, "kmeans", prior)
            vbq_sets.books(making, "lloyd", prior)
    making.model()
    return making.tensors


def export(checkpoint: Path, out: Path, command: str, paths: list[str], pictures: int = 48) -> Path:
    """Write `out` (safetensors) from a checkpoint, everything fitted on training pictures of `paths`, and index it."""
    network = averaged_network(checkpoint, NAME)
    tensors = fit(network, calibration_crops(paths, pictures, SIDE_PX, most=pictures))
    return write(out, NAME, stored_config(network), command, tensors)
