"""Where the context hyperprior starts: as the trained hyperprior, corrections and functions of synthesis 0.

python -m latcodec.train.init.context weights/hyperprior.safetensors start.pt
latcodec train --codec hyperprior-context --init start.pt ...
"""

import torch

from latcodec import weights
from latcodec.backends.hyperprior_context.network import Config, ContextHyperprior
from latcodec.errors import OptionError, WeightsError
from latcodec.train.checkpoint import parameters_of
from latcodec.train.init.files import main
from latcodec.train.settings import config_of

NAME = "hyperprior-context"
NEW = ("from_", "corrections.", "z_from_seen.", "z_corrections.", "stage_", "prices")  # what the hyperprior has not


@torch.no_grad()
def from_hyperprior(found: weights.Weights) -> ContextHyperprior:
    """A network that does what the hyperprior weights `found` do; raises WeightsError for other weights."""
    try:
        network = ContextHyperprior(config_of(NAME, Config, found.config, ()))
        state = parameters_of(found)
        state["context_log_gain"] = -state["y_log_gain"] - state["y_log_std"]
        missing, unknown = network.load_state_dict(state, strict=False)
    except (KeyError, TypeError, RuntimeError, OptionError) as error:
        raise WeightsError(f"{found.path}: not hyperprior weights: {error}") from None
    if unknown or any(not name.startswith(NEW) for name in missing):
        raise WeightsError(f"{found.path}: not hyperprior weights: {[*unknown, *missing][0]}")
    return network


if __name__ == "__main__":
    main(NAME, from_hyperprior)
