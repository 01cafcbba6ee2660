"""Frozen probability tables, what `coding.py` codes with. Part of the room `coding`.

Probabilities are integers: each row is a list of weights >= 1 that sum to exactly 2**24, and no float comes near a bit.
A row covers the symbols minimum, minimum + 1, ...; its last entry is the escape. Tables are made once, when a model is
exported (`train/tables.py`), and ship with the weights as data.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from latcodec.errors import WeightsError

PRECISION_BITS = 24
TOTAL = 1 << PRECISION_BITS
MAX_ROWS = 1 << 16
CLASS_BITS = 6  # of the class of an escaped symbol


@dataclass(frozen=True, eq=False)
class Tables:
    """Frozen probability tables; arrays are copied and read-only.

    weights: int32 [total], all rows one after another; each >= 1, each row sums to 2**24, its last entry is the escape.
    offsets: int32 [rows + 1], row r is weights[offsets[r]:offsets[r + 1]], at least two entries.
    minimums: int32 [rows], the symbol of each row's first entry.
    Raises WeightsError if anything of this does not hold.
    """

    weights: np.ndarray
    offsets: np.ndarray
    minimums: np.ndarray
    bits: np.ndarray = field(init=False, repr=False)  # float64 [total], -log2 of each entry's probability
    _models: dict[int, object] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("weights", "offsets", "minimums"):
            object.__setattr__(self, name, _frozen_int32(name, getattr(self, name)))
        rows, sizes = self.rows, np.diff(self.offsets.astype(np.int64))
        if not 1 <= rows <= MAX_ROWS:
            raise WeightsError(f"tables: {rows} rows, not 1..{MAX_ROWS}")
        if len(self.offsets) != rows + 1 or self.offsets[0] != 0 or self.offsets[-1] != len(self.weights):
            raise WeightsError(f"tables: offsets do not divide {len(self.weights)} weights into {rows} rows")
        if sizes.min() < 2:
            raise WeightsError(f"tables: row {sizes.argmin()} has {sizes.min()} entries, at least 2 are needed")
        if self.weights.min() < 1:
            raise WeightsError(f"tables: weight {self.weights.argmin()} is {self.weights.min()}, not >= 1")
        sums = np.add.reduceat(self.weights, self.offsets[:-1], dtype=np.int64)
        if np.any(sums != TOTAL):
            row = int(np.argmax(sums != TOTAL))
            raise WeightsError(f"tables: row {row} sums to {sums[row]}, not {TOTAL}")
        if np.any(self.minimums + sizes - 2 > 2**31 - 1):
            raise WeightsError("tables: a row reaches over the largest int32")
        bits = PRECISION_BITS - np.log2(self.weights)
        bits.setflags(write=False)
        object.__setattr__(self, "bits", bits)

    def __reduce__(self):
        # The coder's models cannot be pickled; the copy builds its own.
        return Tables, (self.weights, self.offsets, self.minimums)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.minimums)

    def size(self, row: int) -> int:
        """Number of entries of a row, the escape included."""
        return int(self.offsets[row + 1] - self.offsets[row])

    def model(self, row: int):
        """Return the coder's model of a row, built at first use."""
        found = self._models.get(row)
        if found is None:
            import constriction  # training knows tables without it

            weights = self.weights[self.offsets[row] : self.offsets[row + 1]]
            # The library gives each entry one unit beforehand and shares out the rest in proportion to these floats,
            # which sum to exactly that rest: so it reproduces the integers.
            found = constriction.stream.model.Categorical((weights - 1).astype(np.float64), perfect=False)
            self._models[row] = found
        return found


def _frozen_int32(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype.kind not in "iu" or len(values) == 0:
        raise WeightsError(f"tables: {name} is {values.dtype} {list(values.shape)}, not a list of integers")
    if values.min() < -(2**31) or values.max() > 2**31 - 1:
        raise WeightsError(f"tables: {name} does not fit into 32 bits")
    frozen = np.array(values, np.int32)
    frozen.setflags(write=False)
    return frozen
