"""README's part names no folder of the machine it was made on."""

import pytest

from latcodec.bench.text import anywhere


@pytest.mark.parametrize(
    "command, text",
    [
        ("latcodec bench /home/me/kodak/ --rates 3", "latcodec bench kodak/ --rates 3"),
        ("latcodec bench ../a/kodak --readme ../README.md", "latcodec bench kodak/ --readme README.md"),
        ("latcodec bench kodak --output report", "latcodec bench kodak --output report"),
    ],
)
def test_a_command_for_anyone(command, text):
    assert anywhere(command) == text
