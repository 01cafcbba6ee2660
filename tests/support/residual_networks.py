"""A small network with a residual layer, and what tests of its codec do with it."""

from pathlib import Path

import numpy as np

from latcodec.backends.hyperprior_context import codec
from latcodec.backends.hyperprior_context.network import Config, ContextHyperprior
from latcodec.container import Payload
from latcodec.train.export.tables import logistic_tables
from latcodec.weights import Weights

NARROW = Config(
    widths=(8, 12, 16), blocks=(0, 1, 1), latent=24, hyper_width=16, hyper_latent=8, context_width=16, knots=3,
    details=64, detail_width=16, details_from=100, latents_until=100, analysis_at_rate=True,
)  # fmt: skip


def model_of(network: ContextHyperprior) -> codec.Model:
    """The model of a network's weights, with tables that were not fitted."""
    tensors = codec.export(network, logistic_tables(codec.sigmas()))
    return codec.Model(Weights(Path("test"), "0" * 64, "x", codec.stored_config(network), tensors))


def payload(coded: codec.Coded, index: int, image: np.ndarray) -> Payload:
    """The file of what an encoder made of an image."""
    return Payload(
        backend_id=5, weights_id=b"0000", rate_index=index, width=image.shape[1], height=image.shape[0], gray=False,
        depth=8 * image.itemsize, integers_crc=coded.integers_crc, streams=coded.streams,
        parameters=coded.parameters,
    )  # fmt: skip


def error(decoded: np.ndarray, image: np.ndarray) -> float:
    """The mean squared error of a picture."""
    return float(np.square(decoded.astype(float) - image).mean())
