"""Where the ladder network starts: as the trained hyperprior, with noise of a step's variance for its rounding.

python -m latcodec.train.init.pln weights/hyperprior.safetensors start.pt
latcodec train --codec pln --init start.pt ...
"""

import math

import torch

from latcodec import weights
from latcodec.backends.pln.network import Config, Ladder
from latcodec.errors import OptionError, WeightsError
from latcodec.train.checkpoint import parameters_of
from latcodec.train.init.files import main
from latcodec.train.settings import config_of

NAME = "pln"


@torch.no_grad()
def from_hyperprior(found: weights.Weights) -> Ladder:
    """A ladder network equivalent to hyperprior weights, up to the noise; raises WeightsError for other weights."""
    try:
        network = Ladder(config_of(NAME, Config, found.config, ()))
        state = parameters_of(found)
        gains = state.pop("y_log_gain")
        step = -gains
        state["z1_log_sigma"] = step - math.log(12) / 2
        state["mean_log_gain"] += step
        state["scale_offset"] += step
        gain = state.pop("z_log_gain")
        state["z2_log_sigma"] = -gain - math.log(12) / 2
        state["z2_mean"] = state.pop("z_mean") / gain.exp()
        state["z2_log_std"] = state.pop("z_log_sigma") - gain
        # Synthesis there has a gain of its own; the share that does not shrink rounded values is that of the best rate.
        scale = (gains[-1] + state.pop("y_log_inverse_gain")[-1]).exp()
        state["g_s.0.weight"] = state["g_s.0.weight"] * scale[:, None, None, None]
        network.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError, OptionError) as error:
        raise WeightsError(f"{found.path}: not hyperprior weights: {error}") from None
    return network


if __name__ == "__main__":
    main(NAME, from_hyperprior)
