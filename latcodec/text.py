"""Text for people and programs: sizes, seconds, errors and records as lines. Prints nothing itself."""

import json
import math
from collections.abc import Iterator
from typing import Any


def error_line(error: BaseException, name: str = "") -> str:
    """Return one line that describes an error.

    Args:
        error: The error.
        name: Name of the input that the error is about; the line begins with it.
    """
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error) or ("not enough memory" if isinstance(error, MemoryError) else type(error).__name__)
    text = " ".join(text.split())
    return text if not name or text.startswith(name) else f"{name}: {text}"


def human_bytes(size_bytes: int) -> str:
    """Return a size like 812 B, 31 KB or 2.4 MB, in powers of 1000 and with two or three digits."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    size, unit = size_bytes / 1000, "KB"
    for larger in ("MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.1f} {unit}" if size < 9.95 else f"{size:.0f} {unit}"


def size_change(bytes_in: int, bytes_out: int) -> str:
    """Return two sizes like 590 KB -> 31 KB."""
    return f"{human_bytes(bytes_in)} -> {human_bytes(bytes_out)}"


def stage_times(seconds: dict[str, float]) -> str:
    """Return the seconds of stages like read 0.012 s, transform 0.034 s."""
    return ", ".join(f"{name} {value:.3f} s" for name, value in seconds.items())


def record_lines(record: dict[str, Any] | list | tuple, indent: str = "  ") -> Iterator[str]:
    """Yield indented lines `key: value` of a nested record; bytes become hexadecimal."""
    for name, item in record.items() if isinstance(record, dict) else enumerate(record):
        if isinstance(record, (list, tuple)) and isinstance(item, dict):
            yield indent + "  ".join(f"{key} {part}" for key, part in item.items())
        elif isinstance(item, (dict, list, tuple)) and item:
            yield f"{indent}{name}:"
            yield from record_lines(item, indent + "  ")
        else:
            yield f"{indent}{name}: {item.hex() if isinstance(item, bytes) else item}"


def json_line(record: dict[str, Any]) -> str:
    """Return one line of strict JSON: infinity (the PSNR of equal pictures) becomes null, bytes hexadecimal."""
    return json.dumps(_jsonable(record), allow_nan=False)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _jsonable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return None if isinstance(value, float) and not math.isfinite(value) else value
