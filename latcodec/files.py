"""What the commands read and write: which output belongs to which input; output that appears whole or not at all."""

import errno
import io
import os
import secrets
import stat
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from latcodec.errors import FormatError, OptionError

CODED_SUFFIXES = frozenset([".lc"])
_CHUNK_BYTES = 1 << 20
_EXISTS = "exists; --force (-f) overwrites it"
_NAMED = 3  # outputs that a refusal names
_NO_HARD_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EXDEV}


@dataclass(frozen=True)
class Job:
    """One input and the output it becomes; None is stdin as source and stdout as target. skip: it is there already."""

    source: Path | None
    target: Path | None
    skip: bool = False

    @property
    def source_name(self) -> str:
        return "stdin" if self.source is None else str(self.source)

    @property
    def target_name(self) -> str:
        return "stdout" if self.target is None else str(self.target)


def plan_outputs(
    inputs: Sequence[str], output: str | None, new_suffix: str, *, suffixes: Collection[str], force: bool = False,
    skip_existing: bool = False,
) -> list[Job]:  # fmt: skip
    """Pair every input with its output, and refuse before any work what would lose a file.

    inputs: files, folders (searched to the bottom for names that end in `suffixes`) and at most one "-" (stdin).
    output: None (beside each input, with `new_suffix`), "-" (stdout), a file for one input that is a file, else a
    folder in which the tree of each input folder is mirrored.
    A missing input is no reason to refuse: it fails on its own when it is read, and the others do not.
    skip_existing: mark what has its output already, instead of refusing it.
    Raises OptionError if two inputs would write one output, an output is an input, an output exists and neither force
    nor skip_existing is set, or an input folder holds nothing to do; OSError if an input folder cannot be searched.
    """
    if force and skip_existing:
        raise OptionError("--force and --skip-existing exclude each other; give one")
    into_folder = output not in (None, "-") and (
        len(inputs) > 1 or output.endswith(("/", os.sep)) or Path(output).is_dir() or Path(inputs[0]).is_dir()
    )
    if into_folder and os.path.lexists(output) and not Path(output).is_dir():
        raise OptionError(f"{output}: is not a folder, and several inputs need one")
    jobs: list[Job] = []
    for name in inputs:
        if name == "-" and into_folder:
            raise OptionError("-: stdin has no name for the output folder; encode it alone and name the output file")
        for source, relative in expand(name, suffixes):
            if source is None or output == "-":
                target = None if output in (None, "-") else Path(output)
            elif output is None:
                target = _renamed(source, new_suffix, suffixes)
            else:
                target = Path(output) / _renamed(relative, new_suffix, suffixes) if into_folder else Path(output)
            jobs.append(Job(source, target))
    if len(jobs) > 1 and any(job.target is None for job in jobs):
        raise OptionError("-: several inputs cannot share standard output; name an output folder with -o")
    _refuse_losses(jobs)
    if force:
        return jobs
    existing = {job for job in jobs if job.target is not None and job.target.is_file()}
    if existing and not skip_existing:
        raise OptionError(_existing([job for job in jobs if job in existing], len(jobs)))
    return [replace(job, skip=job in existing) for job in jobs]


def expand(name: str, suffixes: Collection[str]) -> list[tuple[Path | None, Path]]:
    """The files one input stands for (None: stdin), sorted, each with its path relative to the input folder.

    Hidden files and folders are left out. Raises OptionError for a folder with nothing in it that ends in `suffixes`.
    """
    if name == "-":
        return [(None, Path("-"))]
    root = Path(name)
    if not root.is_dir():
        return [(root, Path(root.name))]

    def stop(error: OSError) -> None:
        raise error

    found = []
    for folder, folders, names in os.walk(root, onerror=stop):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [Path(folder, n) for n in sorted(names) if not n.startswith(".") and _suffix(n) in suffixes]
    if not found:
        raise OptionError(f"{name}: the folder holds no file that ends in {' '.join(sorted(suffixes))}")
    return [(path, path.relative_to(root)) for path in found]


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _renamed(path: Path, new_suffix: str, suffixes: Collection[str]) -> Path:
    """`a.png` becomes `a.lc`; a name without a known suffix keeps all of it: `scan.2024` becomes `scan.2024.lc`."""
    return path.with_suffix(new_suffix) if _suffix(path.name) in suffixes else path.with_name(path.name + new_suffix)


def _existing(jobs: list[Job], count: int) -> str:
    """The refusal of some of `count` jobs because their outputs exist."""
    if count == 1:
        return f"{jobs[0].target}: {_EXISTS}"
    names = ", ".join(str(job.target) for job in jobs[:_NAMED])
    names += f" and {len(jobs) - _NAMED} more" if len(jobs) > _NAMED else ""
    exist, them = ("exists", "it") if len(jobs) == 1 else ("exist", "them")
    return (
        f"{len(jobs)} of {count} outputs {exist}: {names}; nothing was written; --force (-f) overwrites {them}, "
        f"--skip-existing leaves {them} and does the rest"
    )


def _refuse_losses(jobs: list[Job]) -> None:
    sources = {os.path.realpath(job.source) for job in jobs if job.source is not None}
    writers: dict[str, Job] = {}
    for job in jobs:
        if job.target is None:
            continue
        place = os.path.realpath(job.target)
        if place in sources:
            raise OptionError(f"{job.target}: is an input; name another output with -o")
        if place in writers:
            other = writers[place].source_name
            raise OptionError(f"{job.target}: both {other} and {job.source_name} would be written here")
        writers[place] = job
    for job in jobs:
        if job.target is not None:
            _refuse_existing(job.target, force=True)


def _refuse_existing(path: Path, force: bool) -> None:
    if path.is_dir():
        raise OptionError(f"{path}: is a folder")
    if not force and path.exists() and path.is_file():
        raise OptionError(f"{path}: {_EXISTS}")


def is_special(path: Path) -> bool:
    """True for a device, FIFO or socket: something a person writes into, and never replaces."""
    return path.exists() and not path.is_file() and not path.is_dir()


def read_bytes(source: Path | None, limit_bytes: int, *, magic: bytes = b"") -> bytes:
    """The whole of a file, or of stdin for None, in memory bounded by `limit_bytes`; raises FormatError above it.

    Of a file that does not begin with `magic` only the first 1 MiB is read: enough to say what it is instead.
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
    """A seekable binary file that becomes `target` (stdout for None) when the block ends, and nothing if it raises."""
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
    """A binary file that appears at `path` whole when the block ends, or not at all.

    The bytes go to a temporary file in the same folder, reach the disk, and are then renamed; whatever leaves the
    block by an exception (Ctrl-C too, and SIGTERM where it raises) removes the temporary file. Permissions are those
    of the file replaced, else the umask's. A symbolic link is written through; a device or FIFO gets the bytes
    directly, when the block ends. Raises OptionError if `path` is a folder, or exists and force is False.
    """
    place = Path(os.path.realpath(path))
    _refuse_existing(place, force)
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
            raise OptionError(f"{place}: {_EXISTS}") from None
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            _refuse_existing(place, force)
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
