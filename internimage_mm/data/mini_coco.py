"""mini_coco: a drawn instance segmentation data set in COCO format."""

import json
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

MINI_COCO_CLASSES = ('circle', 'square', 'triangle', 'star', 'ring', 'cross')
MINI_COCO_PALETTE = (
    (220, 20, 60),
    (0, 130, 200),
    (60, 180, 75),
    (255, 200, 25),
    (145, 30, 180),
    (245, 130, 48),
)

_BACKGROUNDS = ('plain', 'gradient', 'clouds', 'stripes')
# Channel values; shapes tend to be brighter than the background, clutter is either.
_BACKGROUND_SPAN = (20, 130)
_SHAPE_SPAN = (110, 240)
_FILLS = ('plain', 'gradient', 'stripes', 'checker', 'dots', 'clouds')


def make_mini_coco(
    root: str | Path,
    num_train: int = 1600,
    num_val: int = 100,
    seed: int = 0,
    *,
    overwrite: bool = False,
    show_progress: bool = False,
) -> bool:
    """Draws an instance segmentation data set in COCO format.

    Images are 160 to 192 pixels high and wide and show 1 to 5 shapes of ``MINI_COCO_CLASSES``, 30
    to 84 pixels in diameter, that may overlap, before a darker patterned background with lines and
    blobs that have no annotation. Colours and patterns do not depend on the class.

    Files: ``annotations/instances_{train,val}.json`` (category ids from 1 in the order of
    ``MINI_COCO_CLASSES``; the visible part of each shape as compressed RLE, from which ``area`` and
    ``bbox`` are computed), ``{train,val}/*.jpg`` and ``mini_dataset.json`` with the settings.

    Arguments, result and errors are those of :func:`.storage.write_dataset`.
    """
    return write_dataset(
        root, 'mini_coco', _write_split, num_train, num_val, seed, overwrite, show_progress
    )


def _write_split(folder: Path, split: str, numbered: Images) -> None:
    from pycocotools import mask as mask_api

    (folder / split).mkdir()
    (folder / 'annotations').mkdir(exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for index, rng in numbered:
        image, instances, categories = _draw(rng)
        file_name = f'{index:06d}.jpg'
        write_image(folder / split / file_name, image)
        height, width = instances.shape
        images.append({'id': index + 1, 'file_name': file_name, 'height': height, 'width': width})
        for instance, category in enumerate(categories, start=1):
            rle = mask_api.encode(np.asfortranarray(instances == instance, dtype=np.uint8))
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': index + 1,
                    'category_id': category + 1,
                    'segmentation': {'size': rle['size'], 'counts': rle['counts'].decode('ascii')},
                    'area': int(mask_api.area(rle)),
                    'bbox': mask_api.toBbox(rle).tolist(),
                    'iscrowd': 0,
                }
            )
    content = {
        'info': {'description': f'mini_coco {split}, drawn by internimage-mm'},
        'licenses': [],
        'categories': [
            {'id': i, 'name': name, 'supercategory': 'shape'}
            for i, name in enumerate(MINI_COCO_CLASSES, 1)
        ],
        'images': images,
        'annotations': annotations,
    }
    (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def _draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """One image, its instance map (0: background) and the class index of instances 1, 2, ..."""
    height, width = rng.integers(160, 193, size=2).tolist()
    hw = height, width
    background = random_colour(rng, _BACKGROUND_SPAN)
    picture = fill(rng, rng.choice(_BACKGROUNDS), background, hw, contrast=(20, 50))
    instances = np.zeros(hw, np.int32)
    lines, blobs = int(rng.integers(1, 6)), int(rng.integers(2, 9))
    for outline in clutter_outlines(rng, hw, lines, blobs):
        paint(picture, instances, coverage([outline], hw), random_colour(rng), 0)

    categories = rng.integers(len(MINI_COCO_CLASSES), size=rng.integers(2, 6)).tolist()
    coverages = [
        coverage(random_outline(rng, MINI_COCO_CLASSES[category], (30, 84), hw), hw)
        for category in categories
    ]
    kept = drop_hidden(coverages, min_visible=0.4)
    colours = [background]
    for instance, index in enumerate(kept, start=1):
        colours.append(random_colour(rng, _SHAPE_SPAN, avoid=colours))
        colour = fill(rng, rng.choice(_FILLS), colours[-1], hw, contrast=(20, 50))
        paint(picture, instances, coverages[index], colour, instance)
    return finish(rng, picture), instances, [categories[index] for index in kept]
