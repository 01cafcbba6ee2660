"""What the command bench prints and leaves: problems, progress, kept rows, the report and the documents."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from latcodec import files, text
from latcodec.errors import LatcodecError, OptionError

if TYPE_CHECKING:
    from latcodec.bench.contenders import Settings
    from latcodec.bench.documents import Documents
    from latcodec.bench.measurement import Row
    from latcodec.bench.run import Bench
    from latcodec.bench.store import Store
    from latcodec.bench.subjects import SubjectPictures


class Problems:
    """The problems of a run, which do not end it but make its exit code 1.

    Attributes:
        lines: One line for each problem.
    """

    def __init__(self, silent: bool = False):
        """Collect problems, and print them unless `silent`."""
        self.lines: list[str] = []
        self._silent = silent

    def add(self, line: str) -> None:
        """Add a problem and print it."""
        self.lines.append(line)
        if not self._silent:
            click.echo(f"latcodec: {line}", err=True)


class RowKeeper:
    """Puts rows into a store until the disk is full; measuring goes on without it."""

    def __init__(self, store: Store | None, bench: Bench, problems: Problems):
        """Keep rows of `bench` in `store`; None keeps nothing."""
        self._store, self._problems = store, problems
        self._subjects = {subject.file: subject for subject in bench.subjects}
        self._contenders = {contender.name: contender for contender in bench.contenders}

    @property
    def is_open(self) -> bool:
        """Whether rows are still kept."""
        return self._store is not None

    def keep(self, row: Row) -> None:
        """Put a row into the store; a failure is a problem, after which no row is kept."""
        if self._store is None:
            return
        try:
            self._store.put(self._contenders[row.codec], self._subjects[row.file], row)
        except OSError as error:
            self._problems.add(f"{text.error_line(error, 'rows')}; from here on rows are not kept")
            with suppress(OSError):
                self._store.close()
            self._store = None

    def close(self) -> None:
        """Close the store."""
        if self._store is not None:
            self._store.close()


def open_store(folder: Path, settings: Settings, force: bool, processes: int, problems: Problems) -> Store | None:
    """Return the store of a report whose folder can be written; None, with a problem, where it cannot.

    Raises:
        OptionError: The path is no folder, or one of other things than a report, and `force` is False.
    """
    from latcodec.bench import store as bench_store

    try:
        if folder.exists() and not folder.is_dir():
            raise OptionError(f"{folder}: is not a folder; the report is one")
        if folder.is_dir() and not force and any(folder.iterdir()) and not (folder / bench_store.NAME).exists():
            raise OptionError(f"{folder}: holds other things than a report; --force writes into it")
        return bench_store.Store(folder, settings, afresh=force, processes=processes)
    except OSError as error:
        problems.add(f"{text.error_line(error, str(folder))}; measuring without a report")
        return None


def write_report(
    folder: Path, results: dict[str, Any], pictures: SubjectPictures, quiet: bool, problems: Problems
) -> bool:
    """Write the report; return whether that succeeded, a failure is a problem."""
    from latcodec.bench import results as bench_results
    from latcodec.report import files as report

    say = (lambda line: None) if quiet else (lambda line: click.echo(line, err=True))
    try:
        for name, content in (
            ("results.json", json.dumps(results, indent=1, allow_nan=False) + "\n"),
            ("results.tsv", bench_results.tsv(results)),
        ):
            with files.open_output(folder / name, force=True) as file:
                file.write(content.encode(errors="backslashreplace"))  # names of files need not be Unicode
        report.write(results, folder, pictures, say)
    except (LatcodecError, OSError) as error:
        problems.add(text.error_line(error, str(folder)))
        return False
    return True


def renew_documents(documents: Documents, results: dict[str, Any], problems: Problems) -> None:
    """Renew README and the page of results; a failure is a problem."""
    try:
        documents.renew(results)
    except (LatcodecError, OSError, UnicodeDecodeError) as error:
        problems.add(text.error_line(error, str(documents.readme or documents.page)))


def show_results(results: dict[str, Any], folder: Path | None) -> None:
    """Print means and differences; every rate too where there is no report in a folder."""
    from latcodec.bench import text as bench_text

    if folder is None:
        click.echo(bench_text.plain(*bench_text.per_rate(results), texts=2) + "\n")
    heads, rows = bench_text.summary(results)
    if sys.stdout.isatty():
        _print_table(heads, rows, bench_text.caption(results))
    else:
        click.echo(f"{bench_text.plain(heads, rows)}\n({bench_text.caption(results)})")
    lines = bench_text.differences(results) if folder is None else [str(folder / "index.html")]
    if lines:
        click.echo("\n" + "\n".join(lines))


def _print_table(heads: list[str], rows: list[list[str]], caption: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption)
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=number > 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


class Progress(Protocol):
    """What a bench reports its rows to."""

    def begin(self, codec: str) -> None:
        """Note that a row of a codec is there."""

    def advance(self, line: str) -> None:
        """Count a row as done."""


class _Lines:
    """A line for each codec when its first row is there."""

    def __init__(self, total: int, quiet: bool):
        self._total, self._quiet = total, quiet
        self._begun: set[str] = set()
        self._done = 0
        self._start = time.perf_counter()

    def begin(self, codec: str) -> None:
        if codec not in self._begun and not self._quiet:
            rows = f"{self._done} of {self._total} {'row' if self._total == 1 else 'rows'} done"
            click.echo(f"{codec}: {rows} after {time.perf_counter() - self._start:.0f} s", err=True)
        self._begun.add(codec)

    def advance(self, line: str) -> None:
        self._done += 1


class _Bar:
    """A progress bar of rich."""

    def __init__(self, bar: Any, total: int):
        self._bar = bar
        self._task = bar.add_task("starting", total=total)

    def begin(self, codec: str) -> None:
        pass

    def advance(self, line: str) -> None:
        self._bar.update(self._task, advance=1, description=line)


@contextmanager
def progress(total: int, quiet: bool) -> Iterator[Progress]:
    """Yield a bar with the time left on a terminal, a line for each codec elsewhere, and silence if `quiet`."""
    if quiet or not sys.stderr.isatty():
        yield _Lines(total, quiet)
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
    )
    # An hour: codecs differ in speed, so the mean over the whole run predicts better than the last seconds.
    with bars.Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=3600) as bar:
        yield _Bar(bar, total)
