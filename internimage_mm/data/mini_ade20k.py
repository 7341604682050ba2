"""mini_ade20k: a drawn semantic segmentation data set in ADE20K folder format."""

from pathlib import Path

import numpy as np

from .drawing import (
    clutter_outlines,
    coverage,
    drop_hidden,
    fill,
    finish,
    paint,
    random_colour,
    random_outline,
)
from .storage import Images, write_dataset, write_image

MINI_ADE20K_CLASSES = ('wall', 'sky', 'ground', 'water', 'circle', 'square', 'triangle', 'star')
MINI_ADE20K_PALETTE = (
    (120, 120, 120),
    (6, 230, 230),
    (140, 100, 50),
    (30, 80, 220),
    (220, 20, 60),
    (255, 200, 25),
    (60, 180, 75),
    (145, 30, 180),
)

# Pattern, and smallest and largest B, G, R of the first colour. Those of the regions
# overlap; those of the shapes do not, so colour tells the shapes apart: minutes of training
# on a CPU do not suffice for outline and pattern alone.
_REGIONS = {
    'wall': ('bricks', (40, 40, 90), (180, 180, 225)),
    'sky': ('clouds', (120, 90, 50), (225, 225, 200)),
    'ground': ('speckle', (30, 70, 40), (130, 200, 180)),
    'water': ('waves', (90, 50, 30), (225, 180, 120)),
}
_SHAPES = {
    'circle': ('dots', (30, 30, 150), (100, 120, 225)),
    'square': ('checker', (30, 140, 150), (100, 225, 225)),
    'triangle': ('stripes', (30, 150, 30), (110, 225, 110)),
    'star': ('plain', (140, 30, 140), (225, 110, 225)),
}
_FOLDERS = {'train': 'training', 'val': 'validation'}


def make_mini_ade20k(
    root: str | Path,
    num_train: int = 1600,
    num_val: int = 100,
    seed: int = 0,
    *,
    overwrite: bool = False,
    show_progress: bool = False,
) -> bool:
    """Draws a semantic segmentation data set in ADE20K folder format.

    Images are 128 to 144 pixels high and wide: textured sky, wall, ground and water regions, 1 to 4
    shapes of 36 to 72 pixels in diameter that may overlap, and lines and blobs that belong to no
    class.

    Files: ``images/{training,validation}/*.jpg``, ``annotations/{training,validation}/*.png``
    (uint8, 0 for pixels that belong to no class, else 1 + index into ``MINI_ADE20K_CLASSES``:
    ``reduce_zero_label=True``) and ``mini_dataset.json`` with the settings.

    Arguments, result and errors are those of :func:`.storage.write_dataset`.
    """
    return write_dataset(
        root, 'mini_ade20k', _write_split, num_train, num_val, seed, overwrite, show_progress
    )


def _write_split(folder: Path, split: str, numbered: Images) -> None:
    images = folder / 'images' / _FOLDERS[split]
    annotations = folder / 'annotations' / _FOLDERS[split]
    images.mkdir(parents=True)
    annotations.mkdir(parents=True)
    for index, rng in numbered:
        image, labels = _draw(rng)
        write_image(images / f'{index:06d}.jpg', image)
        write_image(annotations / f'{index:06d}.png', labels)


def _draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One image, uint8 (h, w, 3), and its label map, uint8 (h, w)."""
    height, width = rng.integers(128, 145, size=2).tolist()
    hw = height, width
    picture = np.zeros((*hw, 3), np.float32)
    labels = np.zeros(hw, np.uint8)
    colours: list[np.ndarray] = []
    for name, outline in _region_outlines(rng, hw):
        pattern, low, high = _REGIONS[name]
        colours.append(random_colour(rng, (low, high), avoid=colours, distance=60))
        contrast = (20, 45) if name == 'sky' else (60, 100)
        region = fill(rng, pattern, colours[-1], hw, contrast)
        paint(picture, labels, coverage([outline], hw), region, _label(name))
    lines, blobs = int(rng.integers(1, 3)), int(rng.integers(1, 4))
    for outline in clutter_outlines(rng, hw, lines, blobs):
        paint(
            picture,
            labels,
            coverage([outline], hw),
            random_colour(rng, avoid=colours, distance=100),
            0,
        )

    names = rng.choice(list(_SHAPES), size=rng.integers(1, 5)).tolist()
    coverages = [coverage(random_outline(rng, name, (36, 72), hw), hw) for name in names]
    for index in drop_hidden(coverages, min_visible=0.4):
        name = names[index]
        pattern, low, high = _SHAPES[name]
        colours.append(random_colour(rng, (low, high), avoid=colours, distance=60))
        shape = fill(rng, pattern, colours[-1], hw, contrast=(60, 100))
        paint(picture, labels, coverages[index], shape, _label(name))
    return finish(rng, picture), labels


def _label(name: str) -> int:
    return MINI_ADE20K_CLASSES.index(name) + 1


def _region_outlines(rng: np.random.Generator, hw: tuple[int, int]) -> list[tuple[str, np.ndarray]]:
    """Names and outlines of the regions, back to front; together they fill the image."""
    height, width = hw
    horizon = rng.uniform(0.35, 0.6) * height
    regions = [('sky', _below(np.zeros(2), hw))]
    if rng.random() < 0.75:
        left, top = rng.uniform(-0.1, 0.5) * width, rng.uniform(-0.2, 0.5) * horizon
        right = left + rng.uniform(0.4, 1.2) * width
        regions.append(
            ('wall', np.array([[left, top], [right, top], [right, height], [left, height]]))
        )
    regions.append(('ground', _below(horizon + rng.uniform(-0.06, 0.06, size=2) * height, hw)))
    if rng.random() < 0.6:
        shore = horizon + rng.uniform(0.25, 0.75) * (height - horizon)
        regions.append(
            ('water', _below(shore + rng.uniform(-0.12, 0.12, size=6) * (height - horizon), hw))
        )
    return regions


def _below(heights: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Outline of everything below a polyline over the whole width."""
    height, width = hw
    line = np.stack([np.linspace(0, width, len(heights)), heights], axis=1)
    return np.concatenate([line, [[width, height], [0, height]]])
