"""What a run keeps, and what another run starts from: checkpoints, averages, weights files."""

import io
import json
import math
import pickle
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latcodec import files, weights
from latcodec.backends.common import rdoq as pricing
from latcodec.backends.common.weights_parts import floats_from_arrays, floats_of_integers, integer_nets
from latcodec.backends.nc_vae import contexts
from latcodec.entropy.tables import Tables
from latcodec.errors import LatcodecError, OptionError, WeightsError
from latcodec.nn.layers import with_gdn_units
from latcodec.nn.symbol_costs import with_symbol_costs
from latcodec.train.plans import plan_of
from latcodec.train.settings import config_of

CHECKPOINT = "checkpoint.pt"
AVERAGE = "ema.pt"  # what export and --init need, convolutions as float16
SHARED = ("g_a.", "g_s.", "h_a.")  # parts that mean the same in every codec

NOISE_END = 0.003  # about where the input noise of NC-VAE ends, which its weights do not keep


def read_checkpoint(path: Path, device: torch.device | str) -> dict:
    """What `run` saved; raises WeightsError if the file is no checkpoint."""
    try:
        state = torch.load(path, weights_only=True, map_location=device)
        if not isinstance(state, dict):
            raise ValueError("no dictionary")
        return state
    # torch's reader raises nearly every built-in error on a file that is none.
    except (OSError, EOFError, KeyError, IndexError, RuntimeError, ValueError, TypeError, AttributeError,
            pickle.UnpicklingError) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise WeightsError(f"{path}: not a checkpoint: {reason}") from None


def write(state: dict, path: Path) -> None:
    """Replace a file of torch.save whole; raises LatcodecError, the old file left as it was, if that fails."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        with files.open_output(path, force=True) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        kept = "the one before it stays" if path.exists() else "there is none before it"
        raise LatcodecError(f"{path}: cannot be written: {error.strerror or error}; {kept}") from None


def write_all(state: dict, out: Path) -> None:
    """Replace the checkpoint of a run, and its average for export and --init. Raises LatcodecError."""
    write(state, out / CHECKPOINT)
    small = {k: v.half() if v.dim() == 4 else v for k, v in state["ema"].items()}
    write({k: v for k, v in state.items() if k not in ("model", "optimizer")} | {"ema": small}, out / AVERAGE)


def load_into(path: Path, codec: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer, device) -> dict:
    """Put a checkpoint into model and optimiser; returns all of it. Raises WeightsError for one of another run."""
    state = read_checkpoint(path, device)
    if state.get("codec", codec) != codec:
        raise WeightsError(f"{path}: a checkpoint of {state['codec']}, not of {codec}")
    try:
        without_prices = "prices" in model.state_dict() and "prices" not in state["model"]
        if without_prices or any(name.endswith("gamma_root") for name in state["model"]):
            raise ValueError(f"it is of an older version; go on from its averages in a new run: --init {AVERAGE}")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if state["ema"].keys() != model.state_dict().keys():
            raise ValueError("its average is of another network")
        for name in ("step", "elapsed_s", "settings"):
            state[name]
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        missing = isinstance(error, KeyError)
        reason = f"it has no {error}" if missing else " ".join(str(error).split())[:160]
        raise WeightsError(f"{path}: not a checkpoint of this network: {reason}") from None
    return state


def averaged_network(path: Path, codec: str) -> torch.nn.Module:
    """The network of a codec's checkpoint with the averages as float32 parameters, to be evaluated.

    Raises WeightsError for a file that is no checkpoint, and for one of another codec or network.
    """
    plan = plan_of(codec)
    state = read_checkpoint(path, "cpu")
    if state.get("codec", codec) != codec:
        raise WeightsError(f"{path}: a checkpoint of {state['codec']}, not of {codec}")
    try:
        config = json.loads(state["config"])
        unknown = config.keys() - {field.name for field in fields(plan.config)}
        if unknown:
            raise ValueError(f"{codec} has no option {sorted(unknown)[0]}")
        network = plan.network(config_of(codec, plan.config, config, ()))
        averages = with_symbol_costs(with_gdn_units(state["ema"]), network.state_dict())
        network.load_state_dict({name: value.float() for name, value in averages.items()})
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, OptionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:160]
        raise WeightsError(f"{path}: not a checkpoint of {codec}: {reason}") from None
    return network.eval()


def stored(path: Path) -> tuple[str | None, dict, dict[str, Tensor]]:
    """Codec, config and tensors of weights or of a checkpoint; raises WeightsError."""
    if path.suffix == ".safetensors":
        found = weights.load_file(path)
        tensors = {k.removeprefix("float."): torch.from_numpy(v) for k, v in found.tensors.items()}
        more = _floats_of_contexts(found) if found.backend == "nc-vae" else _prices_of_tables(found)
        return found.backend, found.config, tensors | parameters_of(found) | more
    state = read_checkpoint(path, "cpu")
    if not isinstance(state.get("ema"), dict):
        raise WeightsError(f"{path}: neither weights nor a checkpoint: it has no averages")
    try:
        return state.get("codec"), json.loads(state.get("config", "{}")), with_gdn_units(state["ema"])
    except (AttributeError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: not a checkpoint: {error}") from None


def parameters_of(found: weights.Weights) -> dict[str, Tensor]:
    """Parameters of the network that weights hold, float32 by their names there, from floats and from integers."""
    return floats_from_arrays(found.tensors) | floats_of_integers(integer_nets(found.tensors))


def _prices_of_tables(found: weights.Weights) -> dict[str, Tensor]:
    """What symbols cost by the tables of weights whose training pays that."""
    if found.backend != "hyperprior-context":
        return {}
    tables = Tables(*(found.tensors[f"tables.{name}"] for name in ("weights", "offsets", "minimums")))
    return {"prices": pricing.bits_of_tables(tables, torch.device("cpu"))}


def _floats_of_contexts(found: weights.Weights) -> dict[str, Tensor]:
    """Parameters of NC-VAE's rate module from the integers that stand for it, and its functions of the rate."""
    part = {k.removeprefix("contexts."): v.astype(np.float64) for k, v in found.tensors.items()}
    latent, knots = found.config["latent"], found.config["knots"]

    def at_knots(values: np.ndarray) -> np.ndarray:  # [256, C] of the rate indices -> [knots, C]
        places, indices = np.linspace(0, len(values) - 1, knots), np.arange(len(values))
        return np.stack([np.interp(places, indices, column) for column in values.T], 1)

    def filled(values: np.ndarray) -> np.ndarray:  # channels without a mean have zeros
        return np.concatenate([values, np.zeros((latent - len(values), *values.shape[1:]))])

    log_unit = np.log(part["unit"] / 2**contexts.UNIT_BITS)
    gain = found.tensors["float.y_log_gain"].astype(np.float64)
    # What rounding made 0 starts half a unit large: the slope of a square is 0 there, and it could never learn.
    root = {k: np.sqrt(part[k].clip(0.25) / 2**contexts.WEIGHT_BITS) for k in ("scale", "own_scale")}
    parameters = {
        "rate.scale_root": root["scale"],
        "rate.own_scale_root": root["own_scale"].reshape(latent, -1),
        "rate.mean": filled(part["mean"]).reshape(latent, part["mean"].shape[1], -1) / 2**contexts.MEAN_WEIGHT_BITS,
        "rate.own_mean": filled(part["own_mean"]).reshape(latent, -1) / 2**contexts.MEAN_WEIGHT_BITS,
        "y_log_std": (at_knots(log_unit) - gain).mean(0),
        "log_floor": at_knots(np.log(part["floor"].clip(0.5) / 2**contexts.SIZE_BITS) - log_unit),
        "log_slope": at_knots(np.log(part["slope"].clip(0.5) / 2**contexts.UNIT_BITS) - log_unit),
    }
    if found.config["input_noise"] == "trainable":
        parameters["log_noise"] = np.array(math.log(NOISE_END))
    return {name: torch.from_numpy(value).float() for name, value in parameters.items()}


@torch.no_grad()
def initialise(model: torch.nn.Module, codec: str, path: Path, prefixes: tuple[str, ...] = ("",)) -> tuple[int, int]:
    """Overwrite the model's tensors that `path`, weights or a checkpoint, has under the same name and shape.

    Of another codec only the transforms are taken. Returns how many were taken over and how many the model has. Raises
    WeightsError, also if next to nothing fits.
    """
    of, _, found = stored(path)
    taken, state = 0, model.state_dict()
    for name, value in state.items():
        wanted = name.startswith(prefixes) and (of == codec or name.startswith(SHARED))
        if wanted and name in found and found[name].shape == value.shape:
            value.copy_(found[name])
            taken += 1
    if taken < len(state) // 10 and prefixes == ("",):  # some biases fit every network
        raise WeightsError(
            f"{path}: {taken} of {len(state)} tensors of {of or 'an unnamed codec'} fit this {codec} network"
        )
    return taken, len(state)
