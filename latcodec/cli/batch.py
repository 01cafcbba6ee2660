"""Many inputs, one after the other: one failure does not stop the rest, and all of them are counted."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from latcodec.errors import LatcodecError, OptionError
from latcodec.files import Job
from latcodec.text import error_line, json_line, size_change


@dataclass(frozen=True)
class Manners:
    """How a command speaks: JSON lines on stdout, or lines for a person on stderr. transform: its jobs write files."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    transform: bool = True

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise OptionError("--verbose and --quiet exclude each other; give one")


@dataclass(frozen=True)
class Done:
    """What one input came to: a record for --json, a line for a person, more of it for -v, and what was dropped.

    error: what was asked for and could not be had, although there is an output; the input counts as failed.
    """

    record: dict[str, Any]
    line: str
    details: str = ""
    notes: Sequence[str] = field(default=())
    error: LatcodecError | None = None


@dataclass(frozen=True)
class Tally:
    """What a run came to: inputs, those that failed, those left alone, and the bytes of what was written."""

    jobs: int
    failures: int
    skipped: int
    bytes_in: int
    bytes_out: int


def run_jobs(
    jobs: Sequence[Job],
    work: Callable[[Job], Done],
    manners: Manners,
    *,
    say: Callable[[str], None],
    put: Callable[[str], None],
    advance: Callable[[], None] = lambda: None,
    merge: Callable[[Tally], Tally | None] = lambda tally: tally,
) -> int:
    """Do every job but those to skip, say what each came to, and return how many failed.

    say: prints a line for a person; put: a line of output; advance: is called after each job. merge: makes of this
    process's tally that of all processes, or None where another one adds up: then nothing failed here.
    Errors made on purpose, of the system and of memory are failures of one input. Any other exception is a bug and
    leaves, and so does a closed pipe, for nobody is there to read the rest.
    """
    failures, skipped, bytes_in, bytes_out, start = 0, 0, 0, 0, time.perf_counter()
    for job in jobs:
        name = job.source_name
        record = {"input": name} | ({"output": job.target_name} if manners.transform else {})
        if job.skip:
            skipped += 1
            if manners.json:
                put(json_line(record | {"ok": True, "skipped": True}))
            elif manners.verbose:
                say(f"{name} -> {job.target_name}  exists, skipped")
            advance()
            continue
        try:
            done = work(job)
        except BrokenPipeError:
            raise
        except (LatcodecError, OSError, MemoryError) as error:
            failures += 1
            say(f"latcodec: {error_line(error, name)}")
            if manners.json:
                put(json_line(record | {"ok": False, "error": type(error).__name__, "message": error_line(error)}))
        else:
            bytes_in += done.record.get("bytes_in", 0)
            bytes_out += done.record.get("bytes_out", 0)
            outcome = {"ok": True}
            if done.error is not None:
                failures += 1
                outcome = {"ok": False, "error": type(done.error).__name__, "message": error_line(done.error)}
            if manners.json:
                put(json_line(record | outcome | done.record))
            elif not manners.transform:
                put(f"{name}: {done.line}")
            elif not manners.quiet:
                say(f"{name} -> {job.target_name}  {done.line}")
                for detail in [done.details] if manners.verbose else []:
                    say(f"  {detail}")
                for note in done.notes:
                    say(f"latcodec: {name}: note: {note}")
            if done.error is not None:
                say(f"latcodec: {error_line(done.error, name)}")
        advance()
    tally = merge(Tally(len(jobs), failures, skipped, bytes_in, bytes_out))
    if tally is None:
        return 0
    talks = manners.transform and not manners.quiet and not manners.json
    if (tally.jobs > 1 or tally.skipped) and (tally.failures or talks):
        size = f", {size_change(tally.bytes_in, tally.bytes_out)}" if manners.transform else ""
        succeeded = tally.jobs - tally.failures - tally.skipped
        counts = f"{succeeded} of {tally.jobs} file{'s' if tally.jobs != 1 else ''} done, {tally.failures} failed"
        counts += f", {tally.skipped} skipped" if tally.skipped else ""
        say(f"latcodec: {counts}{size}, {time.perf_counter() - start:.1f} s")
    return tally.failures
