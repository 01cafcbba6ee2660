"""Pictures that are not photographs, and what they cost beside progressive JPEG.

python experiments/content_types.py OUT [--codecs LIST]

Draws text, a screenshot, line art, noise, flat colour, night and a halftone, 768 x 512 px PNG, into OUT, measures them
and prints a table: bits at equal PSNR against the smaller of progressive, optimised JPEGs with full and with halved
colour, the mean over the codec's rates and the worst of them. OUT/crops.png: original, a low and a middle rate of each
kind, 192 px.
"""

import argparse
import io
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFile, ImageFilter, ImageFont
from screenshots import FONTS, paragraph, screenshot
from skimage.data import astronaut

from latcodec import api as codec
from latcodec import metrics
from latcodec.images import Picture

SIZE = (768, 512)
LAMBDAS = (20, 12.8, 6.4, 3.2, 1.6, 0.8, 0.4, 0.1)
JPEG_QUALITIES = (5, 10, 20, 30, 40, 50, 60, 70, 80, 88, 94, 98)
CROP_PX = 192
ImageFile.MAXBLOCK = 2**24  # noise does not fit into the room that Pillow gives an optimised JPEG


def text(rng: random.Random) -> Image.Image:
    """A page of black serif type on white, at four sizes."""
    page = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(page)
    serif = next(path for path in FONTS if path.name == "DejaVuSerif.ttf")
    top = 12
    for size in (9, 12, 16, 24):
        paragraph(draw, rng, ImageFont.truetype(str(serif), size), (16, top, SIZE[0] - 16, top + 118), (0, 0, 0))
        top += 122
    return page


def line_art(rng: random.Random) -> Image.Image:
    """Curves, polygons and hatching, drawn at four times the size."""
    big = Image.new("RGB", (4 * SIZE[0], 4 * SIZE[1]), "white")
    draw = ImageDraw.Draw(big)
    for _ in range(26):
        x, y, r = rng.randint(0, big.width), rng.randint(0, big.height), rng.randint(60, 700)
        ink = (0, 0, 0) if rng.random() < 0.7 else tuple(rng.randint(0, 200) for _ in range(3))
        draw.ellipse((x - r, y - r // 2, x + r, y + r // 2), outline=ink, width=rng.choice((4, 6, 10, 20)))
        points = [(x + rng.randint(-r, r), y + rng.randint(-r, r)) for _ in range(rng.randint(3, 6))]
        draw.polygon(points, outline=ink, width=rng.choice((4, 8, 12)))
    for shift in range(0, 900, 24):
        draw.line((shift, 1400, shift + 500, 2000), fill=(0, 0, 0), width=5)
    return big.resize(SIZE, Image.LANCZOS)


def noise(rng: random.Random) -> Image.Image:
    """Independent samples, Gaussian around gray."""
    values = np.random.default_rng(rng.randint(0, 2**31)).normal(128, 40, (SIZE[1], SIZE[0], 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def flat(rng: random.Random) -> Image.Image:
    """Four fields of one colour each."""
    page = Image.new("RGB", SIZE, (200, 30, 40))
    draw = ImageDraw.Draw(page)
    draw.rectangle((384, 0, 767, 255), fill=(250, 250, 250))
    draw.rectangle((0, 256, 383, 511), fill=(10, 12, 30))
    draw.rectangle((384, 256, 767, 511), fill=(60, 140, 90))
    return page


def night(rng: random.Random) -> Image.Image:
    """A dark sky, lights with halos, a sensor's noise."""
    page = Image.new("RGB", SIZE, (3, 4, 9))
    draw = ImageDraw.Draw(page)
    for y in range(SIZE[1]):
        draw.line((0, y, SIZE[0], y), fill=(2 + y // 60, 3 + y // 50, 8 + y // 28))
    for x in range(0, SIZE[0], 48):
        top = rng.randint(260, 420)
        draw.rectangle((x, top, x + 40, SIZE[1]), fill=(6, 6, 8))
        for window in range(top + 8, SIZE[1] - 8, 14):
            if rng.random() < 0.5:
                left = x + rng.choice((6, 18, 28))
                draw.rectangle((left, window, left + 6, window + 7), fill=(250, 200 + rng.randint(-40, 30), 120))
    for _ in range(120):
        draw.point((rng.randint(0, 767), rng.randint(0, 250)), fill=(rng.randint(90, 250),) * 3)
    glow = np.asarray(page.filter(ImageFilter.GaussianBlur(9)), np.float32)
    grain = np.random.default_rng(rng.randint(0, 2**31)).normal(0, 2.5, glow.shape)
    return Image.fromarray((np.asarray(page, np.float32) + 0.6 * glow + grain).clip(0, 255).astype(np.uint8))


def halftone(rng: random.Random) -> Image.Image:
    """A pale photograph in dots of black on white, few of which have a neighbour of their colour."""
    face = Image.fromarray(astronaut()).crop((0, 0, 512, 341)).resize(SIZE, Image.LANCZOS)
    return face.point(lambda value: value // 3 + 85).convert("1").convert("RGB")


def pictures() -> dict[str, Image.Image]:
    """Every kind, the same each time."""
    drawn = {"text": text, "line art": line_art, "noise": noise, "flat": flat, "night": night,
             "halftone": halftone}  # fmt: skip
    return {name: make(random.Random(1)) for name, make in drawn.items()} | {
        "screenshot": screenshot(7, 1).crop((0, 0, *SIZE))
    }


def coded(image: np.ndarray, name: str, lmbda: float) -> tuple[int, np.ndarray]:
    """Bytes of a file and the picture it decodes to."""
    data = codec.encode_picture(Picture(image, False), codec.EncodeSettings(codec=name, lmbda=lmbda)).data
    return len(data), codec.decode_picture(data).pixels


def jpeg(image: np.ndarray, quality: int, subsampling: int) -> tuple[int, np.ndarray]:
    """The same of a progressive, optimised JPEG; subsampling 0: colour at full resolution, 2: at half."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=quality, progressive=True, optimize=True, subsampling=subsampling)
    return file.tell(), np.asarray(Image.open(file))


def curve(points: list[tuple[int, np.ndarray]], image: np.ndarray) -> list[tuple[float, float]]:
    """(bpp, PSNR dB) of coded pictures."""
    return [(8 * size / image[..., 0].size, metrics.psnr_db(image, decoded)) for size, decoded in points]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--codecs", default="hyperprior-context")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    names = given.codecs.split(",")
    rows = []
    print("| kind | codec | bpp | PSNR dB | against progressive JPEG |\n|---|---|---|---|---:|")
    for kind, picture in pictures().items():
        picture.save(given.out / f"{kind.replace(' ', '-')}.png")
        image = np.asarray(picture)
        theirs = [curve([jpeg(image, quality, colour) for quality in JPEG_QUALITIES], image) for colour in (0, 2)]
        for number, name in enumerate(names):
            found = [coded(image, name, lmbda) for lmbda in LAMBDAS]
            ours = curve(found, image)
            ends = " ... ".join(f"{bpp:.3f}" for bpp, _ in (ours[0], ours[-1]))
            reached = " ... ".join(f"{db:.1f}" for _, db in (ours[0], ours[-1]))
            print(f"| {kind} | {name} | {ends} | {reached} | {against(ours, theirs)} |", flush=True)
            if not number:
                rows.append([image, found[1][1], found[4][1]])
    sheet = Image.new("RGB", (3 * CROP_PX, len(rows) * CROP_PX))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            part = image[160 : 160 + CROP_PX, 288 : 288 + CROP_PX]
            sheet.paste(Image.fromarray(np.ascontiguousarray(part)), (x * CROP_PX, y * CROP_PX))
    sheet.save(given.out / "crops.png")


def against(ours: list[tuple[float, float]], theirs: list[list[tuple[float, float]]]) -> str:
    """Bits at equal PSNR against the best of some curves, where the codec's points lie between the ends of one.

    A picture without loss counts as no better than the best that a curve with loss reaches, at the bits of that.
    """
    relative = []
    for bits, db in ours:
        there = [np.array(sorted(one, key=lambda p: p[1])).T for one in theirs]
        best = max((dbs[-1] for _, dbs in there if dbs[-1] < np.inf), default=0.0)
        at = best if np.isinf(db) else db
        reached = [np.interp(at, dbs, np.log(bpp)) for bpp, dbs in there if dbs[0] <= at <= dbs[-1] < np.inf]
        if reached:
            relative.append(bits / np.exp(min(reached)) - 1)
    if not relative:
        return "no PSNR in common"
    whole = sum(np.isinf(db) for _, db in ours)
    return (
        f"mean {100 * np.mean(relative):+.0f} %, worst {100 * max(relative):+.0f} % "
        f"({len(relative)} rates, {whole} without loss)"
    )


if __name__ == "__main__":
    main()
