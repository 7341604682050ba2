"""Generated mini data sets in real formats, small enough to train on from scratch in minutes."""

from .mini_ade20k import MINI_ADE20K_CLASSES, MINI_ADE20K_PALETTE, make_mini_ade20k
from .mini_coco import MINI_COCO_CLASSES, MINI_COCO_PALETTE, make_mini_coco
from .mini_imagenet import MINI_IMAGENET_CLASSES, make_mini_imagenet

__all__ = [
    'MINI_ADE20K_CLASSES',
    'MINI_ADE20K_PALETTE',
    'MINI_COCO_CLASSES',
    'MINI_COCO_PALETTE',
    'MINI_IMAGENET_CLASSES',
    'make_mini_ade20k',
    'make_mini_coco',
    'make_mini_imagenet',
]
