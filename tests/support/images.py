"""Synthetic images for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

LABELS = ("disc", "bar", "ring")


def draw_images(folder: Path, count: int = 60, side: int = 24, levels: int = 60) -> None:
    """Draw discs, bars and rings on noise of ``levels`` grey levels, in one folder per label."""
    rng = np.random.default_rng(7)
    for number in range(count):
        label = LABELS[number % len(LABELS)]
        noise = rng.integers(0, levels, (side, side, 1), dtype=np.uint8)
        image = Image.fromarray(np.repeat(noise, 3, axis=2))
        canvas = ImageDraw.Draw(image)
        x, y = (int(value) for value in rng.integers(side // 12, side // 4, 2))
        if label == "disc":
            canvas.ellipse((x, y, x + side // 2, y + side // 2), fill=(230, 40, 40))
        elif label == "bar":
            canvas.rectangle((x, y, x + side // 6, y + side // 2), fill=(40, 230, 40))
        else:
            canvas.ellipse((x, y, x + side // 2, y + side // 2), outline=(40, 40, 230), width=side // 12)
        file = folder / label / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)


def hold_later(image: Path) -> None:
    """Mark a PNG file so that `Planted` blocks its decoding."""
    text = PngInfo()
    text.add_text("Comment", "held")
    with Image.open(image) as picture:
        picture.load()
    picture.save(image, pnginfo=text)
