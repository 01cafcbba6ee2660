"""A photograph through real .lc files at three qualities, beside JPEG and WebP: `make demo`, or run this file.

Everything lies in demo/ afterwards: the original, each .lc file, what it decodes to, and side-by-side.png.
"""

import io
import time
from bisect import bisect_left
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from latcodec import api as codec
from latcodec import images, metrics
from latcodec.bench.anchors import ANCHORS
from latcodec.files import atomic_writer

OUT = Path("demo")
QUALITIES = (15, 45, 75)
CROP = (60, 20, 380, 340)  # left, top, right, bottom, px: the cup


def learned(picture: images.Picture, quality: int) -> tuple:
    """Encode to a file and decode that file, as `latcodec encode` and `latcodec decode` do; a row of the table."""
    start = time.perf_counter()
    encoded = codec.encode_picture(picture, codec.EncodeSettings(quality=quality))
    coded = time.perf_counter()
    with atomic_writer(OUT / f"coffee-q{quality}.lc", force=True) as file:
        file.write(encoded.data)
    data = (OUT / f"coffee-q{quality}.lc").read_bytes()
    read = time.perf_counter()
    decoded = codec.decode_picture(data)
    end = time.perf_counter()
    with atomic_writer(OUT / f"coffee-q{quality}.png", force=True) as file:
        images.write_picture(decoded, file, "png")
    return f"latcodec -q {quality}", data, decoded.pixels, coded - start, end - read


def conventional(picture: images.Picture, name: str, target_bytes: int) -> tuple:
    """The file of one of Pillow's codecs whose size is nearest to a target; a row of the table."""
    anchor, source = ANCHORS[name], Image.fromarray(picture.pixels)

    def save(quality: int) -> bytes:
        file = io.BytesIO()
        source.save(file, anchor.format, quality=quality, **anchor.options)
        return file.getvalue()

    above = bisect_left(range(2, 99), target_bytes, key=lambda quality: len(save(quality))) + 2
    quality = min((above - 1, above), key=lambda quality: abs(len(save(quality)) - target_bytes))
    start = time.perf_counter()
    data = save(quality)
    coded = time.perf_counter()
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    end = time.perf_counter()
    name = anchor.format.lower()
    (OUT / f"coffee.{name}").write_bytes(data)
    return f"{name} quality {quality}", data, pixels, coded - start, end - coded


def side_by_side(panels: list[tuple[str, np.ndarray]]) -> Image.Image:
    """One labelled crop beside the other."""
    width, height, label = CROP[2] - CROP[0], CROP[3] - CROP[1], 30
    sheet = Image.new("RGB", (len(panels) * (width + 8) - 8, height + label), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, (text, pixels) in enumerate(panels):
        left = number * (width + 8)
        draw.text((left + 4, label // 2), text, "black", font, anchor="lm")
        sheet.paste(Image.fromarray(pixels).crop(CROP), (left, label))
    return sheet


def main() -> None:
    """Write demo/ and print the table."""
    OUT.mkdir(exist_ok=True)
    source = Path(find_spec("skimage").origin).parent / "data" / "coffee.png"  # by Rachel Michetti, CC0
    (OUT / "coffee.png").write_bytes(source.read_bytes())
    picture = images.read_picture(OUT / "coffee.png")
    height, width = picture.pixels.shape[:2]
    codec.decode_picture(
        codec.encode_picture(picture).data
    )  # loads the networks: the times below are of a warm process
    rows = [learned(picture, quality) for quality in QUALITIES]
    rows += [conventional(picture, name, len(rows[1][1])) for name in ("jpeg-progressive", "webp")]
    print(f"coffee.png, {width} x {height} px, {source.stat().st_size} bytes as PNG\n")
    print("setting          bytes    bpp  PSNR dB  MS-SSIM  encode s  decode s")
    panels = [("original", picture.pixels)]
    for name, data, pixels, encode_s, decode_s in rows:
        bpp = 8 * len(data) / (width * height)
        psnr, similarity = metrics.psnr_db(picture.pixels, pixels), metrics.ms_ssim(picture.pixels, pixels)
        print(f"{name:15}{len(data):7}{bpp:7.3f}{psnr:9.2f}{similarity:9.4f}{encode_s:10.3f}{decode_s:10.3f}")
        panels.append((f"{name}: {len(data)} bytes, {bpp:.3f} bpp", pixels))
    side_by_side(panels[:4]).save(OUT / "side-by-side.png")
    print(f"\nThe files lie in {OUT.resolve()}; look at {OUT / 'side-by-side.png'}")


if __name__ == "__main__":
    main()
