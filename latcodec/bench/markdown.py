"""The results of a bench as Markdown: a short part for README and the full part for the page of results.

Both parts stand between two marker lines of their files, so that the text around them can be written by hand.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import PurePath

from latcodec import backends
from latcodec.bench.results import bd_rate_of
from latcodec.bench.text import cost_cells, number, percent
from latcodec.errors import OptionError

BEGIN, END = "<!-- bench: made by `make bench`, not by hand -->", "<!-- bench end -->"
NEW_PAGE = f"# Results\n\n{BEGIN}\n{END}\n"
COST_HEADS = ("encode s", "decode s", "memory MB")
COSTS = (
    "Seconds are medians of one call over all pictures and settings. Memory is the most that a call to encode or to "
    "decode holds beyond the libraries and the weights."
)


def readme_part(results: dict, figure: str, page: str | None = None) -> str:
    """Return the short part: the default codec beside every anchor.

    Args:
        results: The record that `results.assemble` makes.
        figure: Address of the plot, as seen from README.
        page: Address of the page with the full part, as seen from README; None if there is none.
    """
    codec, anchors = _default_codec(results), list(results["anchors"])
    text = f"{_setting_of_the_run(results)}\n\n![PSNR against bits per pixel]({figure})\n\n"
    if codec is None:
        return text + full_table(results) + "\n"
    explanation = f"The second column is the BD-rate of `{codec}` against the codec of the row: the difference of size "
    explanation += f"at equal PSNR, where less than zero means that `{codec}` is smaller. {COSTS}"
    if page is not None:
        explanation += f" Every codec at every rate: [{page}]({page})."
    rows = [[codec, "", *cost_cells(_means_of(results, codec))]]
    rows += [
        [name, percent(bd_rate_of(results, codec, name)), *cost_cells(_means_of(results, name))] for name in anchors
    ]
    return f"{text}{_filled(explanation)}\n\n{table(['codec', 'BD-rate', *COST_HEADS], rows)}\n"


def results_part(results: dict, figure: str) -> str:
    """Return the full part: every codec and anchor against every anchor, and each codec at each rate.

    Args:
        results: The record that `results.assemble` makes.
        figure: Address of the plot, as seen from the page.
    """
    explanation = "The columns with the names of anchors are BD-rates: the difference of size at equal PSNR, where "
    explanation += f"less than zero means that the codec of the row is smaller than the anchor of the column. {COSTS}"
    parts = [
        _setting_of_the_run(results),
        f"![PSNR against bits per pixel]({figure})",
        "## BD-rate, time and memory",
        _filled(explanation),
        full_table(results),
    ]
    if results["codecs"]:
        parts.append("## Each codec at each rate")
    for name, about in results["codecs"].items():
        parts += [f"`{name}` with weights {about['weights']}:", rate_table(results, name)]
    return "\n\n".join(parts) + "\n"


def full_table(results: dict) -> str:
    """Return the table of every codec and anchor: BD-rates against all anchors, time, memory, failures."""
    anchors = list(results["anchors"])
    rows = []
    for name in [*results["codecs"], *anchors]:
        rates = ["" if name == anchor else percent(bd_rate_of(results, name, anchor)) for anchor in anchors]
        means = _means_of(results, name)
        rows.append([name, *rates, *cost_cells(means), str(sum(mean["bugs"] for mean in means))])
    return table(["codec", *anchors, *COST_HEADS, "failed round trips"], rows)


def rate_table(results: dict, codec: str) -> str:
    """Return the table of one codec with a row for each of its settings."""
    digits = {"bpp": 3, "psnr_db": 2, "ms_ssim": 4, "encode_s": 3, "decode_s": 3}
    rows = [
        [mean["setting"], *(number(mean[field], count) for field, count in digits.items())]
        for mean in _means_of(results, codec)
    ]
    return table(["", "bpp", "PSNR dB", "MS-SSIM", "encode s", "decode s"], rows)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is aligned to the left and whose other columns to the right."""
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def replace_part(document: str, part: str) -> str:
    """Return a document with another part between its markers.

    Raises:
        OptionError: The document does not hold one pair of markers.
    """
    head, begin, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in head + tail:
        raise OptionError(f"needs the lines {BEGIN} and {END}, once each and in this order")
    return f"{head}{BEGIN}\n\n{part.strip()}\n\n{END}{tail}"


def portable_command(command: str) -> str:
    """Return a command without the folders of this machine: paths that leave the working folder keep their last part.

    Args:
        command: Words with blanks between them; a path whose last part has no suffix is taken for a folder.
    """
    return " ".join(_portable_word(word) for word in command.split(" "))


def _portable_word(word: str) -> str:
    path = PurePath(word)
    if not path.is_absolute() and ".." not in path.parts:
        return word
    return path.name if path.suffix else f"{path.name}/"


def _setting_of_the_run(results: dict) -> str:
    """Say which pictures were measured, by which command and on which machine."""
    environment, count = results["environment"], len(results["pictures"])
    pictures = "The 24 Kodak pictures" if results["published"] else f"{count} picture{'s' if count != 1 else ''}"
    means = ", means over the pictures" if count != 1 else ""
    threads = f"{environment['threads']} thread{'s' if environment['threads'] != '1' else ''}"
    text = f"{pictures}, whole files{means}; made by `{portable_command(results['command'])}` on "
    return _filled(f"{text}{environment['CPU']}, {threads}, device {environment['device']}.")


def _default_codec(results: dict) -> str | None:
    """Return the default codec if it took part, else the first one; None for a run of anchors alone."""
    names = list(results["codecs"])
    return backends.DEFAULT if backends.DEFAULT in names else names[0] if names else None


def _means_of(results: dict, name: str) -> list[dict]:
    return [mean for mean in results["means"] if mean["codec"] == name]


def _filled(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False)
