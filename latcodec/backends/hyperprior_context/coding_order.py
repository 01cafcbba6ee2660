"""Planes of latents as the steps of the context codec code them (`models/steps.py`), and back; NumPy, any numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latcodec.backends.hyperprior_context.quadtree import STEPS, places


def of_step(planes: np.ndarray, step: int, dtype: type | None = None) -> np.ndarray:
    """What a step codes of planes [..., C, h, w], as dtype, theirs if None: [..., C, ceil(h / 2), ceil(w / 2)], 0
    beyond the border. As `models.steps.in_steps`, in one pass."""
    *more, height, width = planes.shape
    out = np.zeros((*more, -(-height // 2), -(-width // 2)), dtype or planes.dtype)
    for channels, rows, columns in places(step):
        part = planes[..., channels, rows, columns]
        out[..., channels, : part.shape[-2], : part.shape[-1]] = part
    return out


def from_coding_order(steps: np.ndarray | Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """The inverse of `of_step`, of what all steps code, [4 C, h2, w2] or one by one: [C, h, w]; shape is (h, w)."""
    steps = np.split(steps, STEPS) if isinstance(steps, np.ndarray) else steps
    out = np.empty((len(steps[0]), *shape), steps[0].dtype)
    for step, planes in enumerate(steps):
        for channels, rows, columns in places(step):
            part = out[channels, rows, columns]
            part[:] = planes[channels, : part.shape[1], : part.shape[2]]
    return out


def there(channels: int, shape: tuple[int, int]) -> list[np.ndarray]:
    """Which latents of each step lie inside, bool [C, ceil(h / 2), ceil(w / 2)]; shape (h, w) of all."""
    return [of_step(np.ones((channels, *shape), bool), step) for step in range(STEPS)]


def picked(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Those of values [C, h2, w2], of any type, that are there, [n]; not a copy if all of them are. there: bool."""
    return values.reshape(-1) if there.all() else values[there]


def spread(some: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The inverse of `picked`, [C, h2, w2]; what is not there is 0."""
    if there.all():
        return some.reshape(there.shape)
    values = np.zeros(there.shape, some.dtype)
    values[there] = some
    return values
