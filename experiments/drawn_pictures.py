"""Draw pictures that are not photographs, to train on.

python experiments/drawn_pictures.py OUT COUNT [SEED] [--smooth]

In turn a screenshot (screenshots.py), a page of type, fields of flat colour, and a drawing; 1024 x 704 px PNG, a
function of the seed and the number alone. Their own generators: experiments/content_types.py measures on
others. With --smooth skies and walls instead: nothing but slow gradients and grain, which crops of photographs
seldom are as a whole.
"""

import math
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from screenshots import FONTS, SIZE, phrase, screenshot

OVER = 3  # drawings are made so many times larger


def any_colour(rng: random.Random) -> tuple[int, int, int]:
    """Black, white, a gray or anything."""
    gray = rng.choice((0, 255, rng.randint(0, 255)))
    return rng.choice(((gray,) * 3, tuple(rng.randint(0, 255) for _ in range(3))))


def type_page(rng: random.Random) -> Image.Image:
    """Blocks of text, each with its own face, size, leading, paper and ink."""
    page = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(page)
    columns, y = rng.randint(1, 3), [0, 0, 0]
    width = SIZE[0] // columns
    for column in range(columns):
        while y[column] < SIZE[1]:
            height = rng.randint(60, 300)
            ink, paper = ((0, 0, 0), (255, 255, 255)) if rng.random() < 0.5 else (any_colour(rng), any_colour(rng))
            box = (column * width, y[column], (column + 1) * width - 1, y[column] + height)
            draw.rectangle(box, fill=paper)
            font = ImageFont.truetype(str(rng.choice(FONTS)), round(math.exp(rng.uniform(math.log(8), math.log(60)))))
            line = y[column] + rng.randint(2, 12)
            while line + font.size < box[3]:
                draw.text((box[0] + rng.randint(2, 24), line), phrase(rng, rng.randint(1, 24)), fill=ink, font=font)
                line += round(font.size * rng.uniform(1.0, 1.6))
            y[column] += height
        if column + 1 < columns:
            draw.rectangle(((column + 1) * width, 0, SIZE[0], SIZE[1]), fill=(255, 255, 255))
    return page


def fields(rng: random.Random) -> Image.Image:
    """Large shapes of one colour each, some of them of a slow gradient, on one colour."""
    page = Image.new("RGB", SIZE, any_colour(rng))
    for _ in range(rng.randint(1, 9)):
        left, top = rng.randint(-200, SIZE[0]), rng.randint(-200, SIZE[1])
        width, height = rng.randint(40, 700), rng.randint(40, 500)
        mask = Image.new("L", (width, height))
        draw = ImageDraw.Draw(mask)
        shape = rng.choice(("rectangle", "rectangle", "rectangle", "ellipse", "polygon"))
        if shape == "polygon":
            draw.polygon([(rng.randint(0, width), rng.randint(0, height)) for _ in range(rng.randint(3, 6))], fill=255)
        else:
            getattr(draw, shape)((0, 0, width - 1, height - 1), fill=255)
        fill = Image.new("RGB", (width, height), any_colour(rng))
        if rng.random() < 0.25:
            ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize((width, height))
            fill = Image.composite(fill, Image.new("RGB", (width, height), any_colour(rng)), ramp)
        page.paste(fill, (left, top), mask)
    return page


def drawing(rng: random.Random) -> Image.Image:
    """Wavy lines, arcs, hatching and dots of several widths, smoothed."""
    big = Image.new("RGB", (OVER * SIZE[0], OVER * SIZE[1]), any_colour(rng) if rng.random() < 0.4 else "white")
    draw = ImageDraw.Draw(big)
    for _ in range(rng.randint(10, 90)):
        ink = (0, 0, 0) if rng.random() < 0.6 else any_colour(rng)
        x, y, reach = rng.randint(0, big.width), rng.randint(0, big.height), rng.randint(30, 900)
        width, kind = rng.choice((2, 3, 4, 6, 9, 15)), rng.randrange(4)
        if kind == 0:
            angle, points = rng.uniform(0, 6.3), []
            for _ in range(rng.randint(4, 60)):
                angle += rng.gauss(0, 0.4)
                x, y = x + 0.1 * reach * math.cos(angle), y + 0.1 * reach * math.sin(angle)
                points.append((x, y))
            draw.line(points, fill=ink, width=width, joint="curve")
        elif kind == 1:
            start = rng.randint(0, 360)
            box = (x, y, x + rng.randint(30, 2 * reach), y + rng.randint(30, 2 * reach))
            draw.arc(box, start, start + rng.randint(40, 360), fill=ink, width=width)
        elif kind == 2:
            angle, gap = rng.uniform(0, 3.2), rng.randint(8, 40)
            across, along = (-math.sin(angle), math.cos(angle)), (reach * math.cos(angle), reach * math.sin(angle))
            for n in range(rng.randint(3, 30)):
                a, b = x + n * gap * across[0], y + n * gap * across[1]
                draw.line((a, b, a + along[0], b + along[1]), fill=ink, width=min(width, 6))
        else:
            for _ in range(rng.randint(3, 40)):
                a, b, r = rng.gauss(x, reach / 3), rng.gauss(y, reach / 3), rng.uniform(2, 20)
                draw.ellipse((a - r, b - r, a + r, b + r), fill=ink)
    return big.resize(SIZE, Image.LANCZOS)


def sky(rng: random.Random) -> Image.Image:
    """A few colours near each other, blurred into one another, bright more often than dark; grain in two of three."""
    grain = np.random.Generator(np.random.PCG64(rng.getrandbits(64)))
    shape = (rng.randint(2, 4), rng.randint(2, 5))
    level = 255 * (1 - rng.random() ** 2) if rng.random() < 0.7 else rng.uniform(0, 255)
    tint, sway = grain.normal(0, rng.choice((2, 12, 40)), 3), rng.choice((1, 6, 20, 50))
    coarse = level + tint + grain.normal(0, sway, (*shape, 1)) + grain.normal(0, sway / 4, (*shape, 3))
    planes = [Image.fromarray(coarse[..., i].astype(np.float32)).resize(SIZE, Image.BICUBIC) for i in range(3)]
    colour = np.stack([np.asarray(plane) for plane in planes], -1)
    if rng.random() < 0.67:
        amount, gray = rng.uniform(0.3, 4), rng.random() < 0.5
        colour = colour + grain.normal(0, amount, (*colour.shape[:2], 1 if gray else 3))
    return Image.fromarray(colour.clip(0, 255).round().astype(np.uint8))


def main(out: str, count: int, seed: int = 0, smooth: bool = False) -> None:
    """Write COUNT pictures."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = random.Random(7_000_003 * seed + number)
        if smooth:
            sky(rng).save(folder / f"sky-{seed}-{number:04}.png")
            continue
        kind = number % 4
        picture = screenshot(seed, number) if kind == 0 else (type_page, fields, drawing)[kind - 1](rng)
        picture.save(folder / f"drawn-{seed}-{number:04}.png")


if __name__ == "__main__":
    given = [word for word in sys.argv[1:] if word != "--smooth"]
    main(given[0], *map(int, given[1:]), smooth="--smooth" in sys.argv)
