"""Weights of the context codec that end at rate index 0, lambda 20, with rates below it.

python -m latcodec.train.init.low_rates weights/hyperprior-context.safetensors OUT.safetensors [-O latents_until=188]

What there is stays bit for bit; training can go on from the new rates, but they need none: the networks of index 0
serve them with coarser steps, of y by about the root of how much more a bit costs, of z by a little. By trial, by the
Lagrangian of real files.
"""

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
import torch

from latcodec import weights
from latcodec.backends.common.rate_tables import rate_params_of_every_index, subsample_rates
from latcodec.backends.common.weights_parts import stored_config
from latcodec.backends.hyperprior_context.model import RateTables
from latcodec.backends.hyperprior_context.network import LATENT_FUNCTIONS, Config, ContextHyperprior
from latcodec.backends.hyperprior_context.transforms import BRANCH_FUNCTIONS, LOOK_FUNCTIONS, STAGE_FUNCTIONS
from latcodec.errors import LatcodecError, OptionError
from latcodec.rates import LOWEST_INDEX, MAX_INDEX, RATE_STEP
from latcodec.train.export.files import write
from latcodec.train.init.source import parameters_of
from latcodec.train.settings import config_of

COARSER, COARSER_Z = 0.34, 0.1  # logarithms, at LOWEST_INDEX
SIGNS = {"y_log_gain": -1, "y_log_inverse_gain": 1, "context_log_gain": 1, "mean_log_gain": -1, "scale_offset": -1}
SIGNS_OF_Z = {"z_log_gain": -1, "z_log_sigma": -1}


def lowest_knot(name: str, knots: np.ndarray) -> np.ndarray:
    """The knot before those of a function of the rate, [K, C], of their type, [1, C]."""
    added = COARSER * SIGNS.get(name, 0) + COARSER_Z * SIGNS_OF_Z.get(name, 0)
    return (knots[:1].astype(np.float64) + added).astype(knots.dtype)


@torch.no_grad()
def extended(found: weights.Weights, options: tuple[tuple[str, str], ...] = ()) -> tuple[dict, dict[str, np.ndarray]]:
    """Configuration and tensors of weights that go down to LOWEST_INDEX; options: other fields of the configuration.

    Raises OptionError for weights of another codec, and for those that go below index 0 already.
    """
    if found.backend != "hyperprior-context" or found.config.get("lowest_index", 0) < 0:
        raise OptionError(f"{found.path}: not weights of hyperprior-context that end at rate index 0")
    config = config_of("hyperprior-context", Config, found.config, (("lowest_index", str(LOWEST_INDEX)), *options))
    tensors, state = dict(found.tensors), parameters_of(found)
    functions = LATENT_FUNCTIONS + STAGE_FUNCTIONS + LOOK_FUNCTIONS + BRANCH_FUNCTIONS
    for name in [name for name in state if name.split(".")[0] in functions]:
        knots = tensors[f"float.{name}"]
        tensors[f"float.{name}"] = np.concatenate([lowest_knot(name, knots), knots])
        state[name] = torch.from_numpy(tensors[f"float.{name}"]).float()
    network = ContextHyperprior(config)
    state["prices"] = network.prices  # which the tables say
    if missing := network.load_state_dict(state, strict=False).missing_keys:
        raise OptionError(f"{found.path}: it has no {missing[0]}")
    integers = RateTables.of(rate_params_of_every_index(lambda every: network.at_rate(every, every), LOWEST_INDEX))
    for name, table in integers.to_arrays().items():
        if len(tensors[name]) != MAX_INDEX // RATE_STEP + 1:
            raise OptionError(
                f"{found.path}: {name} has {len(tensors[name])} rows, not those of every {RATE_STEP}th rate"
            )
        tensors[name] = np.concatenate([subsample_rates(table)[: -LOWEST_INDEX // RATE_STEP], tensors[name]])
    return stored_config(network), tensors


def main() -> None:
    """Write the weights and their entry in the index beside them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("-O", dest="options", action="append", default=[])
    given = parser.parse_args()
    options = tuple(tuple(option.split("=", 1)) for option in given.options)
    command = f"python -m latcodec.train.init.low_rates {shlex.join(sys.argv[1:])}"
    try:
        config, tensors = extended(weights.load_file(given.source), options)
    except LatcodecError as error:
        parser.error(str(error))
    write(given.out, "hyperprior-context", config, command, tensors)


if __name__ == "__main__":
    main()
