"""Registry nodes of the scope ``internimage_mm``.

Everything is registered in mmengine's root registries, so ``type='InternImage'`` is found from
mmdet, mmseg and mmpretrain alike once the package is imported. The child nodes below make the
scoped name ``internimage_mm.InternImage`` work without any import: mmengine imports
``<scope>.registry`` by itself when it meets an unknown scope.
"""

from importlib.util import find_spec

from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as ROOT_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import PARAM_SCHEDULERS as ROOT_PARAM_SCHEDULERS
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.registry import Registry

# What needs one of the libraries is left out where that library is not installed.
_ROOM_OF_LIBRARY = {
    'mmdet': 'internimage_mm.det',
    'mmpretrain': 'internimage_mm.cls',
    'mmseg': 'internimage_mm.seg',
}
_ROOMS = [room for library, room in _ROOM_OF_LIBRARY.items() if find_spec(library)]

MODELS = Registry(
    'model',
    parent=ROOT_MODELS,
    scope='internimage_mm',
    locations=['internimage_mm.backbones', *_ROOMS],
)
DATASETS = Registry('dataset', parent=ROOT_DATASETS, scope='internimage_mm', locations=_ROOMS)
TRANSFORMS = Registry('transform', parent=ROOT_TRANSFORMS, scope='internimage_mm', locations=_ROOMS)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=ROOT_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='internimage_mm',
    locations=['internimage_mm.optim'],
)
PARAM_SCHEDULERS = Registry(
    'parameter scheduler',
    parent=ROOT_PARAM_SCHEDULERS,
    scope='internimage_mm',
    locations=['internimage_mm.optim'],
)
