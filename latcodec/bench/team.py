"""A bench that the processes of a team share: each measures some pictures, and rank 0 collects the rows.

Rank 0 alone looks at the pictures and at the rows of an earlier run, and sends the others instructions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from latcodec.bench.contenders import Contender, Settings
from latcodec.bench.measurement import Row, blank_row
from latcodec.bench.run import Bench, FinishedRows
from latcodec.bench.subjects import Subject
from latcodec.parallel import Team


class SharedBench:
    """A bench as rank 0 sees it; of a team of one process, which then measures everything."""

    def __init__(self, bench: Bench, finished: FinishedRows):
        """Share out `bench`, of which the rows in `finished` are not measured again."""
        self.bench = bench
        self.problems: list[str] = []
        self._finished = finished

    def instructions(self) -> dict:
        """Return what `assist` needs to know, as JSON: pictures, names of contenders, rows that are not measured."""
        return {
            "subjects": [asdict(subject) | {"path": str(subject.path)} for subject in self.bench.subjects],
            "contenders": [contender.name for contender in self.bench.contenders],
            "finished": [
                [contender.name, subject.file, value]
                for contender, subject, value in self.bench.measurements()
                if self._finished.get(contender, subject, value) is not None
            ],
        }

    def rows(self, team: Team) -> Iterator[Row]:
        """Yield the rows of all processes; afterwards `problems` holds the lines of the other processes."""
        own = replace(self.bench, subjects=team.local_share(self.bench.subjects))
        yield from self._finished_elsewhere({subject.file for subject in own.subjects})
        for row in own.run(self._finished):
            yield row
            yield from _received(team)
        for _ in team.wait_for_all():
            yield from _received(team)
        self.problems += [line for lines in team.gather([]) for line in lines]

    def _finished_elsewhere(self, own_files: set[str]) -> Iterator[Row]:
        """Yield the finished rows of pictures of other processes, which do not send them."""
        for contender, subject, value in self.bench.measurements():
            if subject.file not in own_files:
                row = self._finished.get(contender, subject, value)
                if row is not None:
                    yield row


class _InstructedRows:
    """The finished rows that instructions list, as rows without results."""

    def __init__(self, instructions: dict):
        self._keys = {(name, file, value) for name, file, value in instructions["finished"]}

    def get(self, contender: Contender, subject: Subject, value: float) -> Row | None:
        if (contender.name, subject.file, value) not in self._keys:
            return None
        return blank_row(contender, subject, value)

    def has(self, row: Row) -> bool:
        return (row.codec, row.file, row.value) in self._keys


def assist(
    team: Team, instructions: dict, contenders: Sequence[Contender], settings: Settings, problems: Sequence[str]
) -> None:
    """Measure the pictures of this process and send the rows to rank 0; for every rank but 0.

    Args:
        team: The team.
        instructions: What `SharedBench.instructions` returned in rank 0.
        contenders: Those of this process; only those that rank 0 has take part.
        settings: How to measure.
        problems: Lines for rank 0 to print.
    """
    subjects = [
        Subject(**entry | {"path": Path(entry["path"]), "notes": tuple(entry["notes"])})
        for entry in instructions["subjects"]
    ]
    finished = _InstructedRows(instructions)
    shared = [contender for contender in contenders if contender.name in instructions["contenders"]]
    for row in Bench(team.local_share(subjects), shared, settings).run(finished):
        if not finished.has(row):
            team.send(asdict(row))
    team.gather(list(problems))


def _received(team: Team) -> Iterator[Row]:
    for row in team.received():
        yield Row(**row)
