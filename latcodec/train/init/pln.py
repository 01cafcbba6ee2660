"""Start of the ladder network: the trained hyperprior, with noise of a step's variance in place of its rounding.

python -m latcodec.train.init.pln weights/hyperprior.safetensors start.pt
latcodec train --codec pln --init start.pt ...
"""

import math

import torch

from latcodec import weights
from latcodec.backends.pln.network import Config, Ladder
from latcodec.errors import OptionError, WeightsError
from latcodec.train.init.command import StartRequest, run_command
from latcodec.train.init.source import parameters_of
from latcodec.train.settings import config_of

CODEC = "pln"


def start(request: StartRequest) -> Ladder:
    """Return a network equivalent to the hyperprior weights of a request; see `from_hyperprior`."""
    return from_hyperprior(weights.load("hyperprior", selected=str(request.source)), request.options)


@torch.no_grad()
def from_hyperprior(trained: weights.Weights, options: tuple[tuple[str, str], ...] = ()) -> Ladder:
    """Return a ladder network equivalent to hyperprior weights, up to the noise.

    Args:
        trained: The weights.
        options: Fields of the Config and their values as text.

    Raises:
        WeightsError: They are weights of another codec.
    """
    try:
        network = Ladder(config_of(CODEC, Config, trained.config, options))
        state = parameters_of(trained)
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
        raise WeightsError(f"{trained.path}: not hyperprior weights: {error}") from None
    return network


if __name__ == "__main__":
    run_command(CODEC, start, __doc__)
