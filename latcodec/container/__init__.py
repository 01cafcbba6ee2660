"""The `.lc` file format: `pack` makes a file of a `Payload`, `unpack` checks a file and returns one.

FORMAT.md in this folder is the specification. The package needs the standard library only.
"""

from latcodec.container.diagnose import DamagedFile, inspect_damaged
from latcodec.container.format import pack, sections, unpack
from latcodec.container.payload import Payload
from latcodec.container.wire import MAGIC, MAX_SIDE_PX, VERSION, Part

__all__ = [
    "MAGIC",
    "MAX_SIDE_PX",
    "VERSION",
    "DamagedFile",
    "Part",
    "Payload",
    "inspect_damaged",
    "pack",
    "sections",
    "unpack",
]
