"""Where the context hyperprior starts: as the trained hyperprior, its corrections 0.

python -m latcodec.train.start_context weights/hyperprior.safetensors start.pt
latcodec train --codec hyperprior-context --init start.pt ...
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from latcodec import weights
from latcodec.errors import WeightsError
from latcodec.models.hyperprior_context import Config, ContextHyperprior
from latcodec.train.start_pln import floats_of_integers


@torch.no_grad()
def from_hyperprior(found: weights.Weights) -> ContextHyperprior:
    """A network that does what the hyperprior weights `found` do; raises WeightsError for other weights."""
    try:
        names = ("widths", "latent", "hyper_width", "hyper_latent", "knots")
        network = ContextHyperprior(Config(**{k: found.config[k] for k in names}))
        state = {
            k.removeprefix("float."): torch.from_numpy(v).float()
            for k, v in found.tensors.items()
            if k.startswith("float.")
        }
        state |= floats_of_integers(found)
        state["context_log_gain"] = -state["y_log_gain"] - state["y_log_std"]
        missing, unknown = network.load_state_dict(state, strict=False)
    except (KeyError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{found.path}: not hyperprior weights: {error}") from None
    if unknown or any(not name.startswith(("from_", "corrections.")) for name in missing):
        raise WeightsError(f"{found.path}: not hyperprior weights: {[*unknown, *missing][0]}")
    return network


def main(source: str, out: str) -> None:
    """Write a checkpoint that `train --init` reads."""
    network = from_hyperprior(weights.load("hyperprior", selected=source))
    state = {"codec": "hyperprior-context", "config": json.dumps(asdict(network.config)), "ema": network.state_dict()}
    torch.save(state, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
