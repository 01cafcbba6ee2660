"""Finds, checks and loads weights files.

A weights file is safetensors whose metadata holds "backend", "config" (JSON) and "command". Its id is the SHA-256 of
the file; an .lc file names it by the first `ID_BYTES` bytes. `index.json` beside the files lists, per file name, "id",
"sha256", "backend", "config", "command" and, for one file per backend and metric it was trained for, "default": true.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from latcodec.errors import WeightsError

if TYPE_CHECKING:
    import numpy as np

ID_BYTES = 4
INDEX = "index.json"
USUAL_METRIC = "mse"  # of weights that say none
VARIABLE = "LATCODEC_WEIGHTS"

T = TypeVar("T")


@dataclass(frozen=True)
class Renames:
    """The names that stored weights of one backend use, with the names that the code uses for the same things.

    Attributes:
        config: Keys of the configuration; stored key to key in the code.
        tensors: Parts of tensor names; stored part to part in the code. A tensor name is a list of words with dots
            between them, and a part is one or several whole words of it: "details" names the second word of
            "float.details.gain", and "stage.gain" the last two of "g_a.stage.gain". Longer parts are replaced first.
    """

    config: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)


# The only place where names in weights files and checkpoints are mapped to names in the code. A backend that renames an
# attribute of its network, a field of its configuration or a tensor of its integer part enters the old name here, so
# that files written before can be read. A new name must not be the old name of another thing of the same backend.
RENAMES: dict[str, Renames] = {}


@dataclass(frozen=True)
class Weights:
    """One loaded file. tensors: NumPy arrays by name; config: the backend's configuration.

    Both use the names of the code (see `modern_names`), while `sha256` is of the file as stored.
    """

    path: Path
    sha256: str
    backend: str
    config: dict
    tensors: dict[str, np.ndarray]

    @property
    def id(self) -> bytes:
        """The bytes by which an .lc file names these weights."""
        return bytes.fromhex(self.sha256)[:ID_BYTES]


def modern_names(
    backend: str, tensors: Mapping[str, T], config: Mapping[str, Any]
) -> tuple[dict[str, T], dict[str, Any]]:
    """Return tensors and configuration of stored weights or of a checkpoint under the names that the code uses.

    Names that the table `RENAMES` does not list stay as they are, so modern files pass unchanged. Values and order
    stay too, and the arguments are not modified.

    Args:
        backend: Name of the codec that the weights belong to.
        tensors: Arrays or tensors by stored name.
        config: The stored configuration.

    Returns:
        The tensors and the configuration.

    Raises:
        WeightsError: Two stored names stand for one name in the code.
    """
    renames = RENAMES.get(backend, Renames())
    # The longest part comes first, because an alternation matches the first branch that fits.
    old_parts = "|".join(re.escape(part) for part in sorted(renames.tensors, key=len, reverse=True))
    new_tensors = dict(tensors)
    if old_parts:
        whole_words = re.compile(rf"(?<![^.])(?:{old_parts})(?![^.])")
        new_tensors = {
            whole_words.sub(lambda match: renames.tensors[match[0]], name): tensor for name, tensor in tensors.items()
        }
    new_config = {renames.config.get(key, key): value for key, value in config.items()}
    if len(new_tensors) < len(tensors) or len(new_config) < len(config):
        raise WeightsError(f"weights of {backend} hold one thing under an old and a new name")
    return new_tensors, new_config


def trained_for(config: dict) -> str:
    """The metric, one of `rates.METRICS`, that weights with a configuration were trained for, as far as it says."""
    return config.get("metric", USUAL_METRIC)


def places(selected: str | None = None) -> list[Path]:
    """Return where weights are searched, in order: --weights, LATCODEC_WEIGHTS, the installed package, the checkout."""
    if selected is not None:
        return [Path(selected)]
    here = Path(__file__).resolve().parent
    named = [Path(os.environ[VARIABLE])] if os.environ.get(VARIABLE) else []
    for path in named:
        if not path.exists():
            raise WeightsError(f"{VARIABLE}={path}: there is no such file or folder")
    return [*named, here / "_weights", here.parent / "weights"]


def _entries(place: Path) -> list[tuple[Path, dict]]:
    """Return the files of one place with their entries in the index; {} for a file without an index."""
    if place.is_file():
        return [(place, {})]
    index = place / INDEX
    if not index.is_file():
        return [(path, {}) for path in sorted(place.glob("*.safetensors"))] if place.is_dir() else []
    try:
        listed = json.loads(index.read_text())
        entries = [(place / name, dict(entry)) for name, entry in listed.items()]
        for _, entry in entries:
            bytes.fromhex(entry.get("sha256", ""))
        return entries
    except (ValueError, AttributeError, TypeError) as error:
        raise WeightsError(f"{index}: not an index of weights: {error}") from None


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a weights file: {error}") from None


def find(
    backend: str | None, weights_id: bytes | None, selected: str | None = None, metric: str | None = None
) -> tuple[Path, str | None]:
    """Path of the weights of a backend (its default) or of an id, and the SHA-256 the index promises, if it does.

    metric: that they were trained for, one of `rates.METRICS`; None for any, squared error before others. Raises
    WeightsError that says what is needed and where was looked.
    """
    for place in places(selected):
        candidates = []
        for path, entry in _entries(place):
            name = entry.get("backend") or _metadata(path).get("backend")
            if backend is None or name == backend:
                candidates.append((path, entry))
        if weights_id is not None:
            for path, entry in candidates:
                digest = entry.get("sha256") or hashlib.sha256(path.read_bytes()).hexdigest()
                if bytes.fromhex(digest).startswith(weights_id):
                    return path, digest
        elif fitting := [one for one in candidates if metric in (None, _metric(*one))]:
            path, entry = min(fitting, key=_rank) if len(fitting) > 1 else fitting[0]
            return path, entry.get("sha256")
    what = f"weights {weights_id.hex()}" if weights_id is not None else f"weights for codec {backend}"
    what += f" trained for {metric}" if metric is not None and weights_id is None else ""
    raise WeightsError(f"{what} not found; looked in {', '.join(map(str, places(selected)))}; name them with --weights")


def _metric(path: Path, entry: dict) -> str | None:
    """Return what a file was trained for, by the index or its metadata; None if it cannot be read."""
    try:
        return trained_for(entry.get("config") or json.loads(_metadata(path).get("config", "{}")))
    except (ValueError, AttributeError, WeightsError):
        return None


def _rank(candidate: tuple[Path, dict]) -> tuple[bool, bool]:
    """Return a sort key; without a metric, the candidate with the smallest key is selected."""
    return _metric(*candidate) != USUAL_METRIC, not candidate[1].get("default", False)


@lru_cache(maxsize=4)
def _load(path: Path, promised: str | None, stamp: tuple[int, int]) -> Weights:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if promised is not None and digest != promised:
        raise WeightsError(f"{path}: SHA-256 is {digest[:16]}..., its index promises {promised[:16]}...: damaged file")
    try:
        metadata = _metadata(path)
        backend = metadata["backend"]
        config = json.loads(metadata["config"])
        if not isinstance(config, dict):
            raise ValueError("its configuration is not a JSON object")
        tensors, config = modern_names(backend, load(data), config)
        return Weights(path, digest, backend, config, tensors)
    except KeyError as error:
        raise WeightsError(f"{path}: metadata {error} is missing: not a latcodec weights file") from None
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{path}: not a weights file: {error}") from None


def load(
    backend: str, weights_id: bytes | None = None, selected: str | None = None, metric: str | None = None
) -> Weights:
    """Return the weights of a backend: the default ones, those of a metric, or those that an .lc file names.

    Raises:
        WeightsError: They are missing or damaged.
    """
    path, promised = find(backend, weights_id, selected, metric)
    return load_file(path, promised)


def load_file(path: Path, promised: str | None = None) -> Weights:
    """Return the weights of one file; raises WeightsError, also if its SHA-256 is not `promised`."""
    try:
        status = path.stat()
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}") from None
    return _load(path, promised, (status.st_mtime_ns, status.st_size))


def save(path: Path, backend: str, config: dict, command: str, tensors: dict[str, np.ndarray]) -> str:
    """Write a weights file; returns its SHA-256."""
    import numpy as np
    from safetensors.numpy import save as serialise

    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    data = serialise(arrays, {"backend": backend, "config": json.dumps(config), "command": command})
    # safetensors writes the metadata in random order; the id is a hash, so the order has to be one.
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    data = len(header).to_bytes(8, "little") + header + data[end:]
    _replace(path, data)
    return hashlib.sha256(data).hexdigest()


def add_to_index(path: Path, backend: str, config: dict, command: str, digest: str) -> None:
    """Enter a weights file into the index.json beside it, as the default of its backend and metric."""
    index = path.parent / INDEX
    entries = json.loads(index.read_text()) if index.exists() else {}
    for entry in entries.values():
        if entry["backend"] == backend and trained_for(entry.get("config", {})) == trained_for(config):
            entry["default"] = False
    entries[path.name] = {"id": digest[: 2 * ID_BYTES], "sha256": digest, "backend": backend, "default": True,
                          "config": config, "command": command}  # fmt: skip
    _replace(index, (json.dumps(entries, indent=2) + "\n").encode())


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
