"""Draw synthetic screenshots and documents: python experiments/screenshots.py OUT COUNT [SEED].

Windows, menus, text, tables, charts, icons, gradients; 1024 x 704 px PNG, a function of the seed and the number alone.
A special kind of picture for fine-tuning: train on one seed, measure on another with experiments/finetune_gain.py.
"""

import random
import sys
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

SIZE = (1024, 704)
FONTS = sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("DejaVu*.ttf"))
WORDS = (
    "file edit view insert format tools window help open save close print search replace total amount date name value "
    "report summary figure table section chapter result method data model error warning info settings account user "
    "password login logout next previous page of the and to in is that for it as was with be by on not he his but at"
).split()


def colour(rng: random.Random, low: int, high: int) -> tuple[int, int, int]:
    base = rng.randint(low, high)
    return tuple(max(0, min(255, base + rng.randint(-25, 25))) for _ in range(3))


def phrase(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count)).capitalize()


def paragraph(draw, rng, font, box, ink) -> None:
    left, top, right, bottom = box
    y = top
    while y + font.size < bottom:
        line = phrase(rng, rng.randint(3, 14))
        while draw.textlength(line, font=font) > right - left and " " in line:
            line = line.rsplit(" ", 1)[0]
        draw.text((left, y), line, fill=ink, font=font)
        y += int(font.size * 1.35)


def table(draw, rng, font, box, ink, rule) -> None:
    left, top, right, bottom = box
    columns, height = rng.randint(3, 7), int(font.size * 1.7)
    for row, y in enumerate(range(top, bottom - height, height)):
        if row % 2:
            draw.rectangle((left, y, right, y + height), fill=tuple(min(255, c + 12) for c in rule))
        for column in range(columns):
            x = left + column * (right - left) // columns
            text = phrase(rng, 1) if row == 0 or column == 0 else f"{rng.uniform(0, 9999):.2f}"
            draw.text((x + 4, y + 3), text, fill=ink, font=font)
        draw.line((left, y, right, y), fill=rule)


def chart(draw, rng, box, ink) -> None:
    left, top, right, bottom = box
    draw.line((left, top, left, bottom, right, bottom), fill=ink, width=1)
    for _ in range(rng.randint(1, 4)):
        line, y = colour(rng, 60, 200), rng.uniform(top, bottom)
        points = []
        for x in range(left, right, 6):
            y = max(top, min(bottom, y + rng.uniform(-9, 9)))
            points.append((x, y))
        draw.line(points, fill=line, width=rng.choice((1, 2, 3)))


def gradient(picture, rng, box) -> None:
    left, top, right, bottom = box
    first, last = colour(rng, 20, 230), colour(rng, 20, 230)
    for y in range(top, bottom):
        part = (y - top) / max(1, bottom - top)
        shade = tuple(round(a + (b - a) * part) for a, b in zip(first, last, strict=True))
        picture.paste(shade, (left, y, right, y + 1))


def icons(draw, rng, box) -> None:
    left, top, right, bottom = box
    for y in range(top, bottom - 28, 34):
        for x in range(left, right - 28, 34):
            shape, fill = rng.choice(("rectangle", "ellipse", "polygon")), colour(rng, 40, 220)
            if shape == "polygon":
                draw.polygon([(x, y + 24), (x + 12, y), (x + 24, y + 24)], fill=fill)
            else:
                getattr(draw, shape)((x, y, x + 24, y + 24), fill=fill)


def window(picture, draw, rng, box, dark: bool) -> None:
    left, top, right, bottom = box
    paper, ink = (colour(rng, 15, 45), colour(rng, 190, 240)) if dark else (colour(rng, 240, 255), colour(rng, 0, 60))
    draw.rectangle(box, fill=paper, outline=colour(rng, 90, 160))
    bar = colour(rng, 30, 120) if dark else colour(rng, 150, 230)
    draw.rectangle((left + 1, top + 1, right - 1, top + 24), fill=bar)
    title = ImageFont.truetype(str(rng.choice(FONTS)), 13)
    draw.text((left + 8, top + 5), phrase(rng, 3), fill=ink, font=title)
    font = ImageFont.truetype(str(rng.choice(FONTS)), rng.choice((10, 11, 12, 13, 14, 16, 20)))
    x = left + 8
    while x < right - 120:
        width = rng.randint(120, max(121, min(420, right - x - 8)))
        inner = (x, top + 34, min(right - 8, x + width), bottom - 8)
        what = rng.choice(("paragraph", "paragraph", "paragraph", "table", "table", "chart", "gradient", "icons"))
        if what == "paragraph":
            paragraph(draw, rng, font, inner, ink)
        elif what == "table":
            table(draw, rng, font, inner, ink, colour(rng, 50, 80) if dark else colour(rng, 200, 235))
        elif what == "chart":
            chart(draw, rng, inner, ink)
        elif what == "gradient":
            gradient(picture, rng, inner)
        else:
            icons(draw, rng, inner)
        x += width + 12


def screenshot(seed: int, number: int) -> Image.Image:
    """One picture, RGB."""
    rng = random.Random(1_000_003 * seed + number)
    picture = Image.new("RGB", SIZE, colour(rng, 60, 220))
    draw = ImageDraw.Draw(picture)
    if rng.random() < 0.3:
        gradient(picture, rng, (0, 0, *SIZE))
    for _ in range(rng.randint(1, 4)):
        left, top = rng.randint(0, 300), rng.randint(0, 220)
        right, bottom = rng.randint(left + 380, SIZE[0] - 1), rng.randint(top + 260, SIZE[1] - 1)
        window(picture, draw, rng, (left, top, right, bottom), rng.random() < 0.35)
    return picture


def main(out: str, count: int, seed: int = 0) -> None:
    """Write COUNT pictures."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        screenshot(seed, number).save(folder / f"screen-{seed}-{number:04}.png")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
