"""Start of the context hyperprior: the trained hyperprior, with corrections and functions of synthesis that are 0.

python -m latcodec.train.init.context weights/hyperprior.safetensors start.pt
latcodec train --codec hyperprior-context --init start.pt ...
"""

import torch

from latcodec import weights
from latcodec.backends.hyperprior_context.network import Config, ContextHyperprior
from latcodec.errors import OptionError, WeightsError
from latcodec.train.init.command import StartRequest, run_command
from latcodec.train.init.source import parameters_of
from latcodec.train.settings import config_of

CODEC = "hyperprior-context"
# What the names of tensors begin with that the hyperprior does not have.
NEW = ("from_", "corrections.", "z_from_seen.", "z_corrections.", "stage_", "prices")


def start(request: StartRequest) -> ContextHyperprior:
    """Return a network that does what the hyperprior weights of a request do; see `from_hyperprior`."""
    return from_hyperprior(weights.load("hyperprior", selected=str(request.source)), request.options)


@torch.no_grad()
def from_hyperprior(trained: weights.Weights, options: tuple[tuple[str, str], ...] = ()) -> ContextHyperprior:
    """Return a network that does what hyperprior weights do.

    Args:
        trained: The weights.
        options: Fields of the Config and their values as text.

    Raises:
        WeightsError: They are weights of another codec.
    """
    try:
        network = ContextHyperprior(config_of(CODEC, Config, trained.config, options))
        state = parameters_of(trained)
        state["context_log_gain"] = -state["y_log_gain"] - state["y_log_std"]
        missing, unknown = network.load_state_dict(state, strict=False)
    except (KeyError, TypeError, RuntimeError, OptionError) as error:
        raise WeightsError(f"{trained.path}: not hyperprior weights: {error}") from None
    if unknown or any(not name.startswith(NEW) for name in missing):
        raise WeightsError(f"{trained.path}: not hyperprior weights: {[*unknown, *missing][0]}")
    return network


if __name__ == "__main__":
    run_command(CODEC, start, __doc__)
