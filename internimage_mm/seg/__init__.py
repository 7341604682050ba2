"""What mmseg lacks for the official InternImage segmentation models.

Importing registers everything in mmengine's root registries; the configs do so by
``custom_imports``.
"""

from .cityscapes_submission import CityscapesSubmission
from .datasets import MapillaryCityscapesDataset, NYUDepthV2Dataset
from .mask2former import SemanticMask2FormerHead
from .transforms import MapillaryToCityscapes
from .tta import MeanSoftmaxSegTTA

__all__ = [
    'CityscapesSubmission',
    'MapillaryCityscapesDataset',
    'MapillaryToCityscapes',
    'MeanSoftmaxSegTTA',
    'NYUDepthV2Dataset',
    'SemanticMask2FormerHead',
]
