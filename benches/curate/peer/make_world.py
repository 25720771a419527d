#!/usr/bin/env python3
"""Makes what both programs download: 960 synthetic photographs of 1.6 to 6 megapixels and a table of them.

    make_world.py FOLDER [COUNT]        (numpy, Pillow, pyarrow; seeded, 3 minutes on one core)

1/f noise as photographs have it, as soft at single pixels as a lens and a colour filter leave them, in three correlated
channels, with edges, cut, mirrored and tinted differently for each image. JPEG at quality 78 to 94, about 2 bits a
pixel: four in five baseline, one in five progressive, one in ten with full chroma, as sites serve them.
"""
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

HOST = "http://127.0.0.1:18600"
WIDE, HIGH = 3072, 2304


def field(rng):
    """Noise whose amplitude falls with its frequency, to a tenth of that at the finest, about 0, of deviation 1."""
    y, x = np.fft.fftfreq(HIGH)[:, None], np.fft.rfftfreq(WIDE)[None, :]
    radius = np.hypot(x, y)
    radius[0, 0] = 1.0
    spectrum = np.exp(2j * np.pi * rng.random(radius.shape, dtype=np.float32)) / radius**1.1
    spectrum *= np.exp(-((radius / 0.33) ** 2))
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=(HIGH, WIDE)).astype(np.float32)
    return noise / noise.std()


def scene(rng):
    """A luminance of noise and of discs with hard edges, and two slower colour differences."""
    y, x = np.mgrid[0:HIGH, 0:WIDE].astype(np.float32)
    luminance = 118 + 42 * field(rng)
    for _ in range(12):
        cx, cy, r = rng.uniform(0, WIDE), rng.uniform(0, HIGH), rng.uniform(60, 500)
        luminance[(x - cx) ** 2 + (y - cy) ** 2 < r**2] += rng.uniform(-50, 50)
    warm, green = 16 * field(rng), 10 * field(rng)
    channels = np.stack([luminance + warm, luminance + green, luminance - warm], -1)
    return channels.clip(0, 255).astype(np.uint8)


def main(folder, count):
    rng = np.random.default_rng(20261124)
    images = folder / "www"
    images.mkdir(parents=True, exist_ok=True)
    scenes = [scene(rng) for _ in range(16)]
    rows = []
    for i in range(count):
        megapixels = rng.uniform(1.6, 6.0)
        ratio = rng.choice([1.0, 4 / 3, 3 / 2, 3 / 4])
        width = min(int((megapixels * 1e6 * ratio) ** 0.5), WIDE)
        height = min(int(width / ratio), HIGH)
        left, top = rng.integers(0, WIDE - width + 1), rng.integers(0, HIGH - height + 1)
        cut = scenes[i % len(scenes)][top : top + height, left : left + width]
        if rng.random() < 0.5:
            cut = cut[:, ::-1]
        tint = rng.uniform(0.75, 1.1, 3)
        image = Image.fromarray((cut * tint).clip(0, 255).astype(np.uint8))
        image.save(
            images / f"{i}.jpg",
            quality=int(rng.integers(78, 95)),
            progressive=i % 5 == 4,
            subsampling=0 if i % 10 == 3 else 2,
        )
        rows.append((f"{HOST}/{i}.jpg", f"photograph number {i} of a field of noise", width, height))
    url, text, width, height = zip(*rows)
    pq.write_table(pa.table({"URL": url, "TEXT": text, "WIDTH": width, "HEIGHT": height}), folder / "table.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 960)
