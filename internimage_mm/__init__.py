"""InternImage for mmdet 3.x, mmseg 1.x and mmpretrain 1.x.

Importing the package registers the backbones ``InternImage`` and ``CBInternImage``, the two
layer-decay optimizer constructors, the schedule ``WarmupCosineLR`` and loaders of checkpoints
(:mod:`internimage_mm.checkpoint.stock_loading`) with mmengine. Where mmengine cannot be imported it
still can, for ``python -m internimage_mm.env``, and without PyTorch for ``internimage_mm.deploy``.
"""

from .shipped_configs import config_path
from .version import __version__

try:
    from . import compat

    compat.define_torchvision_schemas()
    import mmengine.runner  # noqa: F401  all below needs it
except Exception as error:  # a broken installation may raise anything
    _mmengine_error = error
else:
    from .backbones import CBInternImage, InternImage
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
]


def __getattr__(name: str) -> object:
    if name in __all__:
        raise ImportError(
            f'internimage_mm.{name} needs PyTorch and mmengine: {_mmengine_error}'
        ) from _mmengine_error
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
