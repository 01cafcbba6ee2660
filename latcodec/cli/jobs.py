"""Run a command over many inputs: one failure does not stop the rest, and exit code 1 tells that there was one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import click

from latcodec import text
from latcodec.cli.paths import Job
from latcodec.errors import LatcodecError, OptionError
from latcodec.parallel import Team


@dataclass(frozen=True)
class OutputStyle:
    """What a command prints.

    Attributes:
        json: JSON lines on stdout instead of lines for people.
        quiet: Errors only.
        verbose: More lines for each input.
        writes_files: Whether the jobs write files; otherwise their lines are the output of the command.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    writes_files: bool = True

    def __post_init__(self) -> None:
        """Refuse a contradiction."""
        if self.quiet and self.verbose:
            raise OptionError("--verbose and --quiet exclude each other; give one")

    @property
    def reports_to_people(self) -> bool:
        """Whether progress and a summary are printed beside the output."""
        return self.writes_files and not self.quiet and not self.json


@dataclass(frozen=True)
class JobResult:
    """The outcome of one input that did not fail outright.

    Attributes:
        record: What --json prints.
        line: What people read.
        details: What --verbose adds.
        notes: What was lost on the way.
        error: A target that could not be met although there is an output; the input counts as failed.
    """

    record: dict[str, Any]
    line: str
    details: str = ""
    notes: Sequence[str] = field(default=())
    error: LatcodecError | None = None


@dataclass
class Tally:
    """Counts over all inputs of a run, and the bytes of those that were read and written."""

    jobs: int = 0
    failures: int = 0
    skipped: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


def plan_together(team: Team, plan: Callable[[], list[Job]]) -> list[Job]:
    """Return the jobs that `plan` makes in the first process of a team, the same in every process."""
    return team.decide(plan, _jobs_to_json, _jobs_from_json)


def _jobs_to_json(jobs: list[Job]) -> list[list]:
    return [[*(None if path is None else str(path) for path in (job.source, job.target)), job.skip] for job in jobs]


def _jobs_from_json(rows: list[list]) -> list[Job]:
    return [
        Job(None if source is None else Path(source), None if target is None else Path(target), skip)
        for source, target, skip in rows
    ]


def run_jobs(jobs: list[Job], work: Callable[[Job], JobResult], style: OutputStyle, team: Team | None = None) -> None:
    """Do this process's share of the jobs and report it.

    The process that adds up all tallies exits with code 1 if a job failed anywhere.

    Args:
        jobs: All jobs of the command.
        work: Does one job. LatcodecError, OSError and MemoryError are failures of that input. Any other exception is a
            bug and passes, and so does a closed pipe, for nobody reads the rest.
        style: What to print.
        team: The processes of the command.
    """
    team = team or Team()
    start = time.perf_counter()
    with Reporter(len(jobs), style, team) as reporter:
        run = _Run(work, style, reporter)
        # Each kind is shared out by itself, so that the remaining work is spread evenly.
        for skip in (True, False):
            for job in team.local_share([job for job in jobs if job.skip == skip]):
                run.do(job)
                reporter.advance()
        tallies = team.gather(astuple(run.tally))
        total = None if tallies is None else Tally(*map(sum, zip(*tallies, strict=True)))
        if total is not None:
            _report_total(total, style, reporter, time.perf_counter() - start)
    if total is not None and total.failures:
        click.get_current_context().exit(1)


class Reporter:
    """Prints lines of output and messages, with a progress bar where one person watches several files at a terminal."""

    def __init__(self, count: int, style: OutputStyle, team: Team):
        """Prepare to report on `count` jobs; the bar appears with the `with` block."""
        self._count, self._team = count, team
        self._progress: Any = None
        self._has_bar = count > 1 and _shows_bar(style, team)

    def __enter__(self) -> Reporter:
        """Show the bar, if there is one."""
        if self._has_bar:
            from rich.console import Console
            from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

            columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._progress.start()
            self._task = self._progress.add_task("files", total=self._count)
        return self

    def __exit__(self, *exception: object) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()

    def message(self, line: str) -> None:
        """Print a line for people to stderr."""
        if self._progress is not None:
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
            return
        with self._team.print_lock():
            click.echo(line, err=True)

    def output(self, line: str) -> None:
        """Print a line of output to stdout."""
        with self._team.print_lock():
            click.echo(line)

    def advance(self) -> None:
        """Count a job as done on the progress bar."""
        if self._progress is not None:
            self._progress.advance(self._task)


class _Run:
    """Jobs done one after the other, their reports and their tally."""

    def __init__(self, work: Callable[[Job], JobResult], style: OutputStyle, reporter: Reporter):
        self._work, self._style, self._reporter = work, style, reporter
        self.tally = Tally()

    def do(self, job: Job) -> None:
        """Do a job, or skip it, and report the outcome."""
        self.tally.jobs += 1
        if job.skip:
            self._skip(job)
            return
        try:
            result = self._work(job)
        except BrokenPipeError:
            raise
        except (LatcodecError, OSError, MemoryError) as error:
            self.tally.failures += 1
            self._reporter.message(f"latcodec: {text.error_line(error, job.source_name)}")
            self._json(job, _failure(error))
        else:
            self._finish(job, result)

    def _skip(self, job: Job) -> None:
        self.tally.skipped += 1
        self._json(job, {"ok": True, "skipped": True})
        if self._style.verbose and not self._style.json:
            self._reporter.message(f"{job.source_name} -> {job.target_name}  exists, skipped")

    def _finish(self, job: Job, result: JobResult) -> None:
        self.tally.bytes_in += result.record.get("bytes_in", 0)
        self.tally.bytes_out += result.record.get("bytes_out", 0)
        self._json(job, ({"ok": True} if result.error is None else _failure(result.error)) | result.record)
        if self._style.reports_to_people:
            self._reporter.message(f"{job.source_name} -> {job.target_name}  {result.line}")
            if self._style.verbose:
                self._reporter.message(f"  {result.details}")
            for note in result.notes:
                self._reporter.message(f"latcodec: {job.source_name}: note: {note}")
        elif not self._style.json and not self._style.writes_files:
            self._reporter.output(f"{job.source_name}: {result.line}")
        if result.error is not None:
            self.tally.failures += 1
            self._reporter.message(f"latcodec: {text.error_line(result.error, job.source_name)}")

    def _json(self, job: Job, record: dict[str, Any]) -> None:
        """Print the record of a job, if the style is JSON."""
        if self._style.json:
            names = {"input": job.source_name} | ({"output": job.target_name} if self._style.writes_files else {})
            self._reporter.output(text.json_line(names | record))


def _failure(error: BaseException) -> dict[str, Any]:
    return {"ok": False, "error": type(error).__name__, "message": text.error_line(error)}


def _report_total(total: Tally, style: OutputStyle, reporter: Reporter, seconds: float) -> None:
    """Print a summary of several inputs, in the quiet styles only if one failed."""
    if not (total.jobs > 1 or total.skipped) or not (total.failures or style.reports_to_people):
        return
    succeeded = total.jobs - total.failures - total.skipped
    counts = f"{succeeded} of {total.jobs} file{'s' if total.jobs != 1 else ''} done, {total.failures} failed"
    counts += f", {total.skipped} skipped" if total.skipped else ""
    size = f", {text.size_change(total.bytes_in, total.bytes_out)}" if style.writes_files else ""
    reporter.message(f"latcodec: {counts}{size}, {seconds:.1f} s")


def _shows_bar(style: OutputStyle, team: Team) -> bool:
    return style.reports_to_people and team.world == 1 and sys.stderr.isatty()


@contextmanager
def search_progress(count: int, style: OutputStyle, team: Team) -> Iterator[Callable[[float], None] | None]:
    """Yield what a long search of the only input reports its progress to, 0..1; None where there is no bar."""
    if count > 1 or not _shows_bar(style, team):
        yield None
        return
    bar = _SearchBar()
    try:
        yield bar.update
    finally:
        bar.close()


class _SearchBar:
    """A progress bar that appears with the first update."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._progress = Progress(console=Console(stderr=True), transient=True)
        self._task: Any = None

    def update(self, fraction: float) -> None:
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("searching", total=1.0)
        self._progress.update(self._task, completed=fraction)

    def close(self) -> None:
        self._progress.stop()
