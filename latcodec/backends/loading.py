"""Models ready to code, kept from one call to the next, because networks take long to build."""

from __future__ import annotations

from latcodec import backends, weights
from latcodec.backends.base import Model
from latcodec.runtime import pick_device

_models: dict[tuple[str, str, str], Model] = {}  # by codec, SHA-256 of the weights and device
_MOST_KEPT = 2


def load_model(
    backend: backends.Backend,
    weights_id: bytes | None = None,
    weights_path: str | None = None,
    device: str = "auto",
    metric: str | None = None,
) -> Model:
    """Return a codec's model on a device.

    Args:
        backend: The codec's row of the table.
        weights_id: The first 4 bytes of the SHA-256 of the weights, which a file names; None for the default weights.
        weights_path: A weights file or a folder of them; None for the usual places.
        device: auto, cpu or cuda.
        metric: The metric that default weights are to be trained for; None for no preference.

    Raises:
        WeightsError: There are no such weights, or they are damaged.
        OptionError: There is no such device.
    """
    loaded = weights.load(backend.name, weights_id, weights_path, metric)
    key = (backend.name, loaded.sha256, pick_device(device))
    if key not in _models:
        if len(_models) >= _MOST_KEPT:
            _models.clear()
        _models[key] = backend.load().load_model(loaded, key[2])
    return _models[key]
