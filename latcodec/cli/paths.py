"""Which output belongs to which input, decided before any work so that no file is lost."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from latcodec.errors import OptionError
from latcodec.files import EXISTS, refuse_existing

CODED_SUFFIXES = frozenset([".lc"])
_NAMED_OUTPUTS = 3  # outputs that a refusal names


@dataclass(frozen=True)
class Job:
    """One input and the output that it becomes.

    Attributes:
        source: The input; None for standard input.
        target: The output; None for standard output.
        skip: Whether the output exists and is to be left alone.
    """

    source: Path | None
    target: Path | None
    skip: bool = False

    @property
    def source_name(self) -> str:
        """The name of the input for people and --json."""
        return "stdin" if self.source is None else str(self.source)

    @property
    def target_name(self) -> str:
        """The name of the output for people and --json."""
        return "stdout" if self.target is None else str(self.target)


def plan_outputs(
    inputs: Sequence[str], output: str | None, new_suffix: str, *, suffixes: Collection[str], force: bool = False,
    skip_existing: bool = False,
) -> list[Job]:  # fmt: skip
    """Pair every input with its output, and refuse before any work what would lose a file.

    A missing input is no reason to refuse: it fails on its own when it is read, and the others do not.

    Args:
        inputs: Files, folders (searched to the bottom for names that end in `suffixes`) and at most one "-" (stdin).
        output: None (beside each input, with `new_suffix`), "-" (stdout), a file for one input that is a file, else a
            folder in which the tree of each input folder is mirrored.
        new_suffix: The suffix of outputs whose name is not given.
        suffixes: The suffixes of inputs, in lower case.
        force: Whether existing outputs are overwritten.
        skip_existing: Whether inputs whose output exists are marked to be skipped, instead of refused.

    Raises:
        OptionError: Two inputs would write one output, an output is an input, an output exists and neither `force` nor
            `skip_existing` is set, or an input folder holds nothing to do.
        OSError: An input folder cannot be searched.
    """
    if force and skip_existing:
        raise OptionError("--force and --skip-existing exclude each other; give one")
    into_folder = output is not None and output != "-" and _names_folder(output, inputs)
    jobs: list[Job] = []
    for name in inputs:
        if name == "-" and into_folder:
            raise OptionError("-: stdin has no name for the output folder; encode it alone and name the output file")
        for source, relative in expand_input(name, suffixes):
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
        raise OptionError(_existing_message([job for job in jobs if job in existing], len(jobs)))
    return [replace(job, skip=job in existing) for job in jobs]


def _names_folder(output: str, inputs: Sequence[str]) -> bool:
    """Return whether an output is a folder for these inputs; raises OptionError if it has to be one and is not."""
    is_folder = Path(output).is_dir()
    if not (len(inputs) > 1 or output.endswith(("/", os.sep)) or is_folder or Path(inputs[0]).is_dir()):
        return False
    if os.path.lexists(output) and not is_folder:
        raise OptionError(f"{output}: is not a folder, and several inputs need one")
    return True


def expand_input(name: str, suffixes: Collection[str]) -> list[tuple[Path | None, Path]]:
    """Return the files of one input, sorted, each with its path relative to the input folder.

    Hidden files and folders are left out. Standard input is None.

    Raises:
        OptionError: The folder holds no file that ends in `suffixes`.
    """
    if name == "-":
        return [(None, Path("-"))]
    root = Path(name)
    if not root.is_dir():
        return [(root, Path(root.name))]

    paths = []
    for folder, folders, names in os.walk(root, onerror=_raise):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        paths += [Path(folder, n) for n in sorted(names) if not n.startswith(".") and _suffix(n) in suffixes]
    if not paths:
        raise OptionError(f"{name}: the folder holds no file that ends in {' '.join(sorted(suffixes))}")
    return [(path, path.relative_to(root)) for path in paths]


def _raise(error: OSError) -> None:
    raise error


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _renamed(path: Path, new_suffix: str, suffixes: Collection[str]) -> Path:
    """`a.png` becomes `a.lc`; a name without a known suffix keeps all of it: `scan.2024` becomes `scan.2024.lc`."""
    return path.with_suffix(new_suffix) if _suffix(path.name) in suffixes else path.with_name(path.name + new_suffix)


def _existing_message(jobs: list[Job], count: int) -> str:
    """Return the refusal of jobs whose outputs exist; `count`: the number of all jobs."""
    if count == 1:
        return f"{jobs[0].target}: {EXISTS}"
    names = ", ".join(str(job.target) for job in jobs[:_NAMED_OUTPUTS])
    names += f" and {len(jobs) - _NAMED_OUTPUTS} more" if len(jobs) > _NAMED_OUTPUTS else ""
    exist, them = ("exists", "it") if len(jobs) == 1 else ("exist", "them")
    return (
        f"{len(jobs)} of {count} outputs {exist}: {names}; nothing was written; --force (-f) overwrites {them}, "
        f"--skip-existing leaves {them} and does the rest"
    )


def _refuse_losses(jobs: list[Job]) -> None:
    """Raise OptionError where an output is an input, a folder, or the output of two inputs."""
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
            refuse_existing(job.target, force=True)
