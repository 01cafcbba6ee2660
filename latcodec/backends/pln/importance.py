"""Adaptive importance sampling: blocks of bounded information in raster order, one index drawn in proportion to q / p.

Source: Flamich 2019, Algorithms 3 and 5; Chatterjee, Diaconis 2018, "The sample size required in importance sampling".
Corrected: candidates come from the shared prior, exp(KL + t) of them, not exp(KL); the block's start advances; group
sizes follow from integers that the decoder has and are not sent; a dimension over the budget is not quantised to 16
bits beside the code but has a block of its own.
"""

import numpy as np

from latcodec.backends.pln.coded_sampling import MAX_COLUMNS, Plan


def pack(bits: np.ndarray, capacity: int, largest_group: int = MAX_COLUMNS) -> Plan:
    """Cut dimensions, in order, into blocks before they would hold more than `capacity`; as `coded_sampling.pack`.

    Choose with `coded_sampling.choose(..., select="sample")`.
    """
    order = np.flatnonzero(bits > 0)
    block, column = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    current, held, members = -1, 0, largest_group
    for i, size in enumerate(bits[order].tolist()):
        if held + size > capacity or members == largest_group:
            current, held, members = current + 1, 0, 0
        block[i], column[i] = current, members
        held, members = held + size, members + 1
    return Plan(order, block, column, np.bincount(block, minlength=current + 1))
