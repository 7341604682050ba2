"""Checks that the data of a config are there, before anything heavy."""

import os
import os.path as osp
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import DATASETS

from ..errors import UserError

# Folder in configs whose README says how to get a data set, and the folders that the set is in.
_README_OF = {
    'ade20k': {'ade', 'ade20k', 'adechallengedata2016'},
    'cityscapes': {'cityscapes'},
    'coco': {'coco', 'coco2017'},
    'coco-stuff': {'coco_stuff10k', 'coco_stuff164k'},
    'imagenet': {'imagenet'},
    'inaturalist2018': {'inat2018'},
    'mapillary': {'mapillary'},
    'nyu': {'nyu_depth_v2'},
    'pascal-context': {'voc2010'},
    'crowdhuman': {'crowdhuman'},
    'lvis': {'lvis_v1'},
    'objects365': {'objects365'},
    'openimages': {'openimages'},
    'voc': {'vocdevkit'},
}
# Further files of a data set, by the argument that names them.
_FILES = ('ann_file', 'label_file', 'hierarchy_file', 'meta_file', 'image_level_ann_file')


def check_data(cfg: Config, *splits: str) -> None:
    """Check that the data sets of a config are there.

    Annotation files of detection are checked when they are read, by the runner.

    Args:
        cfg: The whole config.
        *splits: Which of ``'train'``, ``'val'``, ``'test'`` are going to be used.

    Raises:
        UserError: A folder or an annotation file is missing (the message says how to get it), or a
            segmentation data set has no images, or images without a label map.
    """
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        for dataset in _leaf_datasets(loader['dataset']):
            for path in _paths_of(dataset):
                _check_exists(path, split)
            # In distributed training one process of each machine lists the files.
            if cfg.get('default_scope') == 'mmseg' and int(os.environ.get('LOCAL_RANK', 0)) == 0:
                _check_image_pairs(dataset, split)
        evaluators = cfg.get(f'{split}_evaluator') or []
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            if evaluator.get('ann_file'):
                _check_exists(evaluator['ann_file'], split)


def dataset_meta(cfg: Config) -> dict:
    """Classes and colours of the config's test data, which need not be on this machine.

    Args:
        cfg: The whole config; its default scope has to be the current one.
    """
    dataset = {**cfg.test_dataloader.dataset, 'lazy_init': True}
    if cfg.get('default_scope') == 'mmseg':
        # Some of mmseg's data sets assert even so that their folder is there.
        dataset.update(data_root=os.curdir, data_prefix={'img_path': ''}, ann_file='')
    return DATASETS.build(dataset).metainfo


def _leaf_datasets(dataset: dict) -> Iterator[dict]:
    """Look through the wrappers (RepeatDataset, ConcatDataset and their like)."""
    if 'datasets' in dataset:
        for inner in dataset['datasets']:
            yield from _leaf_datasets(inner)
    elif 'dataset' in dataset:
        yield from _leaf_datasets(dataset['dataset'])
    else:
        yield dataset


def _paths_of(dataset: dict) -> Iterator[str]:
    root = dataset.get('data_root') or ''
    if root:
        yield root
    prefixes = dataset.get('data_prefix') or dataset.get('split') or {}  # mmpretrain: one folder
    prefixes = [prefixes] if isinstance(prefixes, str) else prefixes.values()
    for part in (*(dataset.get(key) for key in _FILES), *prefixes):
        if part:
            yield osp.join(root, part)


def _check_image_pairs(dataset: dict, split: str) -> None:
    """Check the files that a segmentation data set is going to read: images and label maps."""
    from mmseg.datasets import BaseSegDataset

    with DATASETS.switch_scope_and_registry('mmseg') as registry:
        cls = registry.get(dataset['type'])
        if not (isinstance(cls, type) and issubclass(cls, BaseSegDataset)):
            return
        built = cls(
            **{k: v for k, v in dataset.items() if k not in ('type', 'pipeline', 'lazy_init')},
            lazy_init=True,
        )
    if any('://' in folder for folder in built.data_prefix.values() if folder):
        return
    samples = built.load_data_list()
    if not samples:
        listed = f' of {built.ann_file}' if built.ann_file else ''
        raise UserError(
            f'the {split} data has no images: there is no *{built.img_suffix}{listed} in '
            f'{built.data_prefix["img_path"]}; {_data_hint(built.data_prefix["img_path"], split)}'
        )
    there: dict[str, set[str]] = {}  # one listing of a folder instead of a question per file
    for key, what in (('img_path', 'images'), ('seg_map_path', 'label maps')):
        paths = [sample[key] for sample in samples if sample.get(key)]
        for folder in {osp.dirname(path) for path in paths} - there.keys():
            there[folder] = set(os.listdir(folder)) if osp.isdir(folder) else set()
        missing = [p for p in paths if osp.basename(p) not in there[osp.dirname(p)]]
        if missing:
            raise UserError(
                f'the {split} data lacks {len(missing)} of {len(paths)} {what}: '
                f'{missing[0]} does not exist; {_data_hint(missing[0], split)}'
            )


def _check_exists(path: str, split: str) -> None:
    if '://' not in path and not osp.exists(path):
        raise UserError(
            f'the {split} data needs {path}, which does not exist; {_data_hint(path, split)}'
        )


def _data_hint(path: str, split: str) -> str:
    folders = set(Path(path.lower()).parts)
    if folders & {'mini_coco', 'mini_ade20k', 'mini_imagenet'}:
        return 'make it with: python tools/make_mini_dataset.py'
    readme = next((name for name, known in _README_OF.items() if folders & known), None)
    where = f'configs/{readme}/README.md says where to get it, or ' if readme else ''
    loaders = ('train', 'val') if split == 'train' else (split,)
    places = [f'{name}_dataloader.dataset.data_root=...' for name in loaders]
    return (
        f'{where}say where your copy lies: data_root of the data set, ann_file of the evaluator; '
        f'--cfg-options {" ".join(places)} {loaders[-1]}_evaluator.ann_file=...'
    )
