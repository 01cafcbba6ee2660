"""Picture files to arrays and back; whatever a format cannot hold is named in a note, never lost silently.

`read_picture` gives a `Picture`: 8 or 16 bits, gray or colour, alpha, ICC, EXIF and XMP, upright. `write_picture`
writes one in any format of the table in `images.formats`. NumPy is imported with the first of these functions, Pillow
and the libraries for 16-bit files by the functions that need them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latcodec.images.picture import Picture
    from latcodec.images.read import read_picture
    from latcodec.images.write import write_picture

__all__ = ["Picture", "read_picture", "write_picture"]
_MODULES = {"Picture": "picture", "read_picture": "read", "write_picture": "write"}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
