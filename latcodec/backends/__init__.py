"""The codecs: one literal table, and look-ups in it.

Wire ids are append-only: a file names its codec by one of them. A new codec is a folder under `latcodec.backends`,
whose `codec.py` ends with a class `Codec` (see `latcodec.backends.base`), and a row of the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from latcodec.backends import base
from latcodec.errors import OptionError, VersionError


@dataclass(frozen=True)
class Backend:
    """A row of the table.

    Attributes:
        wire_id: 1..255, the codec's number in the header of a file.
        name: The codec's name on the command line.
        module: The module whose class `Codec` is the codec; importing it imports torch.
        wire_module: The module whose class `Wire` reads the parameters of files; None if the header says it all.
    """

    wire_id: int
    name: str
    module: str
    wire_module: str | None = None

    def load(self) -> base.Codec:
        """Return the codec; this imports torch."""
        return import_module(self.module).Codec()

    @property
    def wire_format(self) -> base.WireFormat:
        """What the parameters of this codec's files say; this imports no torch."""
        return base.WireFormat() if self.wire_module is None else import_module(self.wire_module).Wire()


BACKENDS = (
    Backend(1, "hyperprior", "latcodec.backends.hyperprior.codec"),
    Backend(2, "vbq", "latcodec.backends.vbq.codec"),
    Backend(3, "pln", "latcodec.backends.pln.codec"),
    Backend(4, "nc-vae", "latcodec.backends.nc_vae.codec"),
    Backend(5, "hyperprior-context", "latcodec.backends.hyperprior_context.codec",
            "latcodec.backends.hyperprior_context.wire"),
)  # fmt: skip
DEFAULT = "hyperprior-context"


def by_name(name: str) -> Backend:
    """Return the row of a codec's name; raises OptionError."""
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise OptionError(f"codec {name!r} is unknown; there are: {', '.join(b.name for b in BACKENDS)}")


def find_wire_id(wire_id: int) -> Backend | None:
    """Return the row of a file's backend id; None if this version of latcodec does not know it."""
    return next((backend for backend in BACKENDS if backend.wire_id == wire_id), None)


def by_wire_id(wire_id: int) -> Backend:
    """Return the row of a file's backend id; raises VersionError."""
    backend = find_wire_id(wire_id)
    if backend is None:
        raise VersionError(
            f"field backend id: {wire_id} is unknown to this version of latcodec; a newer one may know it"
        )
    return backend
