"""The time that an encoder takes, by stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np


def timed_encode(analyse: Callable, code: Callable) -> Callable:
    """Return `encode(model, image, options)` of a codec: analysis, then coding, with the time of both in `seconds`.

    Args:
        analyse: (model, image) -> latents.
        code: (model, latents, options) -> the codec's result.
    """

    def encode(model: Any, image: np.ndarray, options: Any) -> Any:
        """Encode an image, uint8 or uint16 [H, W, 3]; raises DriftError if what was written does not decode (law 5)."""
        start = time.perf_counter()
        latents = analyse(model, image)
        analysis_s = time.perf_counter() - start
        coded = code(model, latents, options)
        analysis_s += coded.seconds.get("analysis", 0.0)  # of a codec that analyses once it knows the rate
        return replace(coded, seconds=coded.seconds | {"analysis": analysis_s})

    return encode
