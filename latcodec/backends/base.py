"""What a codec is: all that the encoder, the trainer and the bench may ask of one.

A codec is a folder under `latcodec.backends` and a row of the table there. The folder's `codec.py` ends with a class
`Codec`, a subclass of the one here; where files of the codec say more than the header does, the folder's `wire.py` has
a subclass of `WireFormat`, which `latcodec.info` reads without importing torch.

What a person may set (`Codec.options_class`) and what the encoder asks of one call (`EncodeRequest`) are two objects.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from latcodec.container import Payload
    from latcodec.weights import Weights


@dataclass(frozen=True)
class EncodeRequest:
    """What the encoder asks of a codec in one call.

    Attributes:
        rate_index: 0..255, larger is better; codecs whose `WireFormat.lowest_index` is negative also take those below.
        verify: Whether the codec decodes the integers of the stream it wrote and compares them (law 5).
        gray: Whether the decoder will average the three channels of the picture.
        progress: Called with 0..1 by a codec that searches for long; None for nobody.
    """

    rate_index: int
    verify: bool = True
    gray: bool = False
    progress: Callable[[float], None] | None = None


class Model(Protocol):
    """A codec's networks and tables, ready on a device.

    Attributes:
        weights_id: The first 4 bytes of the SHA-256 of the weights file.
        metric: The distortion that the weights were trained for, one of `latcodec.rates.METRICS`.
        lowest_index: The lowest rate index that the weights serve, 0 or below.
    """

    weights_id: bytes
    metric: str
    lowest_index: int


class Coded(Protocol):
    """What a codec makes of a picture.

    Attributes:
        streams: The streams of the file, in their order.
        parameters: The parameters section of the file; None for no such section.
        integers_crc: The CRC-32 of every integer that the decoder derives.
        estimated_bits: The ideal code length by the tables of the entropy coder.
        seconds: The seconds that each stage took.
        details: What else the codec reports about this encode, for `latcodec encode --json`.
    """

    streams: tuple[bytes, ...]
    parameters: bytes | None
    integers_crc: int
    estimated_bits: float
    seconds: dict[str, float]
    details: dict[str, object]


class WireFormat:
    """What the parameters of a codec's files say; the defaults are those of a codec whose header says it all.

    Subclasses import neither torch nor NumPy.
    """

    lowest_index: int = 0
    """The lowest rate index that files of the codec can have."""

    def rate_index_of(self, payload: Payload) -> int:
        """Return the rate index of a file; the parameters are not checked here, the decoder refuses wrong ones."""
        return payload.rate_index

    def is_lossless(self, parameters: bytes | None) -> bool:
        """Return whether a file with these parameters holds its picture losslessly, and so needs no weights."""
        return False


class Codec(ABC):
    """A learned codec: pictures <-> streams.

    An encode is `analyse` followed by `code`, so that a search over rates runs the analysis once.
    """

    options_class: type
    """A frozen dataclass of what a person may set, all fields with defaults. It raises OptionError for wrong values."""

    decodes_damaged: bool = False
    """Whether `decode` can show what is left of a damaged file. The container then adds a CRC of the header."""

    @abstractmethod
    def load_model(self, weights: Weights, device: str) -> Model:
        """Return the model of a weights file on a device, cpu or cuda; raises WeightsError."""

    @abstractmethod
    def analyse(self, model: Any, image: np.ndarray) -> Any:
        """Return the latents of an image, uint8 or uint16 [H, W, 3], which serve every rate."""

    @abstractmethod
    def code(self, model: Any, latents: Any, options: Any, request: EncodeRequest) -> Coded:
        """Quantise and entropy-code latents; raises DriftError if what was written does not decode (law 5)."""

    @abstractmethod
    def decode(self, model: Any, payload: Payload, ignore_checksum: bool = False) -> np.ndarray:
        """Decode a file to an image, uint8 or uint16 [H, W, 3].

        Args:
            model: The model of the file's weights; None for a file that is lossless by its `WireFormat`.
            payload: The file.
            ignore_checksum: Whether the file is known to be damaged; True only if `decodes_damaged`.

        Raises:
            FormatError: The streams or parameters are not those of this codec.
            DriftError: The decoded integers differ from the encoder's.
        """

    def searches(self, options: Any) -> bool:
        """Return whether these options make the codec search for better latents for long.

        The options of a codec that searches have the fields `effort` and `max_seconds`; effort 0 does not search.
        """
        return False

    def fixed_lambda(self, options: Any) -> float | None:
        """Return the lambda that the options fix, whatever the rate index; None if the rate index decides."""
        return None

    def lossy_options(self, options: Any) -> Any:
        """Return these options without the permission to store a picture losslessly."""
        return options

    def early_lossless(self, model: Any, image: np.ndarray, options: Any, request: EncodeRequest) -> Coded | None:
        """Return the lossless encode of an image where it is clearly cheapest before any analysis; None elsewhere."""
        return None

    def lossless_trial(self, image: np.ndarray, options: Any, request: EncodeRequest) -> Coded | None:
        """Return the lossless encode of an image whose look suggests that it may be cheapest; None elsewhere."""
        return None

    def channel_bits(self, model: Any, payload: Payload) -> np.ndarray | None:
        """Return the bits of each latent channel of a file, float64 [C], by the tables.

        None of a codec that cannot attribute bits to channels. Raises what `decode` raises.
        """
        return None
