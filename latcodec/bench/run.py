"""Measures every codec and anchor on every picture at every setting, in one process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from latcodec.bench import measurement, timing
from latcodec.bench.contenders import Contender, Settings
from latcodec.bench.measurement import Row
from latcodec.bench.subjects import Subject, read_colour
from latcodec.errors import ImageError


class FinishedRows(Protocol):
    """Rows of an earlier run, which are not measured again."""

    def get(self, contender: Contender, subject: Subject, value: float) -> Row | None:
        """Return the row of one measurement; None if it is to be measured."""


class NoRows:
    """No row of an earlier run."""

    def get(self, contender: Contender, subject: Subject, value: float) -> None:
        """Return None."""


@dataclass(frozen=True)
class Bench:
    """What to measure: every contender on every subject at every setting of the contender.

    Attributes:
        subjects: The pictures.
        contenders: Codecs and anchors.
        settings: How to measure.
    """

    subjects: Sequence[Subject]
    contenders: Sequence[Contender]
    settings: Settings

    @property
    def row_count(self) -> int:
        """Number of rows of a complete run."""
        return sum(len(self.settings.values_of(contender)) for contender in self.contenders) * len(self.subjects)

    def measurements(self) -> Iterator[tuple[Contender, Subject, float]]:
        """Yield what each row measures, in the order of `run`."""
        for contender in self.contenders:
            for subject in self.subjects:
                for value in self.settings.values_of(contender):
                    yield contender, subject, value

    def run(self, finished: FinishedRows) -> Iterator[Row]:
        """Yield every row as soon as it is measured or, for a row of an earlier run, found."""
        for contender in self.contenders:
            is_warm = False
            for subject in self.subjects:
                values = self.settings.values_of(contender)
                rows = {value: finished.get(contender, subject, value) for value in values}
                if None in rows.values() and not is_warm:
                    measurement.warm_up(contender, self.settings)
                    is_warm = True
                yield from self._rows_of_picture(contender, subject, rows)

    def _rows_of_picture(self, contender: Contender, subject: Subject, rows: dict[float, Row | None]) -> Iterator[Row]:
        """Yield the rows of one picture; those that are None are measured."""
        picture, read_s, memory = None, None, timing.Memory()
        for value, row in rows.items():
            if row is not None:
                yield row
                continue
            if picture is None:
                start = timing.now()
                try:
                    picture = read_colour(subject.path)
                except ImageError as error:  # The file could be read when the run began.
                    yield replace(measurement.blank_row(contender, subject, value), bugs=f"ImageError: {error}")
                    continue
                read_s = timing.now() - start
                memory = measurement.memory_of(contender, picture, self.settings)
            row = measurement.measure(contender, subject, picture, value, self.settings)
            yield replace(
                row, read_s=read_s, peak_memory_bytes=memory.process_bytes, device_memory_bytes=memory.device_bytes
            )
