"""InternImage for mmdet 3.x, mmseg 1.x and mmpretrain 1.x.

Importing the package registers the backbones ``InternImage`` and ``CBInternImage``, the two
layer-decay optimizer constructors and the schedule ``WarmupCosineLR`` in mmengine's root registries.
"""

from . import compat

compat.apply()

from .backbones import CBInternImage, InternImage  # noqa: E402  after compat
from .optim import (  # noqa: E402
    ClassificationLayerDecayOptimizerConstructor,
    CustomLayerDecayOptimizerConstructor,
    WarmupCosineLR,
)
from .version import __version__  # noqa: E402

__all__ = [
    'CBInternImage',
    'ClassificationLayerDecayOptimizerConstructor',
    'CustomLayerDecayOptimizerConstructor',
    'InternImage',
    'WarmupCosineLR',
    '__version__',
]
