"""iNaturalist 2018 with the time and place of each picture."""

import math
import os.path as osp
import re

from mmengine.fileio import exists, load
from mmengine.registry import DATASETS
from mmpretrain.datasets import BaseDataset


@DATASETS.register_module()
class INaturalist2018(BaseDataset):
    """iNaturalist 2018: 8142 species, with date and coordinates.

    Each sample has ``img_path``, ``gt_label``, ``temporal_info`` (:func:`encode_date`) and
    ``spatial_info`` (:func:`encode_place`). Labels number the categories in the order of the
    annotation file. Class names are the category names of that file.

    Args:
        data_root: Folder with the annotation files; image paths in them are relative to it.
        ann_file: ``train2018.json`` or ``val2018.json``. Dates and coordinates are read from the
            file next to it whose name ends in ``_locations.json``.
        **kwargs: Of mmpretrain's ``BaseDataset``.

    Raises:
        FileNotFoundError: One of the two files is missing.
        ValueError: The two files do not fit one another.
    """

    def __init__(self, data_root: str, ann_file: str, **kwargs) -> None:
        super().__init__(ann_file=ann_file, data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        location_file = f'{osp.splitext(self.ann_file)[0]}_locations.json'
        for path in (self.ann_file, location_file):
            if not exists(path):
                raise FileNotFoundError(
                    f'iNaturalist 2018 needs {path}; configs/inaturalist2018/README.md says where '
                    'to get it'
                )
        content = load(self.ann_file)
        labels = {category['id']: i for i, category in enumerate(content['categories'])}
        if 'classes' not in self._metainfo:
            self._metainfo['classes'] = tuple(c['name'] for c in content['categories'])
        file_names = {image['id']: image['file_name'] for image in content['images']}
        locations = {entry['id']: entry for entry in load(location_file)}
        missing = [a['image_id'] for a in content['annotations'] if a['image_id'] not in locations]
        if missing:
            raise ValueError(
                f'{location_file} does not belong to {self.ann_file}: it lacks {len(missing)} of '
                f'{len(content["annotations"])} images, the first with the id {missing[0]}'
            )
        samples = []
        for annotation in content['annotations']:
            image_id = annotation['image_id']
            location = locations[image_id]
            samples.append(
                dict(
                    img_path=osp.join(self.data_root, file_names[image_id]),
                    gt_label=labels[annotation['category_id']],
                    temporal_info=encode_date(location.get('date')),
                    spatial_info=encode_place(location.get('lat'), location.get('lon')),
                )
            )
        return samples


def encode_date(date: str | None) -> list[float]:
    """Point of the year as (sin, cos) of the month's angle and two zeros for the unused hour.

    Args:
        date: Text that begins with ``year-month-day``. Anything else is unknown: four zeros.
    """
    match = re.match(r'(\d+)-(\d+)-(\d+)', (date or '').strip())
    if not match:
        return [0.0] * 4
    angle = 2 * math.pi * int(match[2]) / 12
    return [math.sin(angle), math.cos(angle), 0.0, 0.0]


def encode_place(latitude: float | None, longitude: float | None) -> list[float]:
    """Point on the unit sphere.

    Args:
        latitude: In degrees; None is unknown, and so is exactly 0, as in the official code.
        longitude: Likewise.

    Returns:
        x, y, z; three zeros for an unknown place.
    """
    if not latitude or not longitude:
        return [0.0] * 3
    phi, theta = math.radians(latitude), math.radians(longitude)
    return [
        math.cos(phi) * math.cos(theta),
        math.cos(phi) * math.sin(theta),
        math.sin(phi),
    ]
