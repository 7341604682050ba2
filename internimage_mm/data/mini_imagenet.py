"""mini_imagenet: a drawn classification data set in the folders of ImageNet."""

from pathlib import Path

import numpy as np
from rich.progress import track

from .drawing import (
    SHAPES,
    clutter_outlines,
    coverage,
    fill,
    finish,
    image_rng,
    paint,
    random_colour,
    random_outline,
)
from .storage import write_dataset, write_image

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
    depend on the class. The same arguments give the same bytes with the same numpy and
    OpenCV, and an image does not depend on how many there are.

    Files: ``{train,val}/<class>/*.jpg`` and ``mini_dataset.json`` with the settings.

    Args:
        root: Folder of the data set. It appears when the data set is complete.
        num_train: Number of training images, at least 1. The classes take turns.
        num_val: Number of validation images, at least 1.
        seed: Seed, at least 0. Both splits are drawn from it and never share an image.
        overwrite: Replace a generated data set with other settings in ``root``.
        show_progress: Show a progress bar.

    Returns:
        True if the data set was written, False if ``root`` already holds one with these settings.

    Raises:
        TypeError: A number is not an int.
        ValueError: A number of images is below 1 or the seed is negative.
        FileExistsError: ``root`` holds a data set with other settings and ``overwrite`` is False,
            or something that is not a generated data set, which is never overwritten.
    """

    def write(folder: Path) -> None:
        for split, count in (('train', num_train), ('val', num_val)):
            # All folders, for a class without images is a class nevertheless.
            for name in MINI_IMAGENET_CLASSES:
                (folder / split / name).mkdir(parents=True)
            for index in track(range(count), f'mini_imagenet {split}', disable=not show_progress):
                name = MINI_IMAGENET_CLASSES[index % len(MINI_IMAGENET_CLASSES)]
                image = _draw(image_rng(seed, split, index), name)
                write_image(folder / split / name / f'{index:06d}.jpg', image)

    return write_dataset(
        root,
        'mini_imagenet',
        write,
        num_train=num_train,
        num_val=num_val,
        seed=seed,
        overwrite=overwrite,
    )


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
