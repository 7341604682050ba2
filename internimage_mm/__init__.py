"""InternImage for mmdet 3.x, mmseg 1.x and mmpretrain 1.x.

``create_model`` builds it for any PyTorch program, and needs nothing but PyTorch.

Importing the package registers the backbones ``InternImage`` and ``CBInternImage``, the two
layer-decay optimizer constructors, the schedule ``WarmupCosineLR`` and loaders of checkpoints
(:mod:`internimage_mm.checkpoint.stock_loading`) with mmengine. Without mmengine there are
``create_model`` and the backbones; without PyTorch, ``internimage_mm.deploy``.
"""

from .shipped_configs import config_path
from .version import __version__

try:
    from . import compat

    compat.define_torchvision_schemas()
    from .engine import MMENGINE_ERROR as _missing
except Exception as error:  # a broken installation may raise anything
    _missing = error
else:
    from .backbones import CBInternImage, InternImage
    from .models import create_model

    if _missing is None:
        from .checkpoint import register_loaders
        from .optim import (
            ClassificationLayerDecayOptimizerConstructor,
            CustomLayerDecayOptimizerConstructor,
            WarmupCosineLR,
        )

        register_loaders()

__all__ = [
    'CBInternImage',
    'ClassificationLayerDecayOptimizerConstructor',
    'CustomLayerDecayOptimizerConstructor',
    'InternImage',
    'WarmupCosineLR',
    '__version__',
    'config_path',
    'create_model',
]


def __getattr__(name: str) -> object:
    if name in __all__:
        raise ImportError(
            f'internimage_mm.{name} needs PyTorch and mmengine: {_missing}'
        ) from _missing
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
