"""Trained weights as a start: tensors of a weights file or of a checkpoint, under the names of the network."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from latcodec import weights
from latcodec.backends.common import rdoq as pricing
from latcodec.backends.common.weights_parts import floats_from_arrays, floats_of_integers, integer_nets
from latcodec.backends.nc_vae import contexts
from latcodec.entropy.tables import Tables
from latcodec.errors import WeightsError
from latcodec.nn.layers import with_gdn_units
from latcodec.train.checkpoint import read_checkpoint

SHARED_TRANSFORMS = ("g_a.", "g_s.", "h_a.")  # parts that mean the same in every codec
NC_VAE_INPUT_NOISE = 0.003  # about where the input noise of NC-VAE ends, which its weights do not keep


@dataclass(frozen=True)
class Source:
    """What a run may start from.

    Attributes:
        path: The file.
        codec: Whose network it is; None if the file does not say.
        config: Options of the network.
        tensors: By the names of the network.
    """

    path: Path
    codec: str | None
    config: dict
    tensors: dict[str, Tensor]


def read_source(path: Path) -> Source:
    """Read weights (.safetensors) or a checkpoint.

    Raises:
        WeightsError: The file is neither.
    """
    if path.suffix == ".safetensors":
        stored = weights.load_file(path)
        tensors = {k.removeprefix("float."): torch.from_numpy(v) for k, v in stored.tensors.items()}
        more = _rate_module_of(stored) if stored.backend == "nc-vae" else _prices_of_tables(stored)
        return Source(path, stored.backend, stored.config, tensors | parameters_of(stored) | more)
    state = read_checkpoint(path, "cpu")
    if not isinstance(state.get("ema"), dict):
        raise WeightsError(f"{path}: neither weights nor a checkpoint: it has no averages")
    try:
        return Source(path, state.get("codec"), json.loads(state.get("config", "{}")), with_gdn_units(state["ema"]))
    except (AttributeError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: not a checkpoint: {error}") from None


@torch.no_grad()
def initialise(network: nn.Module, codec: str, source: Source, prefixes: tuple[str, ...] = ("",)) -> tuple[int, int]:
    """Overwrite the tensors of a network that a source has under the same name and with the same shape.

    Of another codec only the transforms are taken.

    Args:
        network: Of `codec`.
        codec: Name of the codec.
        source: Where tensors come from.
        prefixes: What the names of the tensors to overwrite begin with.

    Returns:
        How many tensors were taken over, and how many the network has.

    Raises:
        WeightsError: All tensors were wanted, and next to none fits.
    """
    taken, state = 0, network.state_dict()
    for name, value in state.items():
        means_the_same = source.codec == codec or name.startswith(SHARED_TRANSFORMS)
        is_wanted = name.startswith(prefixes) and means_the_same
        if is_wanted and name in source.tensors and source.tensors[name].shape == value.shape:
            value.copy_(source.tensors[name])
            taken += 1
    if taken < len(state) // 10 and prefixes == ("",):  # some biases fit every network
        owner = source.codec or "an unnamed codec"
        raise WeightsError(f"{source.path}: {taken} of {len(state)} tensors of {owner} fit this {codec} network")
    return taken, len(state)


def parameters_of(stored: weights.Weights) -> dict[str, Tensor]:
    """Return the parameters that weights hold as floats or as integers, float32, by their names in the network."""
    return floats_from_arrays(stored.tensors) | floats_of_integers(integer_nets(stored.tensors))


def _prices_of_tables(stored: weights.Weights) -> dict[str, Tensor]:
    """What symbols cost by the tables of weights whose training pays that."""
    if stored.backend != "hyperprior-context":
        return {}
    tables = Tables(*(stored.tensors[f"tables.{name}"] for name in ("weights", "offsets", "minimums")))
    return {"prices": pricing.bits_of_tables(tables, torch.device("cpu"))}


def _rate_module_of(stored: weights.Weights) -> dict[str, Tensor]:
    """Parameters of NC-VAE's rate module from the integers that stand for it, and its functions of the rate."""
    part = {k.removeprefix("contexts."): v.astype(np.float64) for k, v in stored.tensors.items()}
    latent, knots = stored.config["latent"], stored.config["knots"]
    log_unit = np.log(part["unit"] / 2**contexts.UNIT_BITS)
    gain = stored.tensors["float.y_log_gain"].astype(np.float64)
    # What rounding made 0 starts half a unit large: the slope of a square is 0 there, and it could never learn.
    root = {k: np.sqrt(part[k].clip(0.25) / 2**contexts.WEIGHT_BITS) for k in ("scale", "own_scale")}
    mean, own_mean = (_padded(part[k], latent) / 2**contexts.MEAN_WEIGHT_BITS for k in ("mean", "own_mean"))
    log_floor = np.log(part["floor"].clip(0.5) / 2**contexts.SIZE_BITS) - log_unit
    log_slope = np.log(part["slope"].clip(0.5) / 2**contexts.UNIT_BITS) - log_unit
    parameters = {
        "rate.scale_root": root["scale"],
        "rate.own_scale_root": root["own_scale"].reshape(latent, -1),
        "rate.mean": mean.reshape(latent, part["mean"].shape[1], -1),
        "rate.own_mean": own_mean.reshape(latent, -1),
        "y_log_std": (_at_knots(log_unit, knots) - gain).mean(0),
        "log_floor": _at_knots(log_floor, knots),
        "log_slope": _at_knots(log_slope, knots),
    }
    if stored.config["input_noise"] == "trainable":
        parameters["log_noise"] = np.array(math.log(NC_VAE_INPUT_NOISE))
    return {name: torch.from_numpy(value).float() for name, value in parameters.items()}


def _at_knots(values: np.ndarray, knots: int) -> np.ndarray:
    """Values of all rate indices, [256, C], at evenly spaced knots, [knots, C]."""
    positions, indices = np.linspace(0, len(values) - 1, knots), np.arange(len(values))
    return np.stack([np.interp(positions, indices, column) for column in values.T], 1)


def _padded(values: np.ndarray, latent: int) -> np.ndarray:
    """Values of the first channels, [n, ...], followed by zeros for channels that have none, [latent, ...]."""
    return np.concatenate([values, np.zeros((latent - len(values), *values.shape[1:]))])
