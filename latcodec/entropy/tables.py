"""Frozen probability tables, from which the range coder takes the probability of each symbol.

Probabilities are integers: each table is a list of weights >= 1 that sum to exactly 2**24, so no floating-point number
influences the coded bits. A table covers the symbols minimum, minimum + 1, ...; its last entry is the escape, which
stands for all other symbols. Tables are made once, when a model is exported (`train/export/tables.py`), and are stored
in its weights file.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from latcodec.errors import WeightsError

PRECISION_BITS = 24
TOTAL = 1 << PRECISION_BITS
MAX_TABLES = 1 << 16
CLASS_BITS = 6  # The class of an escaped symbol is coded in this many bits.


@dataclass(frozen=True, eq=False)
class Tables:
    """A set of probability tables, addressed by table index 0 ... num_tables - 1.

    The arrays are copied and read-only.

    Attributes:
        weights: int32 [entries], the weights of all tables one after another. Each weight is at least 1, the weights of
            one table sum to 2**24, and the last entry of each table is the escape.
        offsets: int32 [num_tables + 1]; table i is `weights[offsets[i]:offsets[i + 1]]` and has at least two entries.
        minimums: int32 [num_tables], the symbol of the first entry of each table.
        bits: float64 [entries], -log2 of the probability of each entry.

    Raises:
        WeightsError: If the arrays do not have these properties.
    """

    weights: np.ndarray
    offsets: np.ndarray
    minimums: np.ndarray
    bits: np.ndarray = field(init=False, repr=False)
    _models: dict[int, object] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("weights", "offsets", "minimums"):
            object.__setattr__(self, name, _frozen_int32(name, getattr(self, name)))
        count, sizes = self.num_tables, np.diff(self.offsets.astype(np.int64))
        if not 1 <= count <= MAX_TABLES:
            raise WeightsError(f"tables: there are {count} tables, not 1..{MAX_TABLES}")
        if len(self.offsets) != count + 1 or self.offsets[0] != 0 or self.offsets[-1] != len(self.weights):
            raise WeightsError(f"tables: offsets do not divide {len(self.weights)} weights into {count} tables")
        if sizes.min() < 2:
            raise WeightsError(f"tables: table {sizes.argmin()} has {sizes.min()} entries, at least 2 are needed")
        if self.weights.min() < 1:
            raise WeightsError(f"tables: weight {self.weights.argmin()} is {self.weights.min()}, not >= 1")
        sums = np.add.reduceat(self.weights, self.offsets[:-1], dtype=np.int64)
        if np.any(sums != TOTAL):
            index = int(np.argmax(sums != TOTAL))
            raise WeightsError(f"tables: table {index} sums to {sums[index]}, not {TOTAL}")
        if np.any(self.minimums + sizes - 2 > 2**31 - 1):
            raise WeightsError("tables: a table reaches over the largest int32")
        bits = PRECISION_BITS - np.log2(self.weights)
        bits.setflags(write=False)
        object.__setattr__(self, "bits", bits)

    def __reduce__(self):
        # The coder's models cannot be pickled; the copy builds its own.
        return Tables, (self.weights, self.offsets, self.minimums)

    @property
    def num_tables(self) -> int:
        """Number of tables."""
        return len(self.minimums)

    def size(self, table_index: int) -> int:
        """Return the number of entries of a table, the escape included."""
        return int(self.offsets[table_index + 1] - self.offsets[table_index])

    def coder_model(self, table_index: int):
        """Return the entropy model that constriction codes a table with, built at first use."""
        model = self._models.get(table_index)
        if model is None:
            import constriction  # imported here because training uses tables without the coder

            weights = self.weights[self.offsets[table_index] : self.offsets[table_index + 1]]
            # The library gives each entry one unit beforehand and distributes the rest in proportion to these floats,
            # which sum to exactly that rest. Therefore it reproduces the integers.
            model = constriction.stream.model.Categorical((weights - 1).astype(np.float64), perfect=False)
            self._models[table_index] = model
        return model


def _frozen_int32(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype.kind not in "iu" or len(values) == 0:
        raise WeightsError(f"tables: {name} is {values.dtype} {list(values.shape)}, not a list of integers")
    if values.min() < -(2**31) or values.max() > 2**31 - 1:
        raise WeightsError(f"tables: {name} does not fit into 32 bits")
    frozen = np.array(values, np.int32)
    frozen.setflags(write=False)
    return frozen
