"""InternImage for mmdet 3.x, mmseg 1.x and mmpretrain 1.x.

Importing the package registers the backbones ``InternImage`` and ``CBInternImage`` and the optimizer
constructor ``CustomLayerDecayOptimizerConstructor`` in mmengine's root registries.
"""

from . import compat

compat.apply()

from .backbones import CBInternImage, InternImage  # noqa: E402  after compat
from .optim import CustomLayerDecayOptimizerConstructor  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = ['CBInternImage', 'CustomLayerDecayOptimizerConstructor', 'InternImage', '__version__']
