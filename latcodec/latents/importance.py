"""Adaptive importance sampling: blocks of bounded information in raster order, one index drawn in proportion to q / p.

Source: Flamich 2019, Algorithms 3 and 5; Chatterjee, Diaconis 2018, "The sample size required in importance sampling".
Corrected: candidates come from the shared prior, exp(KL + t) of them, not exp(KL); the block's start advances; group
sizes follow from integers that the decoder has and are not sent; a dimension over the budget is not quantised to 16
bits beside the code but has a block of its own.
"""

import numpy as np

from latcodec.latents.coded_sampling import MAX_COLUMNS, Plan


def pack(bits: np.ndarray, region: np.ndarray, regions: int, capacity: int, largest_group: int = MAX_COLUMNS) -> Plan:
    """Cut dimensions, in order within each region, into blocks before they would hold more than `capacity`.

    As `coded_sampling.pack`; choose with `coded_sampling.choose(..., select="sample")`.
    """
    coded = np.flatnonzero(bits > 0)
    order = coded[np.argsort(region[coded], kind="stable")]
    block, column = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    current, held, members, here = -1, 0, 0, -1
    starts = []
    for i, (size, of) in enumerate(zip(bits[order].tolist(), region[order].tolist(), strict=True)):
        if of != here or held + size > capacity or members == largest_group:
            current, held, members, here = current + 1, 0, 0, of
            starts.append(of)
        block[i], column[i] = current, members
        held, members = held + size, members + 1
    counts = np.bincount(block, minlength=current + 1)
    return Plan(order, block, column, counts, np.bincount(np.asarray(starts, np.int64), minlength=regions))
