"""What the commands say, as text: one line for a person, one JSON object for a program. Prints nothing itself."""

import json
import math
from collections.abc import Iterator
from typing import Any


def message(error: BaseException, name: str = "") -> str:
    """One line for an error about the input `name`, which it begins with unless the error says it already."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error) or ("not enough memory" if isinstance(error, MemoryError) else type(error).__name__)
    text = " ".join(text.split())
    return text if not name or text.startswith(name) else f"{name}: {text}"


def bytes_for_people(size_bytes: int) -> str:
    """812 B, 31 KB, 2.4 MB: powers of 1000, two or three digits."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    size, unit = size_bytes / 1000, "KB"
    for larger in ("MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.1f} {unit}" if size < 9.95 else f"{size:.0f} {unit}"


def sizes(bytes_in: int, bytes_out: int) -> str:
    """590 KB -> 31 KB"""
    return f"{bytes_for_people(bytes_in)} -> {bytes_for_people(bytes_out)}"


def stages(seconds: dict[str, float]) -> str:
    """read 0.012 s, transform 0.034 s"""
    return ", ".join(f"{name} {value:.3f} s" for name, value in seconds.items())


def described(value: dict[str, Any] | list | tuple, indent: str = "  ") -> Iterator[str]:
    """Lines `key: value` of a nested record, to hang under a file's name."""
    for name, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(value, (list, tuple)) and isinstance(item, dict):
            yield indent + "  ".join(f"{key} {part}" for key, part in item.items())
        elif isinstance(item, (dict, list, tuple)) and item:
            yield f"{indent}{name}:"
            yield from described(item, indent + "  ")
        else:
            yield f"{indent}{name}: {item.hex() if isinstance(item, bytes) else item}"


def json_line(record: dict[str, Any]) -> str:
    """One line of strict JSON: infinity (the PSNR of equal pictures) becomes null, bytes become hexadecimal."""
    return json.dumps(_jsonable(record), allow_nan=False)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _jsonable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return None if isinstance(value, float) and not math.isfinite(value) else value
