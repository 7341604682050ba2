"""Pipelines, data sets, data loaders and evaluators.

``scope`` is ``'mmdet'`` or ``'mmseg'`` throughout.
"""

import posixpath
from dataclasses import dataclass, field
from typing import Any

from .settings import Report, Settings, shorten

# Old transform -> the arguments that the new one has too, in the notation of Settings.keep.
_BOTH = {
    'LoadImageFromFile': 'to_float32 color_type imdecode_backend',
    'PhotoMetricDistortion': 'brightness_delta contrast_range saturation_range hue_delta',
    'RandomFlip': 'flip_ratio>prob prob direction',
}
_TRANSFORMS = {
    'mmdet': {
        **_BOTH,
        'CutOut': 'n_holes cutout_shape cutout_ratio fill_in',
        'Expand': 'mean to_rgb ratio_range seg_ignore_label prob',
        'LoadAnnotations': 'with_bbox with_label with_mask with_seg poly2mask',
        'MinIoURandomCrop': 'min_ious min_crop_size bbox_clip_border',
    },
    'mmseg': {
        **_BOTH,
        'AdjustGamma': 'gamma',
        'CLAHE': 'clip_limit tile_grid_size',
        'LoadAnnotations': 'reduce_zero_label imdecode_backend',
        'MapillaryHack': '',
        'RandomCrop': 'crop_size cat_max_ratio',
        'RandomRotate': 'prob degree pad_val seg_pad_val center auto_bound',
        'RGB2Gray': 'out_channels weights',
        'ResizeToMultiple': 'size_divisor interpolation',
    },
}
_PACK = {'mmdet': 'PackDetInputs', 'mmseg': 'PackSegInputs'}
# What the official segmentation test.py --aug-test multiplied the test scale by, with flips.
_AUG_TEST_RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)

_DATASETS = {
    'mmdet': 'CityscapesDataset CocoDataset CrowdHumanDataset LVISDataset LVISV05Dataset '
    'LVISV1Dataset OpenImagesDataset VOCDataset WIDERFaceDataset',
    'mmseg': 'ADE20KDataset COCOStuffDataset ChaseDB1Dataset CityscapesDataset DRIVEDataset '
    'HRFDataset LoveDADataset MapillaryDataset NYUDepthV2Dataset PascalContextDataset '
    'PascalContextDataset59 PascalVOCDataset PotsdamDataset STAREDataset',
}
_FILES = {'mmdet': ('ann_file', 'img_prefix'), 'mmseg': ('split', 'img_dir', 'ann_dir')}
# Classes of the official repository, and what does it here.
_RENAMED = {
    'CrowdHumanDataset': 'CocoDataset',
    'MapillaryDataset': 'MapillaryCityscapesDataset',
    'MapillaryHack': 'MapillaryToCityscapes',
}
# Label maps of these classes of mmseg 0.x start at 1 (or have "other" at 0), which is dropped.
_REDUCE_ZERO_LABEL = ('ADE20KDataset', 'PascalContextDataset59', 'NYUDepthV2Dataset')
# Evaluator -> prefix of its metrics and the first of them, which save_best='auto' meant.
_BEST = {
    'CocoMetric': ('coco/', 'bbox_mAP'),
    'LVISMetric': ('lvis/', 'bbox_AP'),
    'VOCMetric': ('pascal_voc/', 'mAP'),
    'OpenImagesMetric': ('openimages/', 'AP50'),
    'IoUMetric': ('', 'aAcc'),
}


@dataclass
class Pipeline:
    """A translated pipeline, and what the old one did that is the data preprocessor's now."""

    transforms: list[dict] = field(default_factory=list)
    normalize: dict = field(default_factory=dict)
    pad: dict = field(default_factory=dict)
    annotations: dict = field(default_factory=dict)
    """The ``LoadAnnotations`` of the new pipeline."""
    scales: list = field(default_factory=list)
    """All scales of a test-time augmentation, (long, short)."""
    flips: list = field(default_factory=list)
    """The flips of a test-time augmentation; empty without it."""

    @property
    def images(self) -> list[dict]:
        """The transforms without packing."""
        return [step for step in self.transforms if step['type'] not in _PACK.values()]


def migrate_pipeline(steps: list[dict], name: str, scope: str, report: Report) -> Pipeline:
    """Translate ``steps``, called ``name`` in messages.

    A test around ``MultiScaleFlipAug`` becomes the test at its first scale.
    """
    new, root = Pipeline(), Settings({}, '', report)
    new.transforms = _transforms(root.sections(name, steps), scope, new)
    root.close()
    return new


def _transforms(steps: list[Settings], scope: str, new: Pipeline) -> list[dict]:
    return [done for step in steps for done in _transform(step, scope, new)]


def _transform(t: Settings, scope: str, new: Pipeline) -> list[dict]:
    """The transforms that ``t`` becomes."""
    kind = t.take('type')
    t.path += f'.{kind}'
    if kind in _TRANSFORMS[scope]:
        done = {'type': _RENAMED.get(kind, kind), **t.keep(_TRANSFORMS[scope][kind])}
        if kind == 'LoadAnnotations':
            new.annotations = done
        return [done]
    match kind:
        case 'Resize':
            return [_resize(t)]
        case 'RandomCrop':
            crop = t.take('crop_type', 'absolute')
            size = tuple(t.take('crop_size'))
            if crop != 'absolute_range':  # which has the smallest and the largest edge
                size = size[::-1]  # mmdet 2: (height, width), mmdet 3: (width, height)
            rest = t.keep('allow_negative_crop recompute_bbox bbox_clip_border')
            return [dict(type=kind, crop_type=crop, crop_size=size, **rest)]
        case 'AutoAugment':
            policies = [t.sections(f'policies[{i}]', p) for i, p in enumerate(t.take('policies'))]
            branches = [_transforms(policy, scope, new) for policy in policies]
            return [dict(type='RandomChoice', transforms=branches)]
        case 'MultiScaleFlipAug':
            return _test_augmentation(t, scope, new)
        case 'Normalize':
            new.normalize = t.keep('mean std to_rgb')
        case 'Pad':
            new.pad = t.keep('size size_divisor pad_val seg_pad_val')
        case 'Collect':
            return [{'type': _PACK[scope]}]
        case 'DefaultFormatBundle' | 'ImageToTensor' | 'ToMask':
            pass  # Pack...Inputs does all of it
        case _:
            t.problem('', f'no rule for the transform with {shorten(t.rest())}')
    return []


def _resize(t: Settings) -> dict:
    scales, ratios = _scales(t.take('img_scale')), t.keep('ratio_range')
    mode = t.take('multiscale_mode', 'range')
    rest = t.keep('keep_ratio=True interpolation backend bbox_clip_border')
    if ratios.get('ratio_range') is None and len(scales) > 1:
        if mode == 'value':
            return dict(type='RandomChoiceResize', scales=scales, **rest)
        return dict(type='RandomResize', scale=scales, **rest)
    first = {'scale': scales[0]} if scales else {}
    if not scales:
        why = 'it has no img_scale: give the new Resize a scale, or with ratio_range scale_factor'
        t.problem('', why)
    if ratios.get('ratio_range') is None:
        return dict(type='Resize', **first, **rest)
    return dict(type='RandomResize', **first, **ratios, **rest)


def _scales(scale: Any) -> list[tuple]:
    return [tuple(one) for one in (scale if isinstance(scale, list) else [scale]) if one]


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _test_augmentation(t: Settings, scope: str, new: Pipeline) -> list[dict]:
    """``MultiScaleFlipAug``: its transforms at its first scale, without the flip."""
    scales, flip = _scales(t.take('img_scale')), t.take('flip', False)
    factors = _listed(t.take('img_ratios', t.take('scale_factor')) or 1.0)
    directions = _listed(t.take('flip_direction', 'horizontal'))
    if flip or len(scales) > 1 or factors != [1.0]:
        new.scales = [tuple(int(side * f) for side in one) for one in scales for f in factors]
        new.flips = [None, *directions] if flip else [None]
    steps = [step for step in t.take('transforms') if step['type'] != 'RandomFlip']
    if scales:
        steps = [{'img_scale': scales[0], **s} if s['type'] == 'Resize' else s for s in steps]
    return _transforms(t.sections('transforms', steps), scope, new)


def test_steps(test: Pipeline, annotations: dict, scope: str, kind: str = '') -> list[dict]:
    """A test pipeline that loads the ground truth, in its original size, after the image.

    ``annotations`` loads the ground truth; ``kind`` is the class of the data set.
    """
    labels = ('instances', 'image_level_labels')  # what OpenImagesMetric evaluates with
    pack = _pack(scope, *(labels if kind == 'OpenImagesDataset' else ()))
    return [*test.images, annotations, pack]


def _pack(scope: str, *further: str) -> dict:
    """The last step of a test pipeline; mmdet's needs to be told what to keep."""
    if scope == 'mmseg':
        return {'type': _PACK[scope]}
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', *further)
    return {'type': _PACK[scope], 'meta_keys': keys}


def multi_scale_test(test: Pipeline, annotations: dict, scope: str) -> dict:
    """``tta_model`` and ``tta_pipeline``.

    For a segmentor without scales and flips of its own, they are those of the official
    ``test.py --aug-test``; without a ``Resize`` there is none.
    """
    images, scales, flips = test.images, test.scales, test.flips
    resize = next((step for step in images if step['type'] == 'Resize'), None)
    if resize is None and flips:
        raise ValueError('a test at several scales or with flips needs a Resize')
    if resize is None or not (flips or scope == 'mmseg'):
        return {}
    if not flips:
        scales = [tuple(int(side * r) for side in resize['scale']) for r in _AUG_TEST_RATIOS]
        flips = [None, 'horizontal']
    position = images.index(resize)
    augmentations = [
        [{**resize, 'scale': scale} for scale in scales],
        *([step] for step in images[position + 1 :]),
        [_flip(direction) for direction in flips],
        [annotations],
        [_pack(scope, 'flip', 'flip_direction')],
    ]
    model: dict[str, Any] = dict(type='MeanSoftmaxSegTTA')
    if scope == 'mmdet':
        nms = dict(type='nms', iou_threshold=0.5)
        model = dict(type='DetTTAModel', tta_cfg=dict(nms=nms, max_per_img=100))
    steps = [*images[:position], dict(type='TestTimeAug', transforms=augmentations)]
    return dict(tta_model=model, tta_pipeline=steps)


def _flip(direction: str | None) -> dict:
    other = {} if direction in (None, 'horizontal') else {'direction': direction}
    return dict(type='RandomFlip', prob=float(direction is not None), **other)


def migrate_preprocessor(train: Pipeline, test: Pipeline, scope: str, report: Report) -> dict:
    """``Normalize`` and ``Pad`` of the pipelines -> ``data_preprocessor``."""
    kinds = {'mmdet': 'DetDataPreprocessor', 'mmseg': 'SegDataPreProcessor'}
    new: dict[str, Any] = {'type': kinds[scope]}
    if train.normalize and test.normalize and train.normalize != test.normalize:
        why = 'training and test differ; the new config has that of test'
        report.problems.append(('train_pipeline.Normalize', why))
    if normalize := test.normalize or train.normalize:
        new.update(mean=normalize['mean'], std=normalize['std'])
        new['bgr_to_rgb'] = normalize.get('to_rgb', True)
    else:
        report.notes.append(('Normalize', 'the old pipelines have none: neither has the new one'))
    divisor = test.pad.get('size_divisor')
    if scope == 'mmdet':
        if train.annotations.get('with_mask'):
            new['pad_mask'] = True
        new['pad_size_divisor'] = divisor or 1
        differ = bool(train.pad) and train.pad != test.pad
        differ |= bool(test.pad) and not divisor
        differ |= test.pad.get('pad_val', 0) not in (0, dict(img=0, masks=0, seg=255))
    else:
        if 'size' in train.pad:
            new['size'] = tuple(train.pad['size'])
        new['pad_val'] = train.pad.get('pad_val', 0)
        new['seg_pad_val'] = train.pad.get('seg_pad_val', 255)
        if divisor:
            new['test_cfg'] = {'size_divisor': divisor}
        differ = 'size_divisor' in train.pad or 'size' in test.pad
    if differ:
        why = f'{train.pad} in training, {test.pad} in test: no rule for this'
        report.problems.append(('train_pipeline.Pad', why))
    return new


def migrate_dataset(olds: list[Settings], scope: str, root: str | None, train: bool) -> dict:
    """An entry of ``data`` -> ``dataset`` of a data loader, wrappers included.

    Paths below ``root`` become relative to it. The innermost data sets still have the old pipeline.
    """
    parts = []
    for old in olds:
        kind = old.take('type')
        if kind in ('RepeatDataset', 'ClassBalancedDataset'):
            inner = migrate_dataset(old.sections('dataset'), scope, root, train)
            parts.append({'type': kind, **old.keep('times oversample_thr'), 'dataset': inner})
        elif kind == 'ConcatDataset':
            inner = migrate_dataset(old.sections('datasets'), scope, root, train)
            parts += inner['datasets'] if inner['type'] == kind else [inner]
        else:
            if kind not in _DATASETS[scope].split():
                old.problem('type', f'the data set class {kind} must be ported to {scope}')
            pipeline = old.take('pipeline') or []
            found = _leaves_of(kind, old, scope, old.take('data_root') or root, train)
            parts += [{**leaf, 'pipeline': pipeline} for leaf in found]
    if len(parts) == 1:
        return parts[0]
    # VOC 2007 and 2012 differ in this key, which ConcatDataset would not accept.
    ignored = {'ignore_keys': ['dataset_type']} if parts[0]['type'] == 'VOCDataset' else {}
    return dict(type='ConcatDataset', datasets=parts, **ignored)


def _leaves_of(kind: str, old: Settings, scope: str, root: str | None, train: bool) -> list[dict]:
    """One data set of the new stack per annotation file or folder."""
    columns = [_listed(old.take(key)) for key in _FILES[scope]]
    count = max(map(len, columns))
    rows = list(zip(*(c * count if len(c) == 1 else c for c in columns), strict=True))
    new_kind = {'type': _RENAMED.get(kind, kind)}

    classes = old.take('classes', ('person',) if kind == 'CrowdHumanDataset' else None)
    if isinstance(classes, str) and ('/' in classes or '.' in classes):
        old.problem('classes', 'a file of names; write the names as a tuple')
    names = {'classes': tuple(_listed(classes))} if classes else {}
    names.update(old.keep('palette'))
    metainfo = {'metainfo': names} if names else {}

    if scope == 'mmseg':
        reduce = old.take('reduce_zero_label', kind in _REDUCE_ZERO_LABEL)
        zero = {'reduce_zero_label': reduce} if reduce or kind in _REDUCE_ZERO_LABEL else {}
        extra = {**zero, **metainfo, **old.keep('img_suffix seg_map_suffix ignore_index')}
        own_root = {'data_root': root} if root else {}
        return [
            {
                **new_kind,
                **own_root,
                **({'ann_file': split} if split else {}),
                'data_prefix': {'img_path': images, 'seg_map_path': labels},
                **extra,
            }
            for split, images, labels in rows
        ]

    extra = {**metainfo, **old.keep('label_file hierarchy_file meta_file image_level_ann_file')}
    if kind == 'OpenImagesDataset' and 'meta_file' not in extra:
        extra['meta_file'] = f'{posixpath.dirname(rows[0][0])}/train-image-metas.pkl'
        why = f'mmdet 3 needs the sizes of the images; expected in {extra["meta_file"]}'
        old.note('meta_file', why)
    # Written down: mmdet 3 filters nothing unless told to.
    filters = {**old.keep('filter_empty_gt=True'), 'min_size': 32}
    last = {'filter_cfg': filters} if train else {'test_mode': True}
    parts = []
    for ann_file, images in rows:
        paths = {'ann_file': ann_file, 'images': images or ''}
        paths |= {key: value for key, value in extra.items() if key.endswith('_file')}
        own_root = {}
        if root and all(_below(root, path) is not None for path in paths.values()):
            own_root = {'data_root': root}
            paths = {key: _below(root, path) for key, path in paths.items()}
        prefix = {'sub_data_root' if kind == 'VOCDataset' else 'img': paths.pop('images')}
        files = {'ann_file': paths.pop('ann_file'), 'data_prefix': prefix}
        parts.append({**new_kind, **own_root, **files, **extra, **paths, **last})
    return parts


def _below(root: str, path: str | None) -> str | None:
    """``path`` relative to ``root``; None if it is not in it."""
    folder = posixpath.join(root, '')
    for start in (folder, f'./{folder}'):
        if path and path.startswith(start):
            return path[len(start) :]
    return None


def leaves(dataset: dict) -> list[dict]:
    """The data sets inside all wrappers of a translated data set."""
    if 'datasets' in dataset:
        return [leaf for inner in dataset['datasets'] for leaf in leaves(inner)]
    return leaves(dataset['dataset']) if 'dataset' in dataset else [dataset]


def migrate_loaders(
    old: Settings, datasets: dict[str, dict], scope: str, by_epoch: bool
) -> dict[str, dict]:
    """Batch sizes, workers and samplers of ``data`` around the translated ``datasets``."""
    per_gpu, workers = old.take('samples_per_gpu', 1), old.take('workers_per_gpu', 0)
    persistent = old.take('persistent_workers')
    loaders = {}
    for split, dataset in datasets.items():
        own, train = old.section(f'{split}_dataloader'), split == 'train'
        count = own.take('workers_per_gpu', workers)
        aware, shuffle = own.take('class_aware_sampler'), own.take('shuffle', train)
        if aware and not by_epoch:
            own.note('', 'mmdet 2 ignored class_aware_sampler with IterBasedRunner')
        kind = 'InfiniteSampler' if train and not by_epoch else 'DefaultSampler'
        sampler = (
            {'type': 'ClassAwareSampler', **aware} if aware else dict(type=kind, shuffle=shuffle)
        )
        loader: dict[str, Any] = dict(
            batch_size=own.take('samples_per_gpu', per_gpu if train else 1),
            num_workers=count,
            persistent_workers=count > 0 if persistent is None else persistent,
            sampler=sampler,
        )
        if train and scope == 'mmdet' and not aware:
            # mmdet 2 grouped upright and lying images in its samplers.
            loader['batch_sampler'] = {'type': 'AspectRatioBatchSampler'}
        loader.update(own.keep('drop_last pin_memory'))
        if not train and scope == 'mmdet':
            loader.setdefault('drop_last', False)
        loaders[f'{split}_dataloader'] = {**loader, 'dataset': dataset}
    return loaders


def migrate_evaluation(old: Settings, loaders: dict, scope: str) -> tuple[dict, dict]:
    """The evaluators, and what the checkpoint hook keeps the best of."""
    metric, best = old.take('metric'), old.take('save_best')
    options = old.keep('classwise proposal_nums iou_thrs metric_items')
    new = {
        f'{split}_evaluator': _evaluator(metric, options, loader['dataset'], scope)
        for split in ('val', 'test')
        if (loader := loaders.get(f'{split}_dataloader'))
    }
    for name in options:
        if any(name not in evaluator for evaluator in new.values()):
            old.note(name, 'it is of COCO and LVIS only')
    if not best or 'val_evaluator' not in new:
        return new, {'save_best': best} if best else {}
    evaluator = new['val_evaluator']
    prefix, first = _BEST[evaluator['type']]
    if evaluator['type'] == 'CocoMetric':
        first = f'{_listed(evaluator["metric"])[0]}_mAP'
    return new, {'save_best': prefix + (first if best == 'auto' else best)}


def _evaluator(metric: Any, options: dict, dataset: dict, scope: str) -> dict:
    if scope == 'mmseg':
        return dict(type='IoUMetric', iou_metrics=_listed(metric or 'mIoU'))
    leaf, metric = leaves(dataset)[0], metric or 'bbox'
    kind, ann_file = leaf['type'], leaf.get('data_root', '') + (leaf['ann_file'] or '')
    if kind == 'VOCDataset':
        mode = '11points' if '2007' in leaf['data_prefix']['sub_data_root'] + ann_file else 'area'
        return dict(type='VOCMetric', metric=metric, eval_mode=mode)
    if kind == 'OpenImagesDataset':
        flags = dict(use_group_of=True, get_supercategory=True)
        return dict(type='OpenImagesMetric', iou_thrs=0.5, ioa_thrs=0.5, **flags)
    name = 'LVISMetric' if kind.startswith('LVIS') else 'CocoMetric'
    return dict(type=name, ann_file=ann_file, metric=metric, **options)
