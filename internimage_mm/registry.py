"""Registry nodes of the scope ``internimage_mm``.

Everything is registered in mmengine's root registries, so ``type='InternImage'`` is found from
mmdet, mmseg and mmpretrain alike once the package is imported. The child nodes below make the
scoped name ``internimage_mm.InternImage`` work without any import: mmengine imports
``<scope>.registry`` by itself when it meets an unknown scope.
"""

from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as ROOT_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import Registry

MODELS = Registry(
    'model',
    parent=ROOT_MODELS,
    scope='internimage_mm',
    locations=['internimage_mm.backbones'],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=ROOT_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='internimage_mm',
    locations=['internimage_mm.optim'],
)
