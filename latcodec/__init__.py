"""latcodec: a command-line image codec whose codecs are learned.

`encode(array, ...) -> bytes`, `decode(bytes) -> array` and `info(bytes) -> dict` are those of `latcodec.api`.
"""

from latcodec.api import decode, encode, info

__version__ = "0.1.0.dev0"
__all__ = ["__version__", "decode", "encode", "info"]
