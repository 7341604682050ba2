from .cls_layer_decay import ClassificationLayerDecayOptimizerConstructor
from .layer_decay import CustomLayerDecayOptimizerConstructor
from .schedules import WarmupCosineLR

__all__ = [
    'ClassificationLayerDecayOptimizerConstructor',
    'CustomLayerDecayOptimizerConstructor',
    'WarmupCosineLR',
]
