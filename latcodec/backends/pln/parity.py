"""Reed-Solomon parity: up to ERRORS wrong bytes in each codeword of up to 255 bytes are found and put right.

Codewords are interleaved byte by byte, data and parity alike, so that a burst is shared out among them. GF(256) modulo
x^8 + x^4 + x^3 + x^2 + 1, generator with the roots 2^0 .. 2^(PARITY - 1): the defaults of the library.

Source: Reed, Solomon 1960.
"""

import numpy as np

ERRORS = 8
PARITY = 2 * ERRORS
DATA = 255 - PARITY


def count(size: int) -> int:
    """How many bytes of parity so many bytes have."""
    return PARITY * -(-size // DATA)


def parity(data: bytes) -> bytes:
    """The parity of data."""
    coder = _coder()
    checks = [coder.encode(word.tobytes())[-PARITY:] for word in _words(data)]
    return np.array([list(check) for check in checks], np.uint8).reshape(-1, PARITY).T.tobytes()


def corrected(data: bytes, check: bytes) -> tuple[bytes, bool]:
    """Data with wrong bytes put right, and whether all of it can be trusted; check: its parity, maybe wrong too."""
    from reedsolo import ReedSolomonError

    coder, words = _coder(), _words(data).copy()
    checks = np.frombuffer(check, np.uint8).reshape(PARITY, -1).T
    sound, filler = True, words.size - len(data)
    for number, (word, its) in enumerate(zip(words, checks, strict=True)):
        try:
            right = np.frombuffer(bytes(coder.decode(word.tobytes() + its.tobytes())[0]), np.uint8)
        except ReedSolomonError:
            sound = False
            continue
        # The last codewords end in a zero that was never sent; one that changed is a wrong correction.
        sound &= not (filler and number >= len(words) - filler and right[-1])
        word[:] = right
    return words.T.tobytes()[: len(data)], sound


def _coder():
    from reedsolo import RSCodec

    return RSCodec(PARITY)


def _words(data: bytes) -> np.ndarray:
    """Codewords without parity, uint8 [words, bytes of each], shorter ones filled with zeros at the end."""
    words = max(1, -(-len(data) // DATA)) if data else 0
    length = -(-len(data) // words) if words else 0
    padded = np.zeros(words * length, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    return padded.reshape(length, words).T
