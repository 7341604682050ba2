"""Refuse COCO annotation files of which mmdet would silently drop objects."""

from __future__ import annotations

import functools
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmengine.registry import DATASETS

from ..errors import UserError

_SHOWN = 10  # names listed in a message


class _CheckedCOCO(COCO):
    """An annotation file that defines all categories that it uses, and those asked for."""

    def __init__(self, annotation_file: str) -> None:
        self.path = annotation_file
        try:
            super().__init__(annotation_file)
        except ValueError as error:
            raise UserError(f'annotation file {self.path} is not valid JSON: {error}') from error
        except AssertionError as error:
            raise self._not_coco() from error
        if not {'images', 'categories'} <= self.dataset.keys():
            raise self._not_coco()
        if unknown := sorted(self.cat_img_map.keys() - self.cats.keys(), key=str):
            raise UserError(
                f'annotation file {self.path} has objects of unknown category: category_id '
                f'{_some(unknown)}; its "categories" define {_some(sorted(self.cats, key=str))}'
            )

    def _not_coco(self) -> UserError:
        return UserError(
            f'annotation file {self.path} is not in COCO format: it needs "images" and "categories"'
        )

    def get_cat_ids(self, cat_names: Any = (), sup_names: Any = (), cat_ids: Any = ()) -> list[int]:
        names = {category['name'] for category in self.cats.values()}
        classes = [cat_names] if isinstance(cat_names, str) else cat_names
        if missing := [name for name in classes if name not in names]:
            raise UserError(
                f'annotation file {self.path} does not define the categories {_some(missing)} of '
                f'the config; it defines {_some(sorted(names))}. Set metainfo.classes of the data '
                'set (and num_classes of the heads) to those of the file'
            )
        return super().get_cat_ids(cat_names, sup_names, cat_ids)


def check_categories(dataset: dict) -> dict:
    """Make the data sets that read COCO annotations check them while they read them.

    Args:
        dataset: Config of a data set, or of a wrapper around some; the scope mmdet is current.

    Returns:
        A config that builds the same. Building it raises a UserError for a file that is damaged,
        lacks a class of the config, or uses a category that it does not define. (mmdet drops such
        objects silently.)
    """
    if 'datasets' in dataset:
        return {**dataset, 'datasets': [check_categories(part) for part in dataset['datasets']]}
    if 'dataset' in dataset:
        return {**dataset, 'dataset': check_categories(dataset['dataset'])}
    cls = dataset['type']
    if isinstance(cls, str):
        with DATASETS.switch_scope_and_registry(dataset.get('_scope_')) as registry:
            cls = registry.get(cls)
    # Its subclasses with a reader of their own have other rules.
    if getattr(cls, 'load_data_list', None) is not CocoDataset.load_data_list:
        return dataset
    return {**dataset, 'type': functools.partial(_build, cls)}


def _build(cls: type[CocoDataset], lazy_init: bool = False, **settings: Any) -> CocoDataset:
    dataset = cls(lazy_init=True, **settings)
    if dataset.COCOAPI is COCO:
        dataset.COCOAPI = _CheckedCOCO
    if not lazy_init:
        dataset.full_init()
    return dataset


def _some(items: list) -> str:
    return ', '.join(map(str, items[:_SHOWN])) + (', ...' if len(items) > _SHOWN else '')
