"""The codecs: one literal table. Wire ids are written numbers, append-only: a file names its codec
by one of them.

A backend module has `Options`, `Model`, `encode(model, image, options) -> Coded` and `decode(model, payload) -> image`;
its `encode` is `analyse(model, image)` and then `code(model, latents, options)`, so that a search runs networks once.
"""

from dataclasses import dataclass
from types import ModuleType

from latcodec.errors import OptionError, VersionError


@dataclass(frozen=True)
class Backend:
    """A row of the table."""

    wire_id: int
    name: str
    module: str

    def load(self) -> ModuleType:
        """Import the backend's module, and with it torch."""
        from importlib import import_module

        return import_module(self.module)


BACKENDS = (Backend(1, "hyperprior", "latcodec.backends.hyperprior"),)


def by_name(name: str) -> Backend:
    """The backend of a --codec name; raises OptionError."""
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise OptionError(f"codec {name!r} is unknown; there are: {', '.join(b.name for b in BACKENDS)}")


def by_wire_id(wire_id: int) -> Backend:
    """The backend of a file's id; raises VersionError."""
    for backend in BACKENDS:
        if backend.wire_id == wire_id:
            return backend
    raise VersionError(f"field backend id: {wire_id} is unknown to this version of latcodec; a newer one may know it")
