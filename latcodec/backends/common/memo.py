"""What the entropy model computed while encoding, kept for the decoding pass that verifies the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from latcodec.entropy.integer_net import IntegerNet
from latcodec.errors import DriftError

Result = tuple[np.ndarray, ...] | np.ndarray
Evaluate = Callable[..., Result]  # (compute, *inputs): see `evaluate`


def evaluate(compute: Callable[[], Result], *inputs: np.ndarray | IntegerNet) -> Result:
    """Return compute(), an exact function of the inputs given here and before; this is evaluation without a memo."""
    return compute()


class EvaluationMemo:
    """Computes and keeps exact functions, and after `rewind` returns them without computing them.

    An exact function has one value: given the same inputs in the same order, arrays and networks, it is what it was.
    Nobody may change the arrays that are given or returned.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[tuple, Result]] = []
        self._replayed: Iterator | None = None

    def rewind(self) -> None:
        """Return the kept results from now on, beginning with the first."""
        self._replayed = iter(self._kept)

    def evaluate(self, compute: Callable[[], Result], *inputs: np.ndarray | IntegerNet) -> Result:
        """Return compute(), or after `rewind` the result that was kept.

        Args:
            compute: an exact function of the inputs given here and before.
            inputs: what it depends on that is not known to be equal from earlier calls.

        Raises:
            DriftError: after `rewind`, the inputs differ from those of the first pass.
        """
        if self._replayed is None:
            self._kept.append((inputs, compute()))
            return self._kept[-1][1]
        known, result = next(self._replayed, (None, None))
        if known is None or len(known) != len(inputs) or not all(map(_is_same, known, inputs)):
            raise DriftError("a decoder of the stream just written goes another way than the encoder")
        return result


def _is_same(a: np.ndarray | IntegerNet, b: np.ndarray | IntegerNet) -> bool:
    arrays = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
    return a is b or (arrays and np.array_equal(a, b))
