"""Commands in README and in the page of results name no folder of the machine they were run on."""

import pytest

from latcodec.bench.markdown import portable_command


@pytest.mark.parametrize(
    "command, text",
    [
        ("latcodec bench /home/me/kodak/ --rates 3", "latcodec bench kodak/ --rates 3"),
        ("latcodec bench ../a/kodak --readme ../README.md", "latcodec bench kodak/ --readme README.md"),
        ("latcodec bench kodak --output report", "latcodec bench kodak --output report"),
        ("latcodec bench kodak/ --results docs/results.md", "latcodec bench kodak/ --results docs/results.md"),
    ],
)
def test_a_portable_command(command, text):
    assert portable_command(command) == text
