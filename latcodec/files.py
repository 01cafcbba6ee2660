"""Files on disk: output that appears whole or not at all, and input read in bounded memory."""

from __future__ import annotations

import errno
import io
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from latcodec.errors import FormatError, OptionError

EXISTS = "exists; --force (-f) overwrites it"
_CHUNK_BYTES = 1 << 20
_NO_HARD_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EXDEV}


def refuse_existing(path: Path, force: bool) -> None:
    """Raise OptionError for a folder, and without `force` for an existing file."""
    if path.is_dir():
        raise OptionError(f"{path}: is a folder")
    if not force and path.exists() and path.is_file():
        raise OptionError(f"{path}: {EXISTS}")


def is_special(path: Path) -> bool:
    """Return whether a path is a device, FIFO or socket, which output is written into and never replaces."""
    return path.exists() and not path.is_file() and not path.is_dir()


def read_bytes(source: Path | None, limit_bytes: int, *, magic: bytes = b"") -> bytes:
    """Return the bytes of a file in bounded memory.

    Args:
        source: The file; None for standard input.
        limit_bytes: The most bytes accepted.
        magic: Of a file that does not begin with these bytes only the first 1 MiB is read, enough to identify it.

    Raises:
        FormatError: The file is larger than the limit.
    """
    parts, size = [], 0
    with open(source, "rb") if source is not None else _left_open(sys.stdin.buffer) as stream:
        while part := stream.read(_CHUNK_BYTES):
            parts.append(part)
            size += len(part)
            if size == len(part) and not part.startswith(magic):
                break
            if size > limit_bytes:
                raise FormatError(f"larger than the {limit_bytes} bytes that --max-pixels allows for")
    return b"".join(parts)


@contextmanager
def _left_open(stream: BinaryIO) -> Iterator[BinaryIO]:
    yield stream


@contextmanager
def open_output(target: Path | None, *, force: bool) -> Iterator[BinaryIO]:
    """Yield a seekable binary file that becomes `target`, or standard output for None, when the block ends.

    Nothing appears if the block raises.
    """
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(target, force=force) as file:
            yield file
    else:
        buffer = io.BytesIO()
        yield buffer
        sys.stdout.buffer.write(buffer.getbuffer())
        sys.stdout.buffer.flush()


@contextmanager
def atomic_writer(path: str | os.PathLike, *, force: bool = False) -> Iterator[BinaryIO]:
    """Yield a binary file that appears at `path` whole when the block ends, or not at all.

    The bytes go to a temporary file in the same folder, reach the disk, and are then renamed; whatever leaves the
    block by an exception (Ctrl-C too, and SIGTERM where it raises) removes the temporary file. Permissions are those
    of the file replaced, else the umask's. A symbolic link is written through; a device or FIFO gets the bytes
    directly, when the block ends.

    Raises:
        OptionError: `path` is a folder, or it exists and `force` is False.
    """
    place = Path(os.path.realpath(path))
    refuse_existing(place, force)
    if is_special(place):
        buffer = io.BytesIO()
        yield buffer
        with open(place, "wb") as file:
            file.write(buffer.getbuffer())
        return
    temporary = place.parent / f".latcodec-{secrets.token_hex(8)}.tmp"
    try:
        with open(
            os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666), "w+b"
        ) as file:
            if force and place.exists():
                os.chmod(temporary, stat.S_IMODE(place.stat().st_mode) & 0o777)
            yield file
            file.flush()
            os.fsync(file.fileno())
        _move(temporary, place, force)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename is not None:
            error.filename = str(path)  # nobody asked for the temporary file
        raise
    _sync_folder(place.parent)


def _move(temporary: Path, place: Path, force: bool) -> None:
    """Rename; without force by a hard link, which unlike a rename fails if another process made `place` meanwhile."""
    if not force:
        try:
            os.link(temporary, place)
        except FileExistsError:
            raise OptionError(f"{place}: {EXISTS}") from None
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            refuse_existing(place, force)
        else:
            os.unlink(temporary)
            return
    os.replace(temporary, place)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut; Windows cannot open a folder, some file systems cannot sync one."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EBADF, errno.ENOTSUP}:
            raise
    finally:
        os.close(handle)
