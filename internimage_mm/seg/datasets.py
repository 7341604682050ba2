"""Data sets of the official release that mmseg does not have."""

from typing import Any

from mmengine.registry import DATASETS
from mmseg.datasets import BaseSegDataset, CityscapesDataset

# Name and colour of the 40 classes; label k + 1 in the files is class k.
_NYU_40 = {
    'wall': (120, 120, 120),
    'floor': (180, 120, 120),
    'cabinet': (6, 230, 230),
    'bed': (80, 50, 50),
    'chair': (4, 200, 3),
    'sofa': (120, 120, 80),
    'table': (140, 140, 140),
    'door': (204, 5, 255),
    'window': (230, 230, 230),
    'bookshelf': (4, 250, 7),
    'picture': (224, 5, 255),
    'counter': (235, 255, 7),
    'blinds': (150, 5, 61),
    'desk': (120, 120, 70),
    'shelves': (8, 255, 51),
    'curtain': (255, 6, 82),
    'dresser': (143, 255, 140),
    'pillow': (204, 255, 4),
    'mirror': (255, 51, 7),
    'floor mat': (204, 70, 3),
    'clothes': (0, 102, 200),
    'ceiling': (61, 230, 250),
    'books': (255, 6, 51),
    'refridgerator': (11, 102, 255),
    'television': (255, 7, 71),
    'paper': (255, 9, 224),
    'towel': (9, 7, 230),
    'shower curtain': (220, 220, 220),
    'box': (255, 9, 92),
    'whiteboard': (112, 9, 255),
    'person': (8, 255, 214),
    'night stand': (7, 255, 224),
    'toilet': (255, 184, 6),
    'sink': (10, 255, 71),
    'lamp': (255, 41, 10),
    'bathtub': (7, 255, 255),
    'bag': (224, 255, 8),
    'otherstructure': (102, 8, 255),
    'otherfurniture': (255, 61, 6),
    'otherprop': (255, 194, 7),
}


@DATASETS.register_module()
class NYUDepthV2Dataset(BaseSegDataset):
    """NYU Depth V2 with the 40 classes of Gupta et al., as images and label maps in png files.

    In the label maps 0 is unlabelled and ignored; 1 to 40 are the classes (``reduce_zero_label``).
    ``ann_file`` is a text file with one file name per line, without suffix.

    mmseg's ``NYUDataset`` is another one, for depth estimation.

    Args:
        img_suffix: Suffix of the images. Default: ``'.png'``.
        seg_map_suffix: Suffix of the label maps. Default: ``'.png'``.
        reduce_zero_label: Whether 0 is ignored. Default: True.
        **kwargs: As of :class:`mmseg.datasets.BaseSegDataset`.
    """

    METAINFO = dict(classes=tuple(_NYU_40), palette=[list(color) for color in _NYU_40.values()])

    def __init__(
        self,
        img_suffix: str = '.png',
        seg_map_suffix: str = '.png',
        reduce_zero_label: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            img_suffix=img_suffix,
            seg_map_suffix=seg_map_suffix,
            reduce_zero_label=reduce_zero_label,
            **kwargs,
        )


@DATASETS.register_module()
class MapillaryCityscapesDataset(BaseSegDataset):
    """Mapillary Vistas v1.2 for training with the 19 classes of Cityscapes.

    The files hold the 66 labels of Mapillary; the pipeline has to merge them, by
    :class:`~internimage_mm.seg.MapillaryToCityscapes` right after ``LoadAnnotations``.

    mmseg's ``MapillaryDataset_v1`` is the same data with its own 66 classes.

    Args:
        img_suffix: Suffix of the images. Default: ``'.jpg'``.
        seg_map_suffix: Suffix of the label maps. Default: ``'.png'``.
        **kwargs: As of :class:`mmseg.datasets.BaseSegDataset`.
    """

    METAINFO = CityscapesDataset.METAINFO

    def __init__(
        self, img_suffix: str = '.jpg', seg_map_suffix: str = '.png', **kwargs: Any
    ) -> None:
        super().__init__(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)
