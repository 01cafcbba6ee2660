"""Parts of a weights file: float networks, integer networks, and the configuration of the network."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latcodec.entropy.integer_net import IntegerNet
from latcodec.errors import WeightsError
from latcodec.nn.layers import with_gdn_units


def with_prefix(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Return the tensors whose names begin with a prefix, under the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def floats_to_arrays(
    network: nn.Module, keep: Callable[[str], bool], small: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """Convert the float state of a network to the arrays of a weights file.

    Args:
        network: the network.
        keep: whether a state of that name is kept.
        small: name prefixes of convolutions whose weights are stored in 8 bits.

    Returns:
        "float.NAME" of each state: float16 weights and float32 vectors; for `small` ones int8 weights and the float32
        unit of each first index, "unit.NAME".
    """
    arrays = {}
    for name, tensor in network.state_dict().items():
        if not keep(name):
            continue
        value = tensor.detach().cpu().float().numpy()
        if value.ndim == 4 and name.startswith(small):
            unit = np.maximum(np.abs(value).max((1, 2, 3)), 1e-12) / 127
            arrays[f"unit.{name}"] = unit
            arrays[f"float.{name}"] = np.rint(value / unit[:, None, None, None]).astype(np.int8)
        else:
            arrays[f"float.{name}"] = value.astype(np.float16 if value.ndim > 1 else np.float32)
    return arrays


def floats_from_arrays(tensors: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Return the float32 state that `floats_to_arrays` stored."""
    state = {}
    for name, value in with_prefix(tensors, "float.").items():
        unit = tensors.get(f"unit.{name}")
        state[name] = torch.from_numpy(value).float()
        if unit is not None:
            state[name] *= torch.from_numpy(unit)[:, None, None, None]
    return with_gdn_units(state)


def load_floats(network: nn.Module, tensors: dict[str, np.ndarray], keep: Callable[[str], bool]) -> None:
    """Load what `floats_to_arrays` stored into a network.

    Raises:
        KeyError: a state is missing.
        RuntimeError: a state has another shape than the network's.
    """
    state = floats_from_arrays(tensors)
    network.load_state_dict({k: state[k] for k in network.state_dict() if keep(k)}, strict=False)


def integer_nets(tensors: dict[str, np.ndarray]) -> dict[str, IntegerNet]:
    """Return the integer networks of a weights file by their names there; raises WeightsError."""
    names = sorted(name.removesuffix(".0.kind") for name in tensors if name.endswith(".0.kind"))
    return {name: IntegerNet.from_arrays(with_prefix(tensors, f"{name}.")) for name in names}


def floats_of_integers(nets: dict[str, IntegerNet]) -> dict[str, Tensor]:
    """Return the float32 state that the networks of `integer_nets` stand for.

    "hyper" is h_s, whose layers are every other module. Networks "PART.n", of one layer each, are the list PART in
    order, or PART itself where there is only one.
    """
    state, parts = {}, [name.rpartition(".")[0] for name in nets]
    for number, (name, net) in enumerate(nets.items()):
        if name == "hyper":
            layers = [f"h_s.{2 * n}" for n in range(len(net.layers))]
        else:
            of = parts[number]
            layers = [of if parts.count(of) == 1 else f"{of}.{number - parts.index(of)}"]
        state |= net.to_floats(layers)
    return state


def config_from(config_class: type, stored: dict) -> Any:
    """Return the configuration that `stored_config` stored.

    Args:
        config_class: dataclass of the configuration; a field that is missing has its default.
        stored: the stored fields.

    Raises:
        WeightsError: a key is unknown.
    """
    known = set(config_class.__dataclass_fields__)
    if not isinstance(stored, dict) or not set(stored) <= known:
        raise WeightsError(f"config {str(stored)[:200]} has other keys than {sorted(known)}")
    return config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})


def stored_config(network: nn.Module) -> dict[str, Any]:
    """Return the configuration of a network as JSON keeps it."""
    return json.loads(json.dumps(asdict(network.config)))
