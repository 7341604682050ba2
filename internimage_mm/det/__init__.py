"""What mmdet needs beyond a backbone: DINO and CB-DINO as the official release computes them,
testing with augmentation, and VOC's submissions.

Import it (``custom_imports``) to register its classes in mmengine's root registry.
"""

from ..compat import let_lvis_evaluate
from .cb_dino import CBDINO, CBChannelMapper, CBDINOHead
from .dino import InternImageDINO, InternImageDINOHead
from .tta import FusedDetTTA
from .voc_submission import VOCSubmission, VOCTestImages

let_lvis_evaluate()

__all__ = [
    'CBDINO',
    'CBChannelMapper',
    'CBDINOHead',
    'FusedDetTTA',
    'InternImageDINO',
    'InternImageDINOHead',
    'VOCSubmission',
    'VOCTestImages',
]
