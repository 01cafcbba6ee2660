"""Where the ladder network starts: as the trained hyperprior, with noise of a step's variance for its rounding.

python -m latcodec.train.start_pln weights/hyperprior.safetensors start.pt
latcodec train --codec pln --init start.pt ...
"""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from latcodec import weights
from latcodec.errors import WeightsError
from latcodec.integer_net import IntegerNet
from latcodec.models.ladder import Config, Ladder


@torch.no_grad()
def from_hyperprior(found: weights.Weights) -> Ladder:
    """A ladder network equivalent to hyperprior weights, up to the noise; raises WeightsError for other weights."""
    try:
        names = Config.__dataclass_fields__.keys() & found.config.keys()
        network = Ladder(Config(**{k: tuple(v) if isinstance(v := found.config[k], list) else v for k in names}))
        state = {
            k.removeprefix("float."): torch.from_numpy(v).float()
            for k, v in found.tensors.items()
            if k.startswith("float.")
        }
        state |= floats_of_integers(found)
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
    except (KeyError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{found.path}: not hyperprior weights: {error}") from None
    return network


def floats_of_integers(found: weights.Weights) -> dict[str, Tensor]:
    """Parameters of h_s from its integers; its layers are every other module of the sequence."""
    integers = {k.removeprefix("hyper."): v for k, v in found.tensors.items() if k.startswith("hyper.")}
    return IntegerNet.from_arrays(integers).to_floats("h_s", 2)


def main(source: str, out: str) -> None:
    """Write a checkpoint that `train --init` reads."""
    network = from_hyperprior(weights.load("hyperprior", selected=source))
    state = {"codec": "pln", "config": json.dumps(asdict(network.config)), "ema": network.state_dict()}
    torch.save(state, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
