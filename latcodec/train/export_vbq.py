"""From a checkpoint of the VBQ model to its weights file: empirical priors, codebooks and tables, all fitted."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from latcodec.backends import vbq as backend
from latcodec.backends import vbq_model
from latcodec.errors import WeightsError
from latcodec.models.gaussian_vae import GaussianVAE
from latcodec.train import data, vbq_sets
from latcodec.train.loop import read_checkpoint
from latcodec.train.vbq_fit import Fit, settle_hyper_latent
from latcodec.weights import add_to_index, save

SIDE_PX = 384


def load_checkpoint(path: Path) -> GaussianVAE:
    """The EMA network of a checkpoint; raises WeightsError if it is no checkpoint."""
    try:
        state = read_checkpoint(path, "cpu")
        network = GaussianVAE(vbq_model.config_of(json.loads(state["config"])))
        network.load_state_dict({k: v.float() for k, v in state["ema"].items()})
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: not a checkpoint: {error}") from None
    return network.eval()


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
    network = load_checkpoint(checkpoint)
    files = [path for path in data.find(paths) if not data.is_validation(path)]
    loaded = (data.load_one(path) for path in files[:: max(1, len(files) // pictures)][:pictures])
    crops = [p[:SIDE_PX, :SIDE_PX] for p in loaded if p is not None]
    tensors = fit(network, crops)
    config = vbq_model.stored_config(network)
    digest = save(out, "vbq", config, command, tensors)
    add_to_index(out, "vbq", config, command, digest)
    return out
