"""What the command-line tools check before anything heavy, and how they report a user's mistake."""

import difflib
import functools
import importlib.util
import json
import os
import os.path as osp
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.config.utils import ConfigParsingError
from mmengine.device import get_device
from mmengine.registry import DATASETS

from .checkpoint import CheckpointError
from .output_file import renamed_when_complete

_SHOWN = 10  # names listed in a message
_LIBRARIES = {
    'mmdet': 'mmdet==3.3.0',
    'mmseg': 'mmsegmentation==1.2.2',
    'mmpretrain': 'mmpretrain==1.2.0',
}
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


class UserError(Exception):
    """A mistake in what the user gave; the message says what is wrong and what is needed."""


class ConfigOptions(DictAction):
    """The action of ``--cfg-options``; a malformed setting is an error of usage, no traceback."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError, SyntaxError) as error:
            parser.error(f'{option_string} takes KEY=VALUE pairs, got {" ".join(values)} ({error})')


def reports_user_errors(main: Callable) -> Callable:
    """Make a tool end with one line ``error: ...`` and exit code 1 after a user's mistake.

    Errors in our own code keep their traceback; with the environment variable
    ``INTERNIMAGE_MM_TRACEBACK=1`` these do as well.
    """

    @functools.wraps(main)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except (UserError, CheckpointError) as error:
            if os.environ.get('INTERNIMAGE_MM_TRACEBACK', '0') != '0':
                raise
            sys.exit(f'error: {error}')

    return wrapper


@contextmanager
def reports_model_errors() -> Iterator[None]:
    """Turn what a wrong ``model`` of a config raises when it is built into a :class:`UserError`."""
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        message = error.args[0] if error.args else type(error).__name__
        raised = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f'the model of the config cannot be built: {message} (raised in {raised.filename}, '
            f'line {raised.lineno})'
        ) from error


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, and the folders that it is in; it is complete or not there.

    Raises:
        UserError: It cannot be written.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with renamed_when_complete(path) as unfinished:
            unfinished.write_text(text, encoding='utf-8')
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error}') from error


def check_launcher(launcher: str) -> None:
    """Raise a :class:`UserError` for a distributed run on a machine without GPU."""
    if launcher != 'none' and get_device() == 'cpu':
        raise UserError(
            f'--launcher {launcher} needs a GPU for each process, which mmengine binds it to; '
            'on the CPU start one process with --launcher none'
        )


def load_config(path: str, options: dict | None = None, work_dir: str | None = None) -> Config:
    """Read a config and apply what the command line sets.

    Args:
        path: The config file.
        options: ``--cfg-options``.
        work_dir: ``--work-dir``; default: that of the config, else ``work_dirs/<config name>``.

    Raises:
        UserError: No such file, not Python, a missing ``_base_``, or the library that it is for
            (mmdet, mmseg or mmpretrain) is not installed.
    """
    if not osp.isfile(path):
        raise UserError(f'config {path} does not exist{_similar_configs(path)}')
    try:
        cfg = Config.fromfile(path)
    except SyntaxError as error:
        raise UserError(
            f'config {path} (or one of its _base_ files) is not valid Python: {error.msg} '
            f'(line {error.lineno}: {(error.text or "").strip()})'
        ) from error
    except (ConfigParsingError, OSError, AssertionError, ValueError) as error:
        hint = ''
        if 'internimage_mm::' in Path(path).read_text(errors='replace'):
            hint = (
                "; one of our configs is inherited by its path: internimage_mm.config_path('...')"
            )
        raise UserError(f'config {path} cannot be read: {error}{hint}') from error
    if 'model' not in cfg:
        raise UserError(f'config {path} has no "model"; is it a file of configs/_base_?')
    cfg.merge_from_dict(options or {})
    scope = cfg.get('default_scope')
    if scope in _LIBRARIES and importlib.util.find_spec(scope) is None:
        raise UserError(f'config {path} needs {scope}: pip install "{_LIBRARIES[scope]}"')
    cfg.work_dir = work_dir or cfg.get('work_dir') or osp.join('work_dirs', Path(path).stem)
    return cfg


def _similar_configs(path: str) -> str:
    folder = Path(path).parent
    if found := sorted(Path('configs').glob(f'*/{Path(path).name}')):
        return f'; do you mean {found[0]}?'
    names = [p.name for p in folder.glob('*.py')] if folder.is_dir() else []
    similar = difflib.get_close_matches(Path(path).name, names, n=3, cutoff=0.3)
    if similar:
        return f'; in {folder} there are {", ".join(similar)}'
    return '' if folder.is_dir() else f' (nor does the folder {folder})'


def check_data(cfg: Config, *splits: str) -> None:
    """Check that the data sets of a config are there and complete, with known categories.

    Args:
        cfg: The whole config.
        *splits: Which of ``'train'``, ``'val'``, ``'test'`` are going to be used.

    Raises:
        UserError: A folder or an annotation file is missing (the message says how to get it), or a
            COCO annotation file is damaged, lacks a class of the config, or uses a category that it
            does not define (mmdet would drop such objects without a word), or a segmentation data
            set has no images, or images without a label map.
    """
    checked = set()
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        for dataset in _leaf_datasets(loader['dataset']):
            for path in _paths_of(dataset):
                _check_exists(path, split)
            # In distributed training one process of each machine reads the files.
            if int(os.environ.get('LOCAL_RANK', 0)) != 0:
                continue
            ann_file = _annotation_file(dataset)
            classes = _coco_classes(dataset, cfg.get('default_scope'))
            if classes and ann_file not in checked:
                _check_coco_categories(ann_file, classes)
                checked.add(ann_file)
            if cfg.get('default_scope') == 'mmseg':
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
                f'{_some(missing[:1])} does not exist; {_data_hint(missing[0], split)}'
            )


def _annotation_file(dataset: dict) -> str:
    return osp.join(dataset.get('data_root') or '', dataset.get('ann_file') or '')


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
    return (
        f'{where}say where your copy lies: data_root of the data set, ann_file of the evaluator; '
        f'--cfg-options {split}_dataloader.dataset.data_root=... {split}_evaluator.ann_file=...'
    )


def _coco_classes(dataset: dict, scope: str | None) -> tuple[str, ...] | None:
    """The classes that mmdet looks up by name in the annotation file; None if it does not."""
    if scope != 'mmdet':
        return None
    from mmdet.datasets import CocoDataset

    cls = dataset['type']
    if isinstance(cls, str):
        with DATASETS.switch_scope_and_registry(scope) as registry:
            cls = registry.get(cls)
    if getattr(cls, 'load_data_list', None) is not CocoDataset.load_data_list:
        return None
    metainfo = {**cls.METAINFO, **(dataset.get('metainfo') or {})}
    classes = metainfo.get('classes', ())
    return (classes,) if isinstance(classes, str) else tuple(classes)


def _check_coco_categories(ann_file: str, classes: tuple[str, ...]) -> None:
    try:
        with open(ann_file, encoding='utf-8') as file:
            content = json.load(file)
    except ValueError as error:
        raise UserError(f'annotation file {ann_file} is not valid JSON: {error}') from error
    if not isinstance(content, dict) or not {'images', 'categories'} <= content.keys():
        raise UserError(
            f'annotation file {ann_file} is not in COCO format: it needs "images" and "categories"'
        )
    names = {category['id']: category['name'] for category in content['categories']}
    missing = [name for name in classes if name not in names.values()]
    if missing:
        raise UserError(
            f'annotation file {ann_file} does not define the categories {_some(missing)} of the '
            f'config; it defines {_some(sorted(names.values()))}. Set metainfo.classes of the data '
            'set (and num_classes of the heads) to those of the file'
        )
    unknown = sorted(
        {a['category_id'] for a in content.get('annotations', [])} - names.keys(), key=str
    )
    if unknown:
        raise UserError(
            f'annotation file {ann_file} has objects of unknown category: category_id '
            f'{_some(unknown)}; its "categories" define {_some(sorted(names, key=str))}'
        )


def _some(items: list) -> str:
    return ', '.join(map(str, items[:_SHOWN])) + (', ...' if len(items) > _SHOWN else '')
