"""Finished rows on disk, so that a long run can be stopped and goes on: one JSON object a line, appended."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path

from latcodec.bench.contenders import Contender, Settings
from latcodec.bench.environment import code_fingerprint, processor
from latcodec.bench.measurement import Row
from latcodec.bench.subjects import Subject

NAME = "rows.jsonl"
_FIELDS = {field.name for field in fields(Row)}


class Store:
    """The rows of a report folder. A row counts for the same file, codec and its code, setting, weights, machine and
    way of measuring."""

    def __init__(self, folder: Path, settings: Settings, *, afresh: bool = False, processes: int = 1):
        """Open or make `folder`/rows.jsonl; afresh forgets what it holds; processes: that measure at the same time.

        Raises OSError if it cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._how = [settings.reps, settings.threads, settings.device, processor()]
        self._how += [processes] if processes > 1 else []  # their times are those of crowded processors
        path = folder / NAME
        self._rows = {} if afresh else _read(path)
        self.found = len(self._rows)
        self._file = open(path, "w" if afresh else "a", encoding="utf-8")
        with suppress(OSError):
            if path.stat().st_size and not afresh:
                self._end_line(path)

    def get(self, contender: Contender, subject: Subject, value: float) -> Row | None:
        """The finished row of this measurement, under the picture's present name, or None; a failure is tried again."""
        row = self._rows.get(self._key(contender, subject, value))
        return None if row is None or row.bugs else replace(row, file=subject.file)

    def put(self, contender: Contender, subject: Subject, row: Row) -> None:
        """Keep a row; it is on its way to the disk when this returns."""
        key = self._key(contender, subject, row.value)
        if self._rows.get(key) != row:
            self._rows[key] = row
            self._file.write(json.dumps({"key": key, "row": asdict(row)}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _key(self, contender: Contender, subject: Subject, value: float) -> str:
        # The options of an anchor and the version of its library are in its settings; the weights in a codec's.
        parts = [subject.sha256, contender.name, value, contender.weights, contender.settings, *self._how]
        return json.dumps(parts + ([code_fingerprint()] if contender.kind == "codec" else []))

    def _end_line(self, path: Path) -> None:
        """A run that was killed while writing leaves half a line; the next row must not be glued to it."""
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                self._file.write("\n")
                self._file.flush()


def _read(path: Path) -> dict[str, Row]:
    """The sound lines of a file: what is no row, half a row or a row of another version is measured again."""
    rows = {}
    with suppress(FileNotFoundError):
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                with suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    if set(entry["row"]) == _FIELDS:
                        rows[entry["key"]] = Row(**entry["row"])
    return rows
