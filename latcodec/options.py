"""Which codec, with which options: what a person's words come to before a picture is read. Part of the room `codec`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

from latcodec import backends, weights
from latcodec.errors import OptionError


def name_for(codec: str | None, selected: str | None) -> str:
    """The codec to encode with: the one that is named, else that of a weights file, else the default.

    codec: a name, with options if any; selected: as of --weights. Raises OptionError for a weights file of another
    codec, WeightsError for what is no weights file.
    """
    if selected is None or not Path(selected).is_file():
        return codec or backends.DEFAULT
    found = weights.load_file(Path(selected)).backend
    asked = found if codec is None else backends.split_name(codec)[0]
    if asked != found:
        raise OptionError(f"{selected}: weights of {found}, not of {asked}; name codec {found}, or weights of {asked}")
    return codec or found


def check(codec: str, flags: Collection[str] = ()) -> None:
    """Raise OptionError for a codec that does not exist, and for options that it does not have or cannot use.

    flags: names of the options that a person gave as flags of the command line, so that these can be named.
    """
    name, options = backends.split_name(codec)
    backend = backends.by_name(name)
    if not options:
        return
    module = backend.load()
    for flag in flags:
        if not _has(module, flag):
            others = ", ".join(b.name for b in backends.BACKENDS if _has(b.load(), flag))
            raise OptionError(f"{_spelled(flag)}: {name} has none; it works with {others}")
    made = backends.make_options(module, 0, True, options)
    if "max_seconds" in options and made.max_seconds and not searches(made):
        least = next(effort for effort in range(10) if searches(replace(made, effort=effort)))
        said, more = "option max_seconds", f"effort={least}"
        if "max_seconds" in flags:
            said, more = _spelled("max_seconds"), f"--effort {least}"
        raise OptionError(f"{said}: effort {made.effort} has no search that it could end; add {more} or more")


def searches(options) -> bool:
    """Whether a backend's `Options` make it search for long, which max_seconds ends."""
    return getattr(options, "steps", 0) > 0


def _has(module: ModuleType, option: str) -> bool:
    return option in {field.name for field in fields(module.Options)}


def _spelled(option: str) -> str:
    return "--" + option.replace("_", "-")
