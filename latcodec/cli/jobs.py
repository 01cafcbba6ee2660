"""How commands go through files: who does which, what is said, what they exit with. Part of the room `cli`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path

import click

from latcodec import files, parallel
from latcodec.cli.batch import Done, Manners, Tally, run_jobs


def decided(team: parallel.Team, plan: Callable[[], list[files.Job]]) -> list[files.Job]:
    """All jobs, the same in every process of a team."""

    def write(jobs: list[files.Job]) -> list[list]:
        return [[*(path and str(path) for path in (job.source, job.target)), job.skip] for job in jobs]

    def read(told: list[list]) -> list[files.Job]:
        return [files.Job(*(path and Path(path) for path in paths), skip) for *paths, skip in told]

    return team.decide(plan, write, read)


def run(
    jobs: list[files.Job], work: Callable[[files.Job], Done], manners: Manners, team: parallel.Team | None = None
) -> None:
    """Do this process's share of the jobs and say it; exit code 1 if any failed, in the process that adds up."""
    team = team or parallel.Team()

    def merge(tally: Tally) -> Tally | None:
        parts = team.gather(astuple(tally))
        return None if parts is None else Tally(*map(sum, zip(*parts, strict=True)))

    def put(line: str) -> None:
        with team.print_lock():
            click.echo(line)

    with _speaker(len(jobs), manners, team) as (say, advance):
        # Each kind is shared out by itself, so that what is left to do is spread evenly.
        mine = [job for skip in (True, False) for job in team.local_share([job for job in jobs if job.skip == skip])]
        failures = run_jobs(mine, work, manners, say=say, put=put, advance=advance, merge=merge)
    if failures:
        click.get_current_context().exit(1)


@contextmanager
def _speaker(
    count: int, manners: Manners, team: parallel.Team
) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """A function that prints one line to stderr, and one that counts a job as done on the progress bar.

    There is a bar only for several files, at a terminal, of one process, and if the command is to talk to a person.
    """
    talks = manners.transform and not manners.quiet and not manners.json
    if count < 2 or not talks or team.world > 1 or not sys.stderr.isatty():

        def echo(line: str) -> None:
            with team.print_lock():
                click.echo(line, err=True)

        yield echo, lambda: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("files", total=count)

        def say(line: str) -> None:
            progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

        yield say, lambda: progress.advance(task)


@contextmanager
def meter(count: int, manners: Manners, team: parallel.Team) -> Iterator[Callable[[float], None] | None]:
    """What a long encode of the only file tells its progress, 0..1: a bar, from the first call on; None without one."""
    talks = manners.transform and not manners.quiet and not manners.json
    if count > 1 or not talks or team.world > 1 or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    tasks: list = []

    def tell(part: float) -> None:
        if not tasks:
            bar.start()
            tasks.append(bar.add_task("searching", total=1.0))
        bar.update(tasks[0], completed=part)

    try:
        yield tell
    finally:
        bar.stop()
