"""What a run saves so that it can go on: its checkpoint, and beside it a small file of the averages.

A checkpoint is a dictionary of torch.save: "model", "optimizer" and "ema" (states by name), "step", "elapsed_s",
"codec", "config" and "settings" (JSON), "pictures" (a digest of the training pictures). The file of averages has no
"model" and no "optimizer", and convolutions as float16: a sixth of the size.
"""

import io
import json
import pickle
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latcodec import files
from latcodec.errors import LatcodecError, OptionError, WeightsError
from latcodec.nn.layers import with_gdn_units
from latcodec.nn.symbol_costs import with_symbol_costs
from latcodec.train.plans import plan_of
from latcodec.train.settings import DEFINES_RUN, TrainSettings, config_of
from latcodec.train.step import TrainState
from latcodec.weights import modern_names

CHECKPOINT = "checkpoint.pt"
AVERAGE = "ema.pt"


@dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint says about its run.

    Attributes:
        settings: Of the run.
        config: Options of the network, a frozen dataclass.
        pictures: `data.digest` of the training pictures.
    """

    settings: TrainSettings
    config: Any
    pictures: str

    def differences(self, stored: dict) -> str:
        """Return what keeps this run from being the uninterrupted one, as the end of a sentence.

        Args:
            stored: The checkpoint that the run goes on from.
        """
        stored_settings, settings = json.loads(stored["settings"]), _as_json(self.settings)
        stored_config, config = json.loads(stored["config"]), _as_json(self.config)
        changed = [name for name in DEFINES_RUN if stored_settings.get(name, settings[name]) != settings[name]]
        changed += [name for name in config if stored_config.get(name, config[name]) != config[name]]
        changed += ["pictures"] if stored.get("pictures", self.pictures) != self.pictures else []
        missing = [f"{name} {config[name]}" for name in config if name not in stored_config]
        sentence = f"; other {', '.join(changed)} than before" if changed else ""
        return sentence + (f"; it did not say {', '.join(missing)}" if missing else "")


def _as_json(dataclass_instance: Any) -> dict:
    """The fields of a dataclass with the types that JSON keeps."""
    return json.loads(json.dumps(asdict(dataclass_instance)))


def read_checkpoint(path: Path, device: torch.device | str) -> dict:
    """Read what `save` wrote, tensors and options under the names that the code uses.

    Raises:
        WeightsError: The file is no checkpoint.
    """
    try:
        state = torch.load(path, weights_only=True, map_location=device)
        if not isinstance(state, dict):
            raise ValueError("no dictionary")
        return _with_modern_names(state)
    # torch's reader raises nearly every built-in error on a file that is none.
    except (OSError, EOFError, KeyError, IndexError, RuntimeError, ValueError, TypeError, AttributeError,
            pickle.UnpicklingError) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise WeightsError(f"{path}: not a checkpoint: {reason}") from None


def _with_modern_names(state: dict) -> dict:
    codec, text = state.get("codec"), state.get("config")
    config = json.loads(text) if isinstance(text, str) else None
    if not isinstance(codec, str) or not isinstance(config, dict):
        return state
    renamed: dict[str, Any] = {}
    for part in ("model", "ema"):
        if isinstance(state.get(part), dict):
            renamed[part], modern_config = modern_names(codec, state[part], config)
            renamed["config"] = json.dumps(modern_config)
    return state | renamed


def write(state: dict, path: Path) -> None:
    """Replace a file of torch.save whole.

    Raises:
        LatcodecError: The file cannot be written; the one before it is as it was.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        with files.open_output(path, force=True) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        kept = "the one before it stays" if path.exists() else "there is none before it"
        raise LatcodecError(f"{path}: cannot be written: {error.strerror or error}; {kept}") from None


def write_network(codec: str, network: nn.Module, path: Path) -> None:
    """Write a network as a file that `latcodec train --init` reads; `network.config` is its dataclass of options.

    Raises:
        LatcodecError: The file cannot be written.
    """
    write({"codec": codec, "config": json.dumps(asdict(network.config)), "ema": network.state_dict()}, path)


def save(state: TrainState, identity: RunIdentity, out: Path) -> None:
    """Replace the checkpoint of a run, and the averages beside it.

    Raises:
        LatcodecError: A file cannot be written.
    """
    averages = {
        "ema": {name: value.half() if value.dim() == 4 else value for name, value in state.ema.items()},
        "step": state.step,
        "elapsed_s": state.elapsed_s,
        "codec": identity.settings.codec,
        "config": json.dumps(asdict(identity.config)),
        "settings": json.dumps(asdict(identity.settings)),
        "pictures": identity.pictures,
    }
    whole = {"model": state.network.state_dict(), "optimizer": state.optimizer.state_dict(), "ema": state.ema}
    write(averages | whole, out / CHECKPOINT)
    write(averages, out / AVERAGE)


def restore(state: TrainState, codec: str, path: Path) -> dict:
    """Go on from a checkpoint: overwrite all of `state` with it.

    Returns:
        The checkpoint.

    Raises:
        WeightsError: It is of another codec or network, or of an older version.
    """
    stored = _read_of_codec(path, codec, state.device)
    try:
        without_prices = "prices" in state.network.state_dict() and "prices" not in stored["model"]
        if without_prices or any(name.endswith("gamma_root") for name in stored["model"]):
            raise ValueError(f"it is of an older version; go on from its averages in a new run: --init {AVERAGE}")
        state.network.load_state_dict(stored["model"])
        state.optimizer.load_state_dict(stored["optimizer"])
        _restore_progress(state, stored)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise WeightsError(f"{path}: not a checkpoint of this network: {_reason(error)}") from None
    return stored


def restore_average(state: TrainState, codec: str, path: Path) -> dict:
    """Go on from the averages of a run whose checkpoint is not there: its optimiser starts anew.

    Returns:
        What the file of averages holds.

    Raises:
        WeightsError: It is of another codec or network.
    """
    stored = _read_of_codec(path, codec, state.device)
    try:
        stored["ema"] = with_symbol_costs(with_gdn_units(stored["ema"]), state.network.state_dict())
        stored["ema"] = {name: value.float() if value.dim() == 4 else value for name, value in stored["ema"].items()}
        state.network.load_state_dict(stored["ema"])
        _restore_progress(state, stored)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise WeightsError(f"{path}: not the averages of this network: {_reason(error)}") from None
    return stored


def _restore_progress(state: TrainState, stored: dict) -> None:
    if stored["ema"].keys() != state.network.state_dict().keys():
        raise ValueError("its average is of another network")
    state.ema, state.step, state.elapsed_s = stored["ema"], stored["step"], stored["elapsed_s"]
    json.loads(stored["settings"])


def stored_config(path: Path) -> dict:
    """Return the options of the network of a checkpoint or of a file of averages.

    Raises:
        WeightsError: The file is no checkpoint, or says none.
    """
    try:
        return json.loads(read_checkpoint(path, "cpu")["config"])
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path}: not a checkpoint: no config: {error}") from None


def averaged_network(path: Path, codec: str) -> nn.Module:
    """Return the network of a codec's checkpoint with the averages as float32 parameters, to be evaluated.

    Raises:
        WeightsError: The file is no checkpoint, or of another codec or network.
    """
    plan = plan_of(codec)
    stored = _read_of_codec(path, codec, "cpu")
    try:
        config = json.loads(stored["config"])
        unknown = config.keys() - {field.name for field in fields(plan.config)}
        if unknown:
            raise ValueError(f"{codec} has no option {sorted(unknown)[0]}")
        network = plan.network(config_of(codec, plan.config, config, ()))
        averages = with_symbol_costs(with_gdn_units(stored["ema"]), network.state_dict())
        network.load_state_dict({name: value.float() for name, value in averages.items()})
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, OptionError) as error:
        raise WeightsError(f"{path}: not a checkpoint of {codec}: {_reason(error)}") from None
    return network.eval()


def _read_of_codec(path: Path, codec: str, device: torch.device | str) -> dict:
    state = read_checkpoint(path, device)
    if state.get("codec", codec) != codec:
        raise WeightsError(f"{path}: a checkpoint of {state['codec']}, not of {codec}")
    return state


def _reason(error: Exception) -> str:
    """An error in one line."""
    return f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:160]
