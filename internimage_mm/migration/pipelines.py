"""Data pipelines: the transforms, and what moved from them into the data preprocessor.

``scope`` is ``'mmdet'`` or ``'mmseg'`` throughout.
"""

from dataclasses import dataclass, field
from typing import Any

from .report import Report, Settings, shorten

# Transforms that kept name and arguments.
_UNCHANGED = {
    'mmdet': {
        'CutOut': ('n_holes', 'cutout_shape', 'cutout_ratio', 'fill_in'),
        'Expand': ('mean', 'to_rgb', 'ratio_range', 'seg_ignore_label', 'prob'),
        'MinIoURandomCrop': ('min_ious', 'min_crop_size', 'bbox_clip_border'),
        'PhotoMetricDistortion': (
            'brightness_delta',
            'contrast_range',
            'saturation_range',
            'hue_delta',
        ),
    },
    'mmseg': {
        'AdjustGamma': ('gamma',),
        'CLAHE': ('clip_limit', 'tile_grid_size'),
        'PhotoMetricDistortion': (
            'brightness_delta',
            'contrast_range',
            'saturation_range',
            'hue_delta',
        ),
        'RandomRotate': ('prob', 'degree', 'pad_val', 'seg_pad_val', 'center', 'auto_bound'),
        'RGB2Gray': ('out_channels', 'weights'),
        'ResizeToMultiple': ('size_divisor', 'interpolation'),
    },
}
# Formatting: one Pack...Inputs does all of it.
_FORMATTING = ('Collect', 'DefaultFormatBundle', 'ImageToTensor', 'ToMask')
# What the official segmentation test.py --aug-test multiplied the test scale by, with flips.
AUG_TEST_RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
_PACK = {'mmdet': 'PackDetInputs', 'mmseg': 'PackSegInputs'}


@dataclass
class Pipeline:
    """A translated pipeline, and what the old one did that is the data preprocessor's now."""

    transforms: list[dict] = field(default_factory=list)
    normalize: dict | None = None
    pad: dict | None = None
    annotations: dict | None = None
    """The ``LoadAnnotations`` of the new pipeline."""
    class_masks: bool = False
    """Whether the label map was split into one mask per class (Mask2Former)."""
    scales: list = field(default_factory=list)
    """All scales of a test-time augmentation, (long, short)."""
    flips: list = field(default_factory=list)
    """The flips of a test-time augmentation; empty without it."""


def migrate_pipeline(pipeline: list[dict], path: str, scope: str, report: Report) -> Pipeline:
    """Translate a training pipeline, or one that loads a test image without ground truth."""
    new = Pipeline()
    new.transforms = _transforms(pipeline, path, scope, report, new)
    return new


def _transforms(steps: list[dict], path: str, scope: str, report: Report, new: Pipeline) -> list:
    transforms = []
    for index, step in enumerate(steps):
        t = Settings(step, f'{path}[{index}]', report)
        kind = t.take('type')
        t.path += f'.{kind}'
        done = _transform(kind, t, scope, new)
        if done is None:
            report.problem(t.path, f'no rule for the transform {shorten(step)}')
            continue
        t.close()
        transforms += done
    return transforms


def _transform(kind: str, t: Settings, scope: str, new: Pipeline) -> list[dict] | None:
    """The transforms that ``t`` becomes; None if nothing is known about it."""
    if kind == 'LoadImageFromFile':
        return [{'type': kind, **_loading(t)}]
    if kind == 'LoadAnnotations':
        new.annotations = {'type': kind, **_annotations(t, scope)}
        return [new.annotations]
    if kind == 'MapillaryHack':
        return [{'type': 'MapillaryToCityscapes'}]
    if kind == 'Resize':
        return [_resize(t, scope)]
    if kind == 'RandomFlip':
        prob = t.take('flip_ratio', t.take('prob'))
        return [{'type': kind, 'prob': prob, **t.take_existing('direction')}]
    if kind == 'RandomCrop':
        return [_random_crop(t, scope)]
    if kind == 'AutoAugment':
        branches = [
            _transforms(steps, f'{t.path}.policies[{i}]', scope, t.report, new)
            for i, steps in enumerate(t.take('policies'))
        ]
        return [{'type': 'RandomChoice', 'transforms': branches}]
    if kind == 'Normalize':
        new.normalize = t.take_existing('mean', 'std', 'to_rgb')
        return []
    if kind == 'Pad':
        new.pad = t.take_existing('size', 'size_divisor', 'pad_val', 'seg_pad_val')
        return []
    if kind in _FORMATTING:
        new.class_masks |= kind == 'ToMask'
        t.ignore('meta_keys', why='PackInputs has its own')
        t.take('keys')
        t.take('ignore_index', 255)
        return [{'type': _PACK[scope]}] if kind == 'Collect' else []
    if kind in _UNCHANGED[scope]:
        return [{'type': kind, **t.take_existing(*_UNCHANGED[scope][kind])}]
    return None


def _loading(t: Settings) -> dict:
    new = t.take_existing('to_float32', 'color_type', 'imdecode_backend')
    files = dict(t.take('file_client_args') or {'backend': 'disk'})
    if files.pop('backend', 'disk') != 'disk' or files:
        t.report.problem(f'{t.path}.file_client_args', 'give backend_args in the new config')
    return new


def _annotations(t: Settings, scope: str) -> dict:
    if scope == 'mmseg':
        t.ignore('imdecode_backend', 'pillow', why='mmseg decodes label maps by pillow')
        return t.take_existing('reduce_zero_label')
    if t.take('denorm_bbox', False):
        t.report.note(t.path, 'denorm_bbox: the OpenImages data set gives boxes in pixels now')
    return t.take_existing('with_bbox', 'with_label', 'with_mask', 'with_seg', 'poly2mask')


def _resize(t: Settings, scope: str) -> dict:
    scale = t.take('img_scale')
    mode = t.take('multiscale_mode', 'range')
    ratios = t.take('ratio_range')
    keep = {'keep_ratio': t.take('keep_ratio', True)}
    # It allowed a second Resize, which needs no permission now.
    t.take('override')
    keep.update(t.take_existing('interpolation', 'backend', 'bbox_clip_border'))
    if scale is not None and not isinstance(scale, list):
        scale = [scale]
    if scale is None:
        if ratios is None:
            t.report.problem(t.path, 'it has no img_scale; give the new Resize a scale')
            return {'type': 'Resize', **keep}
        t.report.problem(
            t.path, 'ratio_range without img_scale resizes the original image: use scale_factor'
        )
        return {'type': 'RandomResize', 'ratio_range': ratios, **keep}
    if ratios is not None:
        return {'type': 'RandomResize', 'scale': tuple(scale[0]), 'ratio_range': ratios, **keep}
    if len(scale) == 1:
        return {'type': 'Resize', 'scale': tuple(scale[0]), **keep}
    scales = [tuple(s) for s in scale]
    if mode == 'value':
        return {'type': 'RandomChoiceResize', 'scales': scales, **keep}
    return {'type': 'RandomResize', 'scale': scales, **keep}


def _random_crop(t: Settings, scope: str) -> dict:
    size = tuple(t.take('crop_size'))
    if scope == 'mmseg':
        return {'type': 'RandomCrop', 'crop_size': size, **t.take_existing('cat_max_ratio')}
    kind = t.take('crop_type', 'absolute')
    if kind != 'absolute_range':  # which has the smallest and the largest edge
        size = size[::-1]  # mmdet 2: (height, width), mmdet 3: (width, height)
    rest = t.take_existing('allow_negative_crop', 'recompute_bbox', 'bbox_clip_border')
    return {'type': 'RandomCrop', 'crop_type': kind, 'crop_size': size, **rest}


def migrate_test_pipeline(pipeline: list[dict], path: str, scope: str, report: Report) -> Pipeline:
    """Translate a test pipeline around ``MultiScaleFlipAug``, without its ground truth.

    The result is the single-scale pipeline up to the last transform of the image; scales and flips
    of a multi-scale test are in ``scales`` and ``flips``.
    """
    new = Pipeline()
    for index, step in enumerate(pipeline):
        if step['type'] != 'MultiScaleFlipAug':
            here = f'{path}[{index}]'
            new.transforms += _transforms([step], here, scope, report, new)
            continue
        t = Settings(step, f'{path}[{index}].MultiScaleFlipAug', report)
        t.take('type')
        scale, flip = t.take('img_scale'), t.take('flip', False)
        ratios = t.take('img_ratios', t.take('scale_factor'))
        directions = t.take('flip_direction', 'horizontal')
        inner = t.take('transforms')
        t.close()
        scales = [tuple(s) for s in (scale if isinstance(scale, list) else [scale]) if s]
        if not scales:
            report.problem(t.path, 'it has no img_scale; give the Resize of test_pipeline one')
        for i, nested in enumerate(inner):
            here = f'{t.path}.transforms[{i}]'
            if nested['type'] == 'Resize' and scales:
                nested = {'img_scale': scales[0], **nested}
            elif nested['type'] == 'RandomFlip':
                continue  # did what `flip` says
            new.transforms += _transforms([nested], here, scope, report, new)
        if flip or len(scales) > 1 or ratios not in (None, [1.0], 1.0):
            factors = ratios if isinstance(ratios, (list, tuple)) else [ratios or 1.0]
            new.scales = [
                tuple(int(side * factor) for side in one) for one in scales for factor in factors
            ]
            directions = [directions] if isinstance(directions, str) else directions
            new.flips = [None, *directions] if flip else [None]
    pack = _PACK[scope]
    new.transforms = [step for step in new.transforms if step['type'] != pack]
    return new


def with_ground_truth(images: list[dict], annotations: dict, scope: str, kind: str) -> list[dict]:
    """A test pipeline that loads the ground truth, in its original size, after the image.

    Args:
        images: The transforms of the image.
        annotations: How the ground truth is loaded.
        scope: ``'mmdet'`` or ``'mmseg'``.
        kind: The class of the data set.
    """
    return [*images, annotations, _pack(scope, images=kind == 'OpenImagesDataset')]


def multi_scale_test(new: Pipeline, annotations: dict, scope: str) -> tuple[dict, list[dict]]:
    """``tta_model`` and ``tta_pipeline``.

    Args:
        new: The test pipeline, with several scales or flips. For a segmentor without them, those
            of the official ``test.py --aug-test`` are taken.
        annotations: How the ground truth is loaded.
        scope: ``'mmdet'`` or ``'mmseg'``.
    """
    resize = next((step for step in new.transforms if step['type'] == 'Resize'), None)
    if resize is None:
        raise ValueError('a test at several scales or with flips needs a Resize')
    position = new.transforms.index(resize)
    scales, flips = new.scales, new.flips
    if not flips:
        scales = [tuple(int(side * r) for side in resize['scale']) for r in AUG_TEST_RATIOS]
        flips = [None, 'horizontal']
    augmentations = [
        [{**resize, 'scale': scale} for scale in scales],
        *([step] for step in new.transforms[position + 1 :]),
        [_certain_flip(direction) for direction in flips],
        [annotations],
        [_pack(scope, flip=True)],
    ]
    model: dict[str, Any] = {'type': 'MeanSoftmaxSegTTA'}
    if scope == 'mmdet':
        tta_cfg = {'nms': {'type': 'nms', 'iou_threshold': 0.5}, 'max_per_img': 100}
        model = {'type': 'DetTTAModel', 'tta_cfg': tta_cfg}
    steps = [*new.transforms[:position], {'type': 'TestTimeAug', 'transforms': augmentations}]
    return model, steps


def _certain_flip(direction: str | None) -> dict:
    if direction in (None, 'horizontal'):
        return {'type': 'RandomFlip', 'prob': 0.0 if direction is None else 1.0}
    return {'type': 'RandomFlip', 'prob': 1.0, 'direction': direction}


def _pack(scope: str, flip: bool = False, images: bool = False) -> dict:
    """The last step of a test pipeline; mmdet's needs to be told what to keep."""
    if scope == 'mmseg':
        return {'type': _PACK[scope]}
    keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    flips = ('flip', 'flip_direction') if flip else ()
    # What OpenImagesMetric evaluates with.
    labels = ('instances', 'image_level_labels') if images else ()
    return {'type': _PACK[scope], 'meta_keys': (*keys, *flips, *labels)}


def migrate_preprocessor(
    train: Pipeline, test: Pipeline, scope: str, report: Report
) -> dict[str, Any]:
    """``Normalize`` and ``Pad`` of the pipelines -> ``data_preprocessor``."""
    normalize = test.normalize or train.normalize
    if train.normalize and test.normalize and train.normalize != test.normalize:
        report.problem(
            'train_pipeline.Normalize', 'training and test differ; the new config has that of test'
        )
    new: dict[str, Any] = {
        'type': 'DetDataPreprocessor' if scope == 'mmdet' else 'SegDataPreProcessor'
    }
    if normalize is None:
        report.note('Normalize', 'the old pipelines have none: neither has the new config')
    else:
        new.update(mean=normalize['mean'], std=normalize['std'])
        new['bgr_to_rgb'] = normalize.get('to_rgb', True)
    train_pad, test_pad = train.pad or {}, test.pad or {}
    if scope == 'mmdet':
        if train.annotations and train.annotations.get('with_mask'):
            new['pad_mask'] = True
        divisor = test_pad.get('size_divisor')
        if (train.pad and train.pad != test.pad) or (test_pad and not divisor):
            report.problem('train_pipeline.Pad', f'{train_pad} in training, {test_pad} in test')
        new['pad_size_divisor'] = divisor or 1
        if test_pad.get('pad_val', 0) not in (0, dict(img=0, masks=0, seg=255)):
            report.problem('test_pipeline.Pad.pad_val', f'{test_pad["pad_val"]}')
    else:
        if train_pad.get('size_divisor') or test_pad.get('size'):
            report.problem('train_pipeline.Pad', f'{train_pad} in training, {test_pad} in test')
        if 'size' in train_pad:
            new['size'] = tuple(train_pad['size'])
        new['pad_val'] = train_pad.get('pad_val', 0)
        new['seg_pad_val'] = train_pad.get('seg_pad_val', 255)
        if divisor := test_pad.get('size_divisor'):
            new['test_cfg'] = {'size_divisor': divisor}
    return new
