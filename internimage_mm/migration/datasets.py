"""Data sets, data loaders and evaluators."""

import posixpath
from typing import Any

from .report import Report, Settings, shorten

# Label maps of these classes of mmseg 0.x start at 1 (or have "other" at 0), which is dropped.
_REDUCE_ZERO_LABEL = {'ADE20KDataset', 'PascalContextDataset59', 'NYUDepthV2Dataset'}
# The official repository's data sets, and what reads them here.
_RENAMED = {'CrowdHumanDataset': 'CocoDataset', 'MapillaryDataset': 'MapillaryCityscapesDataset'}
_CLASSES = {'CrowdHumanDataset': ('person',)}
_KNOWN = {
    'mmdet': (
        'CityscapesDataset',
        'CocoDataset',
        'CrowdHumanDataset',
        'LVISDataset',
        'LVISV05Dataset',
        'LVISV1Dataset',
        'OpenImagesDataset',
        'VOCDataset',
        'WIDERFaceDataset',
    ),
    'mmseg': (
        'ADE20KDataset',
        'COCOStuffDataset',
        'ChaseDB1Dataset',
        'CityscapesDataset',
        'DRIVEDataset',
        'HRFDataset',
        'LoveDADataset',
        'MapillaryDataset',
        'NYUDepthV2Dataset',
        'PascalContextDataset',
        'PascalContextDataset59',
        'PascalVOCDataset',
        'PotsdamDataset',
        'STAREDataset',
    ),
}


def migrate_dataset(
    old: Settings, scope: str, root: str | None, pipeline: Any, train: bool, report: Report
) -> dict:
    """One entry of ``data`` -> ``dataset`` of a data loader, wrappers included.

    Args:
        old: ``data.train``, ``data.val`` or ``data.test``; it is closed.
        scope: ``'mmdet'`` or ``'mmseg'``.
        root: ``data_root`` of the old config; paths below it become relative to it.
        pipeline: Put into the innermost data sets.
        train: Whether training filters apply.
        report: Takes what has no counterpart.
    """
    kind = old.take('type')
    if kind in ('RepeatDataset', 'ClassBalancedDataset'):
        inner = migrate_dataset(old.datasets('dataset'), scope, root, pipeline, train, report)
        new = {'type': kind, **old.take_existing('times', 'oversample_thr'), 'dataset': inner}
        old.ignore('pipeline', why=f'the old stack did not use a pipeline of a {kind} either')
    elif kind == 'ConcatDataset':
        entries = [
            Settings(entry, f'{old.path}.datasets[{i}]', report)
            for i, entry in enumerate(old.take('datasets'))
        ]
        parts = [migrate_dataset(entry, scope, root, pipeline, train, report) for entry in entries]
        new = _concat(parts, scope, kind)
    else:
        old.take('pipeline')
        old.ignore('test_mode', True, False, why='')
        translate = _detection if scope == 'mmdet' else _segmentation
        if kind not in _KNOWN[scope]:
            report.problem(
                f'{old.path}.type', f'the data set class {kind} must be ported to {scope}'
            )
        new = translate(kind, old, root, pipeline, train, report)
    old.close()
    return new


def _concat(parts: list[dict], scope: str, kind: str) -> dict:
    if len(parts) == 1:
        return parts[0]
    new: dict[str, Any] = {'type': 'ConcatDataset', 'datasets': parts}
    if parts[0]['type'] == 'VOCDataset':
        # VOC 2007 and 2012 differ in this key, which ConcatDataset would not accept.
        new['ignore_keys'] = ['dataset_type']
    return new


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _relative(path: str | None, root: str | None) -> str | None:
    if path is None or not root:
        return path
    folder = root if root.endswith('/') else f'{root}/'
    for start in (folder, f'./{folder}'):
        if path.startswith(start):
            return path[len(start) :]
    return None


def _detection(
    kind: str, old: Settings, root: str | None, pipeline: Any, train: bool, report: Report
) -> dict:
    root = old.take('data_root') or root
    files = _listed(old.take('ann_file'))
    prefixes = _listed(old.take('img_prefix', ''))
    prefixes = prefixes * len(files) if len(prefixes) == 1 else prefixes
    filter_empty = old.take('filter_empty_gt', True)
    extra: dict[str, Any] = {}
    if classes := old.take('classes', _CLASSES.get(kind)):
        extra['metainfo'] = {'classes': tuple(_listed(classes))}
        if isinstance(classes, str) and ('/' in classes or '.' in classes):
            report.problem(f'{old.path}.classes', 'a file of names; write the names as a tuple')
    for key in ('label_file', 'hierarchy_file', 'meta_file', 'image_level_ann_file'):
        if key in old:
            extra[key] = old.take(key)
    if kind == 'OpenImagesDataset' and 'meta_file' not in extra:
        extra['meta_file'] = f'{posixpath.dirname(files[0])}/train-image-metas.pkl'
        report.note(
            f'{old.path}.meta_file',
            f'mmdet 3 needs the sizes of the images; expected in {extra["meta_file"]}',
        )
    parts = []
    for ann_file, prefix in zip(files, prefixes, strict=True):
        paths = {'ann_file': ann_file, 'prefix': prefix, **extra_paths(extra)}
        relative = {key: _relative(value, root) for key, value in paths.items()}
        inside = root is not None and None not in relative.values()
        where = relative if inside else paths
        new: dict[str, Any] = {'type': _RENAMED.get(kind, kind)}
        if inside:
            new['data_root'] = root
        new['ann_file'] = where['ann_file']
        key = 'sub_data_root' if kind == 'VOCDataset' else 'img'
        new['data_prefix'] = {key: where['prefix'] or ''}
        new.update({k: where.get(k, v) for k, v in extra.items()})
        if train:
            # Written down: mmdet 3 filters nothing unless told to.
            new['filter_cfg'] = {'filter_empty_gt': filter_empty, 'min_size': 32}
        else:
            new['test_mode'] = True
        parts.append({**new, 'pipeline': pipeline})
    return _concat(parts, 'mmdet', kind)


def extra_paths(extra: dict) -> dict:
    """The files among the further settings of a data set."""
    return {key: value for key, value in extra.items() if key.endswith('_file')}


def _segmentation(
    kind: str, old: Settings, root: str | None, pipeline: Any, train: bool, report: Report
) -> dict:
    root = old.take('data_root') or root
    images, labels = _listed(old.take('img_dir')), _listed(old.take('ann_dir'))
    splits = _listed(old.take('split'))
    reduce_zero = old.take('reduce_zero_label', kind in _REDUCE_ZERO_LABEL)
    metainfo = {}
    for key, new_key in (('classes', 'classes'), ('palette', 'palette')):
        if (value := old.take(key)) is not None:
            metainfo[new_key] = value
    rest = old.take_existing('img_suffix', 'seg_map_suffix', 'ignore_index')
    count = max(len(images), len(labels), len(splits))
    images, labels, splits = (
        part * count if len(part) == 1 else part for part in (images, labels, splits)
    )
    parts = []
    for image, label, split in zip(images, labels, splits, strict=True):
        new: dict[str, Any] = {'type': _RENAMED.get(kind, kind)}
        if root:
            new['data_root'] = root
        if split:
            new['ann_file'] = split
        new['data_prefix'] = {'img_path': image, 'seg_map_path': label}
        if reduce_zero or kind in _REDUCE_ZERO_LABEL:
            new['reduce_zero_label'] = reduce_zero
        if metainfo:
            new['metainfo'] = metainfo
        parts.append({**new, **rest, 'pipeline': pipeline})
    return _concat(parts, 'mmseg', kind)


def leaves(dataset: dict) -> list[dict]:
    """The data sets inside all wrappers of a translated data set."""
    if 'datasets' in dataset:
        return [leaf for inner in dataset['datasets'] for leaf in leaves(inner)]
    return leaves(dataset['dataset']) if 'dataset' in dataset else [dataset]


def migrate_loaders(
    old: Settings,
    datasets: dict[str, dict],
    scope: str,
    by_epoch: bool,
    report: Report,
) -> dict[str, dict]:
    """Batch sizes, workers and samplers of ``data`` around the translated ``datasets``.

    Args:
        old: ``data`` of the old config, without the data sets; it is closed.
        datasets: Data set by ``'train'``, ``'val'``, ``'test'``.
        scope: ``'mmdet'`` or ``'mmseg'``.
        by_epoch: Whether training is counted in epochs.
        report: Takes what has no counterpart.

    Returns:
        The data loaders by split.
    """
    per_gpu, workers = old.take('samples_per_gpu', 1), old.take('workers_per_gpu', 0)
    persistent = old.take('persistent_workers')
    loaders = {}
    for split, dataset in datasets.items():
        own = old.section(f'{split}_dataloader')
        train = split == 'train'
        count = own.take('workers_per_gpu', workers)
        loader: dict[str, Any] = {
            'batch_size': own.take('samples_per_gpu', per_gpu if train else 1),
            'num_workers': count,
            'persistent_workers': count > 0 if persistent is None else persistent,
        }
        aware = own.take('class_aware_sampler')
        shuffle = own.take('shuffle', train)
        if aware:
            loader['sampler'] = {'type': 'ClassAwareSampler', **aware}
            if not by_epoch:
                report.note(own.path, 'mmdet 2 ignored class_aware_sampler with IterBasedRunner')
        elif train and not by_epoch:
            loader['sampler'] = {'type': 'InfiniteSampler', 'shuffle': shuffle}
        else:
            loader['sampler'] = {'type': 'DefaultSampler', 'shuffle': shuffle}
        if train and scope == 'mmdet' and not aware:
            # mmdet 2 grouped upright and lying images in its samplers.
            loader['batch_sampler'] = {'type': 'AspectRatioBatchSampler'}
        loader.update(own.take_existing('drop_last', 'pin_memory'))
        if not train and scope == 'mmdet':
            loader.setdefault('drop_last', False)
        loader['dataset'] = dataset
        loaders[split] = loader
        own.close()
    old.close()
    return loaders


def migrate_evaluator(evaluation: Settings, dataset: dict, scope: str, report: Report) -> dict:
    """``evaluation`` -> the evaluator of one split (``evaluation`` is read, not taken)."""
    values = Settings(evaluation.peek(), evaluation.path, report)
    metric = values.take('metric', 'mIoU' if scope == 'mmseg' else 'bbox')
    (leaf, *_) = leaves(dataset)
    if scope == 'mmseg':
        return {'type': 'IoUMetric', 'iou_metrics': _listed(metric)}
    kind = leaf['type']
    ann_file = (leaf.get('data_root') or '') + (leaf['ann_file'] or '')
    if kind == 'VOCDataset':
        prefix = leaf['data_prefix']['sub_data_root']
        mode = '11points' if '2007' in prefix or '2007' in ann_file else 'area'
        return {'type': 'VOCMetric', 'metric': metric, 'eval_mode': mode}
    if kind == 'OpenImagesDataset':
        return {
            'type': 'OpenImagesMetric',
            'iou_thrs': 0.5,
            'ioa_thrs': 0.5,
            'use_group_of': True,
            'get_supercategory': True,
        }
    coco = {'type': 'LVISMetric' if kind.startswith('LVIS') else 'CocoMetric'}
    coco['ann_file'] = ann_file
    coco['metric'] = metric
    coco.update(values.take_existing('classwise', 'proposal_nums', 'iou_thrs', 'metric_items'))
    return coco


def best_metric(save_best: str | None, evaluator: dict) -> str | None:
    """``save_best`` in the terms of the new evaluators; ``'auto'`` was the first number."""
    if save_best is None:
        return None
    prefix, first = {
        'CocoMetric': ('coco/', 'bbox_mAP'),
        'LVISMetric': ('lvis/', 'bbox_AP'),
        'VOCMetric': ('pascal_voc/', 'mAP'),
        'OpenImagesMetric': ('openimages/', 'AP50'),
        'IoUMetric': ('', 'aAcc'),
    }[evaluator['type']]
    if evaluator['type'] == 'CocoMetric':
        metric = evaluator['metric']
        first = f'{metric if isinstance(metric, str) else metric[0]}_mAP'
    return prefix + (first if save_best == 'auto' else save_best)


def check_zero_label(dataset: dict, train_annotations: dict | None, report: Report) -> None:
    """Both the data set and LoadAnnotations had a reduce_zero_label; now they must agree."""
    transform = (train_annotations or {}).get('reduce_zero_label', False)
    for leaf in leaves(dataset):
        if leaf.get('reduce_zero_label', False) != transform:
            report.problem(
                'data.train.reduce_zero_label',
                f'{leaf["type"]} has {not transform}, LoadAnnotations {transform}: in '
                f'the new stack the data set rules ({shorten(leaf["data_prefix"])})',
            )
