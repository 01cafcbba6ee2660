"""What was computed once is answered from memory, if the same is given in the same order, and only then."""

import numpy as np
import pytest

from latcodec.backends.common.memo import EvaluationMemo, evaluate
from latcodec.errors import DriftError


def walk(evaluate, x: np.ndarray, network: object, calls: list) -> list:
    def twice() -> np.ndarray:
        calls.append("twice")
        return 2 * x

    def both() -> tuple[np.ndarray, np.ndarray]:
        calls.append("both")
        return x, x + 1

    return [evaluate(twice, x), evaluate(both, network, x[:1]), evaluate(lambda: calls.append("nothing") or x)]


def test_what_was_asked_before_is_answered_without_computing():
    x, network, calls = np.arange(6).reshape(2, 3), object(), []
    replay = EvaluationMemo()
    first = walk(replay.evaluate, x, network, calls)
    assert calls == ["twice", "both", "nothing"] and (first[0] == 2 * x).all() and (first[1][1] == x + 1).all()
    for _ in range(2):
        replay.rewind()
        again = walk(replay.evaluate, x.copy(), network, calls)
        assert all(one is other for one, other in zip(first, again, strict=True))
    assert len(calls) == 3
    walk(evaluate, x, network, calls)
    assert len(calls) == 6


@pytest.mark.parametrize("change", ["value", "shape", "network", "array", "more"])
def test_where_something_else_is_given_it_is_drift(change):
    x, network = np.arange(6).reshape(2, 3), object()
    replay = EvaluationMemo()
    walk(replay.evaluate, x, network, [])
    replay.rewind()
    other = x + (np.arange(3) == 2) if change == "value" else x.reshape(3, 2) if change == "shape" else x
    with pytest.raises(DriftError, match="another way"):
        walk(replay.evaluate, other, {"network": object(), "array": x[:1]}.get(change, network), [])
        if change == "more":
            replay.evaluate(lambda: x)
