"""latcodec: an image codec whose codecs are learned, as a library and on the command line.

`encode(array, ...) -> bytes`, `decode(bytes) -> array` and `info(bytes) -> dict` work on arrays, `latcodec.api` also on
pictures with alpha and metadata. `latcodec.vbq` compresses arrays of any numbers whose uncertainty is known.
"""

from types import ModuleType

from latcodec.api import decode, encode, info

__version__ = "0.1.0.dev0"
__all__ = ["__version__", "decode", "encode", "info", "vbq"]


def __getattr__(name: str) -> ModuleType:
    """Import `latcodec.vbq` when it is first used, because it loads NumPy and the entropy coder."""
    if name == "vbq":
        from latcodec.backends.vbq import arrays

        return arrays
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
