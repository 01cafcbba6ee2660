"""The table of picture formats: suffixes, signatures, and imports that stay light."""

import subprocess
import sys

import pytest
from picture_files import picture_of, written

from latcodec.errors import ImageError, OptionError
from latcodec.images.formats import FORMATS, WRITABLE, format_of_bytes, format_of_suffix


def test_format_of_suffix_and_unknown_formats():
    assert format_of_suffix("a/B.PNG") == "png" and format_of_suffix("x.JpG") == "jpeg"
    for name in ("a.tif", "a.webp", "a.avif", "a.bmp", "a.ppm", "a.pgm"):
        assert format_of_suffix(name)
    for name, why in (("a.xyz", "'.xyz'"), ("noend", "no suffix")):
        with pytest.raises(OptionError, match=why):
            format_of_suffix(name)
    with pytest.raises(OptionError, match="use one of png"):
        written(picture_of(), "gif")
    with pytest.raises(ImageError, match="WebP allows 16383"):
        written(picture_of(shape=(1, 16384)), "webp")


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
def test_rows_of_the_table_of_formats(row):
    """A row finds the files it writes by suffix and by content, and no row takes another's."""
    assert sum(set(row.suffixes) <= set(other.suffixes) for other in FORMATS) == 1
    if row.name in WRITABLE:
        assert all(format_of_suffix(f"a{suffix}") == row.name for suffix in row.suffixes)
        assert format_of_bytes(written(picture_of(gray=row.name == "pgm"), row.name)[0]) is row
    else:
        with pytest.raises(OptionError, match="unknown picture suffix"):
            format_of_suffix(f"a{row.suffixes[0]}")


def test_importing_images_imports_no_picture_library():
    heavy = "{'PIL', 'imagecodecs', 'tifffile', 'torch'}"
    code = f"import sys, latcodec.images.read, latcodec.images.write; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
