"""The codecs: one literal table. Wire ids are written numbers, append-only: a file names its codec
by one of them.

A backend module has `Options`, `Model`, `encode(model, image, options) -> Coded` and `decode(model, payload) -> image`;
its `encode` is `analyse(model, image)` and then `code(model, latents, options)`, so that a search runs networks once.
`Options` is a frozen dataclass of rate_index, verify and whatever else a person may set; `Coded` has streams,
parameters (bytes for the container, or None), integers_crc, estimated_bits, seconds and details (for `encode --json`).
One whose Options have `lossless` has `without_loss(image, options)` and, for what needs no look at all of a picture,
`without_loss_at_once(model, image, options)`: a Coded, or None.
"""

from dataclasses import dataclass, fields
from types import ModuleType

from latcodec.errors import OptionError, VersionError
from latcodec.rates import LOWEST_INDEX


@dataclass(frozen=True)
class Backend:
    """A row of the table. without_loss: the parameters of its files that hold a picture without loss, if there are.
    lowest_index: the rate index of its smallest files."""

    wire_id: int
    name: str
    module: str
    without_loss: bytes | None = None
    lowest_index: int = 0

    def is_lossless(self, parameters: bytes | None) -> bool:
        """Whether a file of this backend with these parameters holds a picture without loss, for which no weights are
        needed."""
        return self.without_loss is not None and parameters == self.without_loss

    def rate_index(self, written: int, parameters: bytes | None) -> int:
        """The rate index of a file, from that in its header and its parameters."""
        said = below(parameters)
        return said if said is not None and not written and self.lowest_index <= said < 0 else written

    def load(self) -> ModuleType:
        """Import the backend's module, and with it torch."""
        from importlib import import_module

        return import_module(self.module)


WITHOUT_LOSS = bytes((0, 1))
BELOW = 1  # the first of two bytes of parameters; the second: how far below 0 the rate index is, the header says 0
BACKENDS = (
    Backend(1, "hyperprior", "latcodec.backends.hyperprior.codec"),
    Backend(2, "vbq", "latcodec.backends.vbq.codec"),
    Backend(3, "pln", "latcodec.backends.pln.codec"),
    Backend(4, "nc-vae", "latcodec.backends.nc_vae.codec"),
    Backend(5, "hyperprior-context", "latcodec.backends.hyperprior_context.codec", WITHOUT_LOSS, LOWEST_INDEX),
)
DEFAULT = "hyperprior-context"


def below(parameters: bytes | None) -> int | None:
    """The rate index below 0 that parameters say, unchecked; None if they say none."""
    says = parameters is not None and len(parameters) == 2 and parameters[0] == BELOW
    return -parameters[1] if says else None


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


def split_name(name: str) -> tuple[str, dict[str, str]]:
    """The codec and the options of `name` or `name:key=value,key=value`; raises OptionError."""
    codec, colon, rest = name.partition(":")
    options: dict[str, str] = {}
    for part in rest.split(",") if colon else []:
        key, equals, value = part.partition("=")
        if not (key.strip() and equals and value.strip()):
            raise OptionError(f"codec {name!r}: {part!r} is not of the form key=value")
        options[key.strip()] = value.strip()
    return codec, options


def make_options(module: ModuleType, rate_index: int, verify: bool, given: dict[str, str]):
    """The `Options` of a backend module from texts, each read as the type of its field; raises OptionError."""
    known = {f.name: f for f in fields(module.Options) if f.name not in ("rate_index", "verify", "progress", "gray")}
    values: dict[str, object] = {}
    for key, text in given.items():
        if key not in known:
            raise OptionError(f"option {key!r} is unknown; there are: {', '.join(known) or 'none for this codec'}")
        kind = type(known[key].default)
        try:
            values[key] = _BOOLEANS[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            raise OptionError(f"option {key}={text}: not of type {kind.__name__}") from None
    return module.Options(rate_index, verify, **values)


_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
