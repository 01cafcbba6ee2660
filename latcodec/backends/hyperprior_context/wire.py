"""What the parameters section of hyperprior-context files says. Imports neither torch nor NumPy.

No parameters: the header's rate index is that of the file, and the weights say how it is coded. One byte: the base rate
index, at which the latents are coded beside a residual layer. Two bytes: `NEGATIVE_RATE_TAG` and how far below 0 the
rate index is, where the header says 0; or `LOSSLESS_PARAMETERS`, after which the stream is the picture itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latcodec import rates
from latcodec.backends.base import WireFormat

if TYPE_CHECKING:
    from latcodec.container import Payload

LOSSLESS_PARAMETERS = bytes((0, 1))
NEGATIVE_RATE_TAG = 1


def negative_rate_index(parameters: bytes | None) -> int | None:
    """Return the rate index below 0 that parameters say, unchecked; None if they say none."""
    if parameters is None or len(parameters) != 2 or parameters[0] != NEGATIVE_RATE_TAG:
        return None
    return -parameters[1]


class Wire(WireFormat):
    """The parameters of hyperprior-context files."""

    lowest_index = rates.LOWEST_INDEX

    def rate_index_of(self, payload: Payload) -> int:
        """Return the rate index of a file, which may be below 0."""
        negative = negative_rate_index(payload.parameters)
        if negative is None or payload.rate_index or not self.lowest_index <= negative < 0:
            return payload.rate_index
        return negative

    def is_lossless(self, parameters: bytes | None) -> bool:
        """Return whether the stream is the picture itself."""
        return parameters == LOSSLESS_PARAMETERS
