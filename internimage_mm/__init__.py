"""InternImage for mmdet 3.x, mmseg 1.x and mmpretrain 1.x.

Importing the package registers the backbones ``InternImage`` and ``CBInternImage``, the two
layer-decay optimizer constructors and the schedule ``WarmupCosineLR`` in mmengine's root
registries, and lets the stock loading functions and inferencers read official checkpoints.
"""

from . import compat

compat.apply()

from .backbones import CBInternImage, InternImage  # noqa: E402  after compat
from .checkpoint import support_stock_loading  # noqa: E402
from .optim import (  # noqa: E402
    ClassificationLayerDecayOptimizerConstructor,
    CustomLayerDecayOptimizerConstructor,
    WarmupCosineLR,
)
from .version import __version__  # noqa: E402
from .zoo import config_path  # noqa: E402

support_stock_loading(InternImage, CBInternImage)

__all__ = [
    'CBInternImage',
    'ClassificationLayerDecayOptimizerConstructor',
    'CustomLayerDecayOptimizerConstructor',
    'InternImage',
    'WarmupCosineLR',
    '__version__',
    'config_path',
]
