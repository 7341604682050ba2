"""What mmpretrain needs besides backbone and necks: iNaturalist 2018 and its classifier."""

import internimage_mm  # noqa: F401  prepares torchvision, which mmpretrain imports
from internimage_mm.backbones import AttentionPoolingNeck, ConvPoolingNeck

from .heads import MetadataLinearClsHead
from .inaturalist import INaturalist2018
from .inference import classify_image

__all__ = [
    'AttentionPoolingNeck',
    'ConvPoolingNeck',
    'INaturalist2018',
    'MetadataLinearClsHead',
    'classify_image',
]
