"""Extracts the sprites of the world from the Noto Color Emoji font (Debian: fonts-noto-color-emoji, Apache-2.0 / OFL).

    python sprites.py /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf sprites.npy

Writes [objects, 64, 64, 4] uint8, premultiplied RGBA, in the order of world.OBJECTS.
"""

import io
import sys

import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image
from world import OBJECTS

SIZE = 64


def sprite(font: TTFont, codepoint: int) -> np.ndarray:
    """One glyph's colour bitmap, centred on a square and reduced to SIZE pixels: [SIZE, SIZE, 4], premultiplied."""
    glyph = font.getBestCmap()[codepoint]
    png = font["CBDT"].strikeData[0][glyph].imageData
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    pixels = np.asarray(square, np.float32) / 255
    pixels[..., :3] *= pixels[..., 3:]
    planes = [Image.fromarray(pixels[..., c]).resize((SIZE, SIZE), Image.Resampling.BOX) for c in range(4)]
    return np.clip(np.stack([np.asarray(p) for p in planes], -1) * 255 + 0.5, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    ttf = TTFont(sys.argv[1])
    np.save(sys.argv[2], np.stack([sprite(ttf, codepoint) for _, codepoint in OBJECTS]))
