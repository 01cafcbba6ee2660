"""Golden files: what an earlier version wrote decodes, to the same integers and to pixels within 1 (laws 8 and 9)."""

from pathlib import Path

import numpy as np
import pytest

from latcodec import api as codec
from latcodec import images

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.lc"))


def test_there_are_golden_files():
    assert len(GOLDEN) >= 7


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_file_decodes(path):
    decoded = codec.decode_picture(path.read_bytes())  # the integers are compared with the file's CRC of them
    expected = images.read_picture(path.with_suffix(".png"))
    assert (decoded.gray, decoded.pixels.dtype, decoded.pixels.shape) == (
        expected.gray,
        expected.pixels.dtype,
        expected.pixels.shape,
    )
    step = 257 if decoded.pixels.dtype == np.uint16 else 1
    assert np.abs(decoded.pixels.astype(np.int64) - expected.pixels).max() <= step
    assert (decoded.alpha is None) == (expected.alpha is None)
    if decoded.alpha is not None:
        np.testing.assert_array_equal(decoded.alpha, expected.alpha)
    assert decoded.exif == expected.exif
