"""What mmpretrain needs besides the backbone: necks and a head of the official classifiers, and
iNaturalist 2018."""

import internimage_mm  # noqa: F401  prepares torchvision, which mmpretrain imports

from .heads import MetadataLinearClsHead
from .inaturalist import INaturalist2018
from .inference import classify_image
from .necks import AttentionPoolingNeck, ConvPoolingNeck

__all__ = [
    'AttentionPoolingNeck',
    'ConvPoolingNeck',
    'INaturalist2018',
    'MetadataLinearClsHead',
    'classify_image',
]
