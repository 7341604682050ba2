"""mini_imagenet: a drawn classification data set in the folders of ImageNet."""

from pathlib import Path

import numpy as np

from .drawing import (
    SHAPES,
    clutter_outlines,
    coverage,
    fill,
    finish,
    paint,
    random_colour,
    random_outline,
)
from .storage import Images, write_dataset, write_image

MINI_IMAGENET_CLASSES = tuple(sorted(SHAPES))
"""In the order of the sorted folder names, as ImageNet numbers its classes."""

_FILLS = ('plain', 'gradient')


def make_mini_imagenet(
    root: str | Path,
    num_train: int = 1600,
    num_val: int = 100,
    seed: int = 0,
    *,
    overwrite: bool = False,
    show_progress: bool = False,
) -> bool:
    """Draws an image classification data set in the folders of ImageNet.

    Images are 64 to 80 pixels high and wide and show one shape of ``MINI_IMAGENET_CLASSES``, 40 to
    60 pixels in diameter, before a smooth background with a few lines and blobs. Colours do not
    depend on the class.

    Files: ``{train,val}/<class>/*.jpg``, the classes in turns, and ``mini_dataset.json``
    with the settings.

    Arguments, result and errors are those of :func:`.storage.write_dataset`.
    """
    return write_dataset(
        root, 'mini_imagenet', _write_split, num_train, num_val, seed, overwrite, show_progress
    )


def _write_split(folder: Path, split: str, numbered: Images) -> None:
    # All folders, for a class without images is a class nevertheless.
    for name in MINI_IMAGENET_CLASSES:
        (folder / split / name).mkdir(parents=True)
    for index, rng in numbered:
        name = MINI_IMAGENET_CLASSES[index % len(MINI_IMAGENET_CLASSES)]
        write_image(folder / split / name / f'{index:06d}.jpg', _draw(rng, name))


def _draw(rng: np.random.Generator, shape: str) -> np.ndarray:
    """One image, uint8 (h, w, 3)."""
    height, width = rng.integers(64, 81, size=2).tolist()
    hw = height, width
    background = random_colour(rng)
    picture = fill(rng, rng.choice(_FILLS), background, hw, contrast=(10, 30))
    ignored = np.zeros(hw, np.int32)
    lines, blobs = int(rng.integers(0, 3)), int(rng.integers(0, 3))
    for outline in clutter_outlines(rng, hw, lines, blobs):
        paint(picture, ignored, coverage([outline], hw), random_colour(rng), 0)
    colour = random_colour(rng, avoid=[background], distance=120)
    filling = fill(rng, rng.choice(_FILLS), colour, hw, contrast=(10, 30))
    paint(picture, ignored, coverage(random_outline(rng, shape, (40, 60), hw), hw), filling, 0)
    return finish(rng, picture)
