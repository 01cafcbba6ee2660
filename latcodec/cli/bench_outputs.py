"""What the command bench says and leaves: progress, rows, report, tables of a README. Part of the room `cli`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from latcodec import files, text
from latcodec.errors import LatcodecError, OptionError


def renew_documents(documents, results: dict, problem: Callable[[str], None]) -> None:
    """Renew README and the page of results; what fails is one line that names the file."""
    try:
        documents.renew(results)
    except (LatcodecError, OSError, UnicodeDecodeError) as error:
        problem(text.error_line(error, str(documents.readme or documents.page)))


def keep_row(store, contender, subject, row, problem: Callable[[str], None]):
    """Put a row into the store and return it; or, on a full disk, None with a line: what was measured goes on."""
    try:
        store.put(contender, subject, row)
        return store
    except OSError as error:
        problem(f"{text.error_line(error, 'rows')}; from here on rows are not kept")
        with suppress(OSError):
            store.close()
        return None


def open_report(output: str | None, settings, force: bool, problem: Callable[[str], None], processes: int = 1):
    """(folder, store) of the report, known to be writable; (None, None) without, or with a line if it is not."""
    if output is None:
        return None, None
    from latcodec.bench import store as bench_store

    folder = Path(output)
    try:
        if folder.exists() and not folder.is_dir():
            raise OptionError(f"{output}: is not a folder; the report is one")
        if folder.is_dir() and not force and any(folder.iterdir()) and not (folder / bench_store.NAME).exists():
            raise OptionError(f"{output}: holds other things than a report; --force writes into it")
        return folder, bench_store.Store(folder, settings, afresh=force, processes=processes)
    except OSError as error:
        problem(f"{text.error_line(error, output)}; measuring without a report")
        return None, None


def write_report(folder: Path, results: dict, pictures, quiet: bool, problem: Callable[[str], None]) -> bool:
    """Write the report; False, with a line, if it could not be written."""
    import json

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
        problem(text.error_line(error, str(folder)))
        return False
    return True


def show_results(results: dict, folder: Path | None) -> None:
    """Print means and differences; every rate too where there is no report in a folder."""
    from latcodec.bench import text as bench_text

    if folder is None:
        click.echo(bench_text.plain(*bench_text.per_rate(results), texts=2) + "\n")
    heads, rows = bench_text.summary(results)
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=bench_text.caption(results))
        for number, head in enumerate(heads):
            table.add_column(head, justify="right" if number else "left", no_wrap=number > 0, overflow="fold")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    else:
        click.echo(f"{bench_text.plain(heads, rows)}\n({bench_text.caption(results)})")
    lines = bench_text.differences(results) if folder is None else [str(folder / "index.html")]
    if lines:
        click.echo("\n" + "\n".join(lines))


@contextmanager
def progress(total: int, quiet: bool) -> Iterator[tuple[Callable[[str], None], Callable[[str], None]]]:
    """(begin(codec), advance(text)): a bar with the time left on a terminal, a line for each codec elsewhere."""
    if quiet or not sys.stderr.isatty():
        rows = "row" if total == 1 else "rows"
        begun: set[str] = set()
        start = time.perf_counter()
        done = 0

        def begin(name: str) -> None:
            if name not in begun and not quiet:
                click.echo(f"{name}: {done} of {total} {rows} done after {time.perf_counter() - start:.0f} s", err=True)
            begun.add(name)

        def advance(text: str) -> None:
            nonlocal done
            done += 1

        yield begin, advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # An hour: codecs differ in speed, so the mean over the whole run tells more than the last seconds.
    with Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=3600) as bar:
        task = bar.add_task("starting", total=total)
        yield lambda name: None, lambda text: bar.update(task, advance=1, description=text)
