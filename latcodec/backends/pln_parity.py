"""Reed-Solomon parity: up to ERRORS wrong bytes in each codeword of up to 255 bytes are found and put right.

Codewords are interleaved byte by byte, so that a burst is shared out among them. Arithmetic in GF(256) modulo
x^8 + x^4 + x^3 + x^2 + 1, generator with the roots 2^0 .. 2^(PARITY - 1).

Source: Reed, Solomon 1960; decoding after Berlekamp 1968, Massey 1969 and Forney 1965.
"""

import numpy as np

ERRORS = 8
PARITY = 2 * ERRORS
DATA = 255 - PARITY

_EXP = np.ones(510, np.int64)
for _i in range(1, 510):
    _EXP[_i] = _EXP[_i - 1] << 1 if _EXP[_i - 1] < 128 else (_EXP[_i - 1] << 1) ^ 0x11D
_LOG = np.zeros(256, np.int64)
_LOG[_EXP[:255]] = np.arange(255)


def _times(a, b) -> np.ndarray:
    a, b = np.asarray(a), np.asarray(b)
    return np.where((a == 0) | (b == 0), 0, _EXP[_LOG[a] + _LOG[b]])


def _generator() -> np.ndarray:
    poly = np.array([1], np.int64)
    for root in _EXP[:PARITY]:
        poly = np.append(poly, 0) ^ np.append(0, _times(poly, root))
    return poly[1:]


_GENERATOR = _generator()


def count(size: int) -> int:
    """How many bytes of parity so many bytes have."""
    return PARITY * -(-size // DATA)


def parity(data: bytes) -> bytes:
    """The parity of data."""
    words = _words(data)
    rest = np.zeros((len(words), PARITY), np.int64)
    for column in words.T:
        first = column ^ rest[:, 0]
        rest = np.concatenate([rest[:, 1:], np.zeros((len(words), 1), np.int64)], 1) ^ _times(
            first[:, None], _GENERATOR
        )
    return rest.astype(np.uint8).tobytes()


def corrected(data: bytes, check: bytes) -> tuple[bytes, bool]:
    """Data with wrong bytes put right, and whether all of it can be trusted; check: its parity, maybe wrong too."""
    words = np.concatenate([_words(data), np.frombuffer(check, np.uint8).reshape(-1, PARITY)], 1).astype(np.int64)
    syndromes = np.zeros((len(words), PARITY), np.int64)
    for column in words.T:
        syndromes = _times(syndromes, _EXP[:PARITY]) ^ column[:, None]
    sound = True
    for word in np.flatnonzero(syndromes.any(1)):
        sound &= _correct(words[word], syndromes[word].tolist())
    return words[:, :-PARITY].T.astype(np.uint8).tobytes()[: len(data)], sound


def _words(data: bytes) -> np.ndarray:
    """Codewords without parity, int64 [words, bytes of each], shorter ones filled with zeros at the end."""
    words = max(1, -(-len(data) // DATA)) if data else 0
    length = -(-len(data) // words) if words else 0
    padded = np.zeros(words * length, np.int64)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    return padded.reshape(length, words).T


def _correct(word: np.ndarray, syndromes: list[int]) -> bool:
    """Put one codeword right in place; False, and nothing changed, if that cannot be done."""
    locator, previous, shift, last = [1], [1], 1, 1
    errors = 0
    for n in range(PARITY):
        terms = [int(_times(locator[i], syndromes[n - i])) for i in range(min(len(locator), n + 1))]
        discrepancy = int(np.bitwise_xor.reduce(terms))
        if discrepancy == 0:
            shift += 1
            continue
        factor = int(_times(discrepancy, _EXP[255 - _LOG[last]]))
        moved = [0] * shift + [int(_times(factor, c)) for c in previous]
        longer = max(len(locator), len(moved))
        updated = [(locator[i] if i < len(locator) else 0) ^ (moved[i] if i < len(moved) else 0) for i in range(longer)]
        if 2 * errors <= n:
            previous, last, shift, errors = locator, discrepancy, 1, n + 1 - errors
        else:
            shift += 1
        locator = updated
    powers = np.arange(len(word))  # a byte's distance from the end of the codeword
    value = np.zeros(len(word), np.int64)
    for degree, coefficient in enumerate(locator):
        value ^= _times(coefficient, _EXP[(-powers * degree) % 255])
    found = np.flatnonzero(value == 0)
    if errors > ERRORS or len(found) != errors:
        return False
    evaluator = [
        int(np.bitwise_xor.reduce([int(_times(syndromes[i - j], locator[j])) for j in range(min(i + 1, len(locator)))]))
        for i in range(errors)
    ]
    for power in found.tolist():
        inverse = (255 - power) % 255
        over = int(np.bitwise_xor.reduce([int(_times(c, _EXP[inverse * i % 255])) for i, c in enumerate(evaluator)]))
        odd = [int(_times(c, _EXP[inverse * (i - 1) % 255])) for i, c in enumerate(locator) if i % 2]
        under = int(np.bitwise_xor.reduce(odd))
        if under == 0:
            return False
        # Roots start at 2^0, so Forney's formula has one more factor, the location itself.
        size = int(_times(_times(over, _EXP[255 - _LOG[under]]), _EXP[power]))
        word[len(word) - 1 - power] ^= size
    return True
