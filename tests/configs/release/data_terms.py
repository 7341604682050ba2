"""Pipelines, data sets and evaluation in the terms of the official table."""

import inspect

from .model_terms import official_name
from .normal import leaf_datasets
from .zoo import resize_scale

_IMAGENET = {
    'mean': [123.675, 116.28, 103.53],
    'std': [58.395, 57.12, 57.375],
    'bgr_to_rgb': True,
}
_OFFICIAL_TRANSFORMS = {
    'MapillaryToCityscapes': {'mapillary_65_to_cityscapes_19_labels': True},
    'PhotoMetricDistortion': {'photometric_distortion': 'mmseg defaults'},
}


def transform_terms(transform, cfg):
    """The terms of one transform of today's stack; empty: the table does not speak of it."""
    t = dict(transform)
    kind = t.pop('type').removeprefix('internimage_mm.')
    if kind in ('LoadImageFromFile', 'PackDetInputs', 'PackSegInputs'):
        return []
    if kind == 'LoadAnnotations':
        return [{'load_annotations': _annotations(t, cfg)}]
    if kind == 'Resize':
        return [{'resize': {'scale': resize_scale(t.pop('scale')), **t}}]
    if kind == 'RandomResize':
        scale = t.pop('scale')
        if isinstance(scale, list):
            # Between two scales; the long edge is the same, so only the short one is drawn.
            scales = [resize_scale(s) for s in scale]
            assert scales[0][0] == scales[1][0]
            return [{'resize': {'scales': scales, 'select': 'uniform_range_short_edge', **t}}]
        ratio_range = list(t.pop('ratio_range'))
        return [{'resize': {'scale': resize_scale(scale), 'ratio_range': ratio_range, **t}}]
    if kind == 'RandomChoiceResize':
        scales = [resize_scale(s) for s in t.pop('scales')]
        return [{'resize': {'scales': scales, 'select': 'one_of', **t}}]
    if kind == 'ResizeToMultiple':
        # mmseg rounds up and interpolates linearly.
        return [{'resize_to_multiple': {**t, 'rounding': 'ceil', 'interpolation': 'bilinear'}}]
    if kind == 'RandomFlip':
        assert set(t) == {'prob'}
        return [{'random_hflip': t['prob']}]
    if kind == 'RandomCrop':
        return [{'random_crop': {**t, 'crop_size': list(t['crop_size'])}}]
    if kind in _OFFICIAL_TRANSFORMS:
        assert not t
        return [_OFFICIAL_TRANSFORMS[kind]]
    if kind == 'RandomChoice':
        return [{'one_of_branches': [pipeline_terms(branch, cfg) for branch in t['transforms']]}]
    raise AssertionError(f'no official counterpart known for {kind}')


def pipeline_terms(transforms, cfg):
    return [term for transform in transforms for term in transform_terms(transform, cfg)]


def _annotations(t, cfg):
    if cfg.default_scope == 'mmseg':
        rules = {leaf.get('reduce_zero_label', _class_default(leaf)) for leaf in train_leaves(cfg)}
        (rule,) = rules
        # The transform takes the rule from the data set, and does not accept another one.
        assert t.get('reduce_zero_label', rule) is rule
        return {'reduce_zero_label': rule}
    terms = {key.removeprefix('with_'): value for key, value in t.items() if value}
    if train_leaves(cfg)[0]['type'] == 'OpenImagesDataset':
        # Its data set turns relative boxes into pixels, which the old LoadAnnotations did.
        terms['denorm_bbox'] = True
    return terms


def _class_default(leaf):
    """reduce_zero_label of a data set class of mmseg, by its constructor."""
    from mmseg.registry import DATASETS

    cls = DATASETS.get(leaf['type'])
    for base in cls.__mro__:
        parameters = inspect.signature(base.__init__).parameters
        if 'reduce_zero_label' in parameters:
            return parameters['reduce_zero_label'].default
    raise AssertionError(cls)


def preprocessor_terms(preprocessor, training):
    """What the old stack did at the end of its pipeline."""
    p = dict(preprocessor)
    assert {key: p.pop(key) for key in _IMAGENET} == _IMAGENET
    terms = [{'normalize': 'imagenet_rgb'}]
    if p.pop('type') == 'DetDataPreprocessor':
        # Masks are padded with the images wherever there are masks (a test of its own).
        p.pop('pad_mask', None)
        assert set(p) == {'pad_size_divisor'}
        terms.append({'pad': {'size_divisor': p['pad_size_divisor']}})
    elif training:
        p.pop('test_cfg', None)
        terms.append({'pad': {**p, 'size': list(p['size'])}})
    else:
        assert not p.get('test_cfg')
    return terms


def train_pipeline(cfg):
    first, *others = [leaf['pipeline'] for leaf in train_leaves(cfg)]
    assert all(other == first for other in others)
    terms = pipeline_terms(first, cfg)
    terms += preprocessor_terms(cfg.model.data_preprocessor, True)
    if official_name(cfg.model.get('decode_head', {}).get('type', '')) == 'Mask2FormerHead':
        # mmseg's head makes one mask of every class; label 255 belongs to none.
        terms.append({'semseg_to_class_masks': {'ignore_index': 255}})
    return terms


def test_pipeline(cfg):
    """Of validation and test, which must agree."""
    (leaf,) = leaf_datasets(cfg.test_dataloader.dataset)
    (val_leaf,) = leaf_datasets(cfg.val_dataloader.dataset)
    assert leaf['pipeline'] == val_leaf['pipeline']
    assert cfg.test_dataloader.batch_size == cfg.val_dataloader.batch_size == 1
    terms = pipeline_terms(leaf['pipeline'], cfg)
    # The ground truth is loaded after the last resize.
    assert 'load_annotations' in terms.pop()
    terms += preprocessor_terms(cfg.model.data_preprocessor, False)
    described = {'test_scale': terms[0]['resize'].pop('scale'), 'flip': False}
    terms[0]['resize']['scale'] = 'from test_scale'
    if cfg.get('test_with_tta'):
        described.update(_multi_scale(cfg, described['test_scale']))
    return {**described, 'ops': terms}


def _multi_scale(cfg, test_scale):
    """The augmentations of a test that is multi-scale by the config."""
    _, augmentation = cfg.tta_pipeline
    resizes, *_, flips, annotations, pack = augmentation['transforms']
    assert annotations[0]['type'] == 'LoadAnnotations' and pack[0]['type'] == 'PackSegInputs'
    assert [flip['prob'] for flip in flips] == [0.0, 1.0]
    assert all(resize['keep_ratio'] for resize in resizes)
    ratios = [max(resize['scale']) / max(test_scale) for resize in resizes]
    short = [min(resize['scale']) / min(test_scale) for resize in resizes]
    assert max(abs(a - b) for a, b in zip(ratios, short, strict=True)) < 2 / min(test_scale)
    return {'flip': True, 'img_ratios': [round(ratio, 6) for ratio in ratios]}


def train_leaves(cfg):
    return leaf_datasets(cfg.train_dataloader.dataset)


def _only(values):
    """One value instead of a list of one."""
    return values[0] if len(values) == 1 else values


_OFFICIAL_DATASETS = {'MapillaryCityscapesDataset': 'MapillaryDataset'}


def _types(leaves):
    (kind,) = {leaf['type'].removeprefix('internimage_mm.') for leaf in leaves}
    return _OFFICIAL_DATASETS.get(kind, kind)


def dataset(cfg):
    train, test = train_leaves(cfg), leaf_datasets(cfg.test_dataloader.dataset)
    described = {'train_type': _types(train), 'test_type': _types(test)}
    for split, leaves in (('train', train), ('test', test)):
        if cfg.default_scope == 'mmseg':
            prefixes = [leaf['data_prefix'] for leaf in leaves]
            described[f'{split}_img_dir'] = _only([p['img_path'] for p in prefixes])
            described[f'{split}_ann_dir'] = _only([p['seg_map_path'] for p in prefixes])
            if any(leaf.get('ann_file') for leaf in leaves):
                described[f'{split}_split'] = _only([leaf['ann_file'] for leaf in leaves])
        else:
            roots = [(leaf.get('data_root') or '').removeprefix('data/') for leaf in leaves]
            files = [
                root + leaf['ann_file'].removeprefix('data/')
                for root, leaf in zip(roots, leaves, strict=True)
            ]
            described[f'{split}_ann'] = _only(files)
    if cfg.default_scope == 'mmseg':
        (rule,) = {leaf.get('reduce_zero_label', _class_default(leaf)) for leaf in train}
        if rule is not _class_default(train[0]):
            described['reduce_zero_label'] = rule
        return described
    filters = [leaf.get('filter_cfg') or {} for leaf in train]
    (described['filter_empty_gt'],) = {f.get('filter_empty_gt', False) for f in filters}
    # What mmdet 2 always did; mmdet 3 does it by request.
    assert {f.get('min_size') for f in filters} == {32}
    outer = cfg.train_dataloader.dataset
    if outer['type'] in ('ClassBalancedDataset', 'RepeatDataset'):
        described['wrapper'] = outer['type']
        if 'oversample_thr' in outer:
            described['oversample_thr'] = outer['oversample_thr']
        if 'times' in outer:
            described['repeat_times'] = outer['times']
    sampler = cfg.train_dataloader.sampler
    if sampler.type == 'ClassAwareSampler':
        rest = {key: value for key, value in sampler.items() if key != 'type'}
        described['train_dataloader'] = {'class_aware_sampler': rest}
    return described


_AUTO = {
    # What save_best='auto' selected in the old stack: the first number of the first metric.
    'CocoMetric': 'coco/bbox_mAP',
    'LVISMetric': 'lvis/bbox_AP',
    'VOCMetric': 'pascal_voc/mAP',
    'OpenImagesMetric': 'openimages/AP50',
}


def evaluation(cfg):
    evaluator, checkpoint = cfg.val_evaluator, cfg.default_hooks.checkpoint
    # VOC 2012 is tested with another integration of the curve than VOC 2007 is validated with.
    free = {'eval_mode'} if evaluator.type == 'VOCMetric' else set()
    assert {k: v for k, v in cfg.test_evaluator.items() if k not in free} == {
        k: v for k, v in evaluator.items() if k not in free
    }
    described = {'interval': cfg.train_cfg.val_interval}
    best = checkpoint.get('save_best')
    if cfg.default_scope == 'mmseg':
        assert evaluator.type == 'IoUMetric'
        # pre_eval: results became areas of intersection and union at once, as IoUMetric does.
        described.update(metric=_only(evaluator.iou_metrics), pre_eval=True, save_best=best)
        return described
    if best is not None:
        described['save_best'] = 'auto' if best == _AUTO[evaluator.type] else best
    (leaf,) = leaf_datasets(cfg.val_dataloader.dataset)
    if evaluator.type in ('CocoMetric', 'LVISMetric'):
        assert evaluator.ann_file == leaf['data_root'] + leaf['ann_file']
        described['metric'] = evaluator.metric
        if evaluator.get('classwise'):
            described['classwise'] = True
    else:
        described['metric'] = 'mAP'
    return described
