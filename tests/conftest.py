"""What every test shares: settings that make a run the same everywhere, and photographs."""

import numpy as np
import pytest
from hypothesis import settings

# No deadline: a time limit per example fails on a busy machine and says nothing about the code.
settings.register_profile("latcodec", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("latcodec")


@pytest.fixture(autouse=True)
def only_our_weights(monkeypatch):
    """The weights a developer points to are not what the tests are about."""
    monkeypatch.delenv("LATCODEC_WEIGHTS", raising=False)


@pytest.fixture
def one_thread():
    """One torch thread: small pictures gain nothing from more, and two sessions beside each other lose much."""
    from torch_threads import threads

    with threads(1):
        yield


@pytest.fixture(scope="session")
def photograph() -> np.ndarray:
    """uint8 [300, 451, 3], a cat; comes with scikit-image, needs no network."""
    from skimage import data

    pixels = np.ascontiguousarray(data.chelsea())
    pixels.flags.writeable = False
    return pixels
