"""Every codec writes the bytes that it wrote before, on machines whose bytes are known: see fingerprints.py."""

import fingerprints
import pytest

NAMES = [name for name, *_ in fingerprints.cases()]
KNOWN = fingerprints.stored().get(fingerprints.environment())


@pytest.fixture(scope="module")
def pictures():
    return fingerprints.pictures()


@pytest.mark.skipif(
    KNOWN is None, reason="no fingerprints of this kind of machine: python tests/support/fingerprints.py"
)
@pytest.mark.parametrize(
    ("name", "picture", "codec", "settings"), fingerprints.cases(), ids=[name for name, *_ in fingerprints.cases()]
)
def test_a_stream_is_what_it_was(name, picture, codec, settings, pictures, one_thread):
    assert fingerprints.fingerprint(pictures[picture], codec, settings) == KNOWN[name]
