"""Transforms of the official release that mmseg does not have."""

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

# Labels of Mapillary Vistas v1.2 that make up each of the 19 classes of Cityscapes.
_MAPILLARY_LABELS = {
    'road': (13, 24, 41),  # road, lane marking - general, manhole
    'sidewalk': (2, 15),  # curb, sidewalk
    'building': (17,),
    'wall': (6,),
    'fence': (3,),
    'pole': (45, 47),  # pole, utility pole
    'traffic light': (48,),
    'traffic sign': (50,),  # front only
    'vegetation': (30,),
    'terrain': (29,),
    'sky': (27,),
    'person': (19,),
    'rider': (20, 21, 22),  # bicyclist, motorcyclist, other rider
    'car': (55,),
    'truck': (61,),
    'bus': (54,),
    'train': (58,),  # on rails
    'motorcycle': (57,),
    'bicycle': (52,),
}
_IGNORED = 255


@TRANSFORMS.register_module()
class MapillaryToCityscapes(BaseTransform):
    """Merge the 66 labels of Mapillary Vistas v1.2 into the 19 classes of Cityscapes.

    Labels without a counterpart become 255, which is ignored. The table is that of the official
    InternImage release. Comes after ``LoadAnnotations``; changes ``gt_seg_map``, (H, W) uint8.
    """

    def __init__(self) -> None:
        self.table = np.full(256, _IGNORED, dtype=np.uint8)
        for index, labels in enumerate(_MAPILLARY_LABELS.values()):
            self.table[list(labels)] = index

    def transform(self, results: dict) -> dict:
        results['gt_seg_map'] = self.table[results['gt_seg_map']]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
