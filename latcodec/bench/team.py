"""A bench shared by the processes of a team: each measures its pictures, rank 0 keeps all rows and the report.

Rank 0 alone looks at the pictures and at the rows of an earlier run, and tells the others what there is to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from latcodec.bench import run as bench
from latcodec.bench.contenders import Contender, Settings
from latcodec.bench.run import Row, Subject
from latcodec.parallel import Team

Finished = Callable[[Contender, Subject, float], Row | None]


def nothing_finished(contender: Contender, subject: Subject, value: float) -> None:
    """No row is there yet."""


def instructions(
    subjects: Sequence[Subject], contenders: Sequence[Contender], settings: Settings, finished: Finished
) -> dict:
    """What `assist` needs to know, as JSON: pictures, names of contenders, and which rows need not be measured."""
    rows = [
        [contender.name, subject.file, value]
        for contender in contenders
        for subject in subjects
        for value in settings.values_of(contender)
        if finished(contender, subject, value) is not None
    ]
    return {
        "subjects": [asdict(subject) | {"path": str(subject.path)} for subject in subjects],
        "contenders": [contender.name for contender in contenders],
        "finished": rows,
    }


def finished_elsewhere(
    team: Team, subjects: Sequence[Subject], contenders: Sequence[Contender], settings: Settings, finished: Finished
) -> Iterator[Row]:
    """In rank 0: finished rows of the pictures that are another's share, which that one does not send."""
    own = {subject.file for subject in team.mine(subjects)}
    for contender in contenders:
        for subject in subjects:
            for value in settings.values_of(contender) if subject.file not in own else ():
                if (row := finished(contender, subject, value)) is not None:
                    yield row


def assist(
    team: Team, told: dict, contenders: Sequence[Contender], settings: Settings, problems: Sequence[str]
) -> None:
    """In the other ranks: measure this process's pictures and post the rows; problems: lines for rank 0 to say."""
    subjects = [Subject(**s | {"path": Path(s["path"]), "notes": tuple(s["notes"])}) for s in told["subjects"]]
    there = {(name, file, value) for name, file, value in told["finished"]}
    wanted = [contender for contender in contenders if contender.name in told["contenders"]]

    def finished(contender: Contender, subject: Subject, value: float) -> Row | None:
        return bench.blank(contender, subject, value) if (contender.name, subject.file, value) in there else None

    for row in bench.run(team.mine(subjects), wanted, settings, finished):
        if (row.codec, row.file, row.value) not in there:
            team.post(asdict(row))
    team.gather(list(problems))
