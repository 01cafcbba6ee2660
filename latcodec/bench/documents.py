"""README and the page of results: checked before a bench measures, renewed after it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from latcodec import files
from latcodec.bench import markdown
from latcodec.errors import OptionError
from latcodec.report.files import readme_figure

FIGURE = "rate-distortion.png"


@dataclass(frozen=True)
class Documents:
    """The Markdown files that a bench keeps up to date between their markers.

    Attributes:
        readme: The file for the short part, which must exist; None for none.
        page: The file for the full part, which is made if it does not exist; None for none.
    """

    readme: Path | None = None
    page: Path | None = None

    @property
    def figure(self) -> Path:
        """The plot that both parts show: beside the page, or in the folder docs beside README."""
        if self.page is not None:
            return self.page.parent / FIGURE
        return (self.readme.parent if self.readme is not None else Path()) / "docs" / FIGURE

    def check(self) -> None:
        """Raise OptionError or OSError if a file cannot be read or lacks its markers."""
        for path in filter(None, (self.readme, self.page)):
            try:
                markdown.replace_part(self._text_of(path), "")
            except (OptionError, UnicodeDecodeError) as error:
                raise OptionError(f"{path}: {error}") from None

    def renew(self, results: dict) -> None:
        """Write the figure and the parts.

        The files are read now, because a person may have written in them during a long run.

        Args:
            results: The record that `results.assemble` makes.

        Raises:
            LatcodecError, OSError or UnicodeDecodeError: A file cannot be read, lacks its markers or cannot be written.
        """
        if self.readme is None and self.page is None:
            return
        readme_figure(results, self.figure)
        if self.page is not None:
            self._replace(self.page, markdown.results_part(results, self._address(self.figure, self.page)))
        if self.readme is not None:
            page = None if self.page is None else self._address(self.page, self.readme)
            part = markdown.readme_part(results, self._address(self.figure, self.readme), page)
            self._replace(self.readme, part)

    def _replace(self, path: Path, part: str) -> None:
        text = markdown.replace_part(self._text_of(path), part)
        with files.open_output(path, force=True) as file:
            file.write(text.encode(errors="backslashreplace"))

    def _text_of(self, path: Path) -> str:
        if path == self.page and not path.exists():
            return markdown.NEW_PAGE
        return path.read_text(encoding="utf-8")

    @staticmethod
    def _address(target: Path, document: Path) -> str:
        return Path(os.path.relpath(target, document.parent)).as_posix()
