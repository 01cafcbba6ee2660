"""What an encoder's walk through its symbols has computed, for the decoder's walk that verifies them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from latcodec.entropy.integer_net import IntegerNet
from latcodec.errors import DriftError

Found = tuple[np.ndarray, ...] | np.ndarray
Ask = Callable[..., Found]  # (compute, *given): see `ask`


def ask(compute: Callable[[], Found], *given: np.ndarray | IntegerNet) -> Found:
    """compute(), an exact function of what was given here and before: how it is where nothing is replayed."""
    return compute()


class Replay:
    """Computes and keeps what it is asked for. After `rewind`, given the same as before in the same order, arrays and
    networks, it answers the same without computing it: an exact function has one value. Nobody may change the arrays
    that are given or got."""

    def __init__(self) -> None:
        self._kept: list[tuple[tuple, Found]] = []
        self._answers: Iterator | None = None

    def rewind(self) -> None:
        """Answer from the first time on."""
        self._answers = iter(self._kept)

    def ask(self, compute: Callable[[], Found], *given: np.ndarray | IntegerNet) -> Found:
        """As `ask`; raises DriftError where something else is given than before."""
        if self._answers is None:
            self._kept.append((given, compute()))
            return self._kept[-1][1]
        known, found = next(self._answers, (None, None))
        if known is None or len(known) != len(given) or not all(map(_same, known, given)):
            raise DriftError("a decoder of the stream just written goes another way than the encoder")
        return found


def _same(one: np.ndarray | IntegerNet, other: np.ndarray | IntegerNet) -> bool:
    arrays = isinstance(one, np.ndarray) and isinstance(other, np.ndarray)
    return one is other or (arrays and np.array_equal(one, other))
