"""The COCO and ADE20K configs against the official release, setting by setting.

``golden/model_zoo_det_seg.yaml`` holds the settings of the official configs,
``golden/optimizer`` the parameter counts and optimizer groups of the official models.
"""

import copy
import functools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from golden_optim import assert_matches_golden, golden_optim_names, load_golden_optim
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import (
    DATASETS,
    HOOKS,
    METRICS,
    MODELS,
    PARAM_SCHEDULERS,
    DefaultScope,
)

from internimage_mm.backbones import InternImage
from internimage_mm.backbones.presets import architecture

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / 'tests' / 'golden'
ZOO = yaml.safe_load((GOLDEN / 'model_zoo_det_seg.yaml').read_text())
IMAGENET = {
    'mean': [123.675, 116.28, 103.53],
    'std': [58.395, 57.12, 57.375],
    'bgr_to_rgb': True,
}


def official_config(model):
    """Path of the official config in its repository, from a metafile's model."""
    *_, path = model['Converted From']['Code'].partition('/blob/')
    return path.split('/', 1)[1]


MODELS_OF_RELEASE = {
    model['Name']: model
    for folder in ('coco', 'ade20k')
    for model in yaml.safe_load((ROOT / 'configs' / folder / 'metafile.yml').read_text())['Models']
    if official_config(model) in ZOO
}
MASK_RCNN = [name for name in MODELS_OF_RELEASE if name.startswith('mask-rcnn')]
UPERNET = [name for name in MODELS_OF_RELEASE if name.startswith('upernet')]

# Cases that were not recorded, and a recorded one of the same model and optimizer settings.
SAME_OPTIMIZER = {
    'coco/mask_rcnn_internimage_s_fpn_1x_coco': 'coco/mask_rcnn_internimage_s_fpn_3x_coco',
    'ade20k/upernet_internimage_b_512_160k_ade20k': (
        'cityscapes/upernet_internimage_b_512x1024_160k_cityscapes'
    ),
    'ade20k/upernet_internimage_xl_640_160k_ade20k': (
        'cityscapes/upernet_internimage_xl_512x1024_160k_cityscapes'
    ),
}


@pytest.fixture(params=MODELS_OF_RELEASE)
def model_name(request):
    return request.param


@functools.cache
def load(name):
    return Config.fromfile(ROOT / MODELS_OF_RELEASE[name]['Config'])


@pytest.fixture
def cfg(model_name):
    cfg = load(model_name)
    if cfg.default_scope == 'mmdet':
        from mmdet.utils import register_all_modules
    else:
        from mmseg.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        yield cfg


@pytest.fixture
def official(model_name):
    return ZOO[official_config(MODELS_OF_RELEASE[model_name])]


@functools.cache
def build_on_meta(name):
    with torch.device('meta'):
        return MODELS.build(load(name).model)


def scale(size):
    """A resize scale in the official notation, which does not care for the order."""
    return [max(size), min(size)]


def describe(transform):
    """One transform of today's stack in the terms of the golden file; None: it has no term."""
    t = dict(transform)
    kind = t.pop('type')
    if kind in ('LoadImageFromFile', 'PackDetInputs', 'PackSegInputs'):
        return None
    if kind == 'LoadAnnotations':
        keys = {'with_bbox': 'bbox', 'with_mask': 'mask', 'reduce_zero_label': 'reduce_zero_label'}
        return {'load_annotations': {keys[key]: value for key, value in t.items()}}
    if kind == 'Resize':
        return {'resize': {'scale': scale(t.pop('scale')), **t}}
    if kind == 'RandomResize':
        ratio_range = list(t.pop('ratio_range'))
        return {'resize': {'scale': scale(t.pop('scale')), 'ratio_range': ratio_range, **t}}
    if kind == 'RandomChoiceResize':
        scales = [scale(s) for s in t.pop('scales')]
        return {'resize': {'scales': scales, 'select': 'one_of', **t}}
    if kind == 'ResizeToMultiple':
        assert set(t) == {'size_divisor'}
        # mmseg rounds up and interpolates linearly.
        return {'resize_to_multiple': {**t, 'rounding': 'ceil', 'interpolation': 'bilinear'}}
    if kind == 'RandomFlip':
        assert set(t) == {'prob'}
        return {'random_hflip': t['prob']}
    if kind == 'RandomCrop':
        return {'random_crop': {**t, 'crop_size': list(t['crop_size'])}}
    if kind == 'PhotoMetricDistortion':
        assert not t
        return {'photometric_distortion': 'mmseg defaults'}
    if kind == 'RandomChoice':
        return {'one_of_branches': [describe_all(branch) for branch in t['transforms']]}
    raise AssertionError(f'no official counterpart known for {kind}')


def describe_all(transforms):
    return [term for term in map(describe, transforms) if term is not None]


def describe_preprocessor(preprocessor, training):
    """What the old stack did at the end of its pipeline."""
    p = dict(preprocessor)
    assert {key: p.pop(key) for key in IMAGENET} == IMAGENET
    terms = [{'normalize': 'imagenet_rgb'}]
    if p.pop('type') == 'DetDataPreprocessor':
        assert p == {'pad_mask': True, 'pad_size_divisor': 32}
        terms.append({'pad': {'size_divisor': 32}})
    elif training:
        terms.append({'pad': {**p, 'size': list(p['size'])}})
    return terms


def official_terms(pipeline):
    """The official pipeline with every scale as (long, short)."""
    terms = []
    for term in pipeline:
        ((kind, value),) = term.items()
        if kind == 'resize' and 'scales' in value:
            value = {**value, 'scales': [scale(s) for s in value['scales']]}
        elif kind == 'one_of_branches':
            value = [official_terms(branch) for branch in value]
        terms.append({kind: value})
    return terms


def test_every_official_model_has_a_config():
    assert {official_config(model) for model in MODELS_OF_RELEASE.values()} == set(ZOO)


def test_metafile_numbers(model_name, cfg, official):
    model = MODELS_OF_RELEASE[model_name]
    results = official['results']
    metrics = {k: v for result in model['Results'] for k, v in result['Metrics'].items()}
    if cfg.default_scope == 'mmdet':
        assert metrics == {'box AP': results['box_mAP'], 'mask AP': results['mask_mAP']}
        assert model['Metadata']['Epochs'] == official['schedule']['max_epochs']
    else:
        assert metrics == {'mIoU': results['mIoU_ss'], 'mIoU(ms+flip)': results['mIoU_ms']}
        assert model['Metadata']['Iterations'] == official['schedule']['max_iters']
    assert model['Metadata']['Batch Size'] == official['batch']['total']
    assert model['Metadata']['FLOPs'] == float(results['flops'].replace('G', 'e9'))
    assert model['Weights'] == model['Converted From']['Weights'] == results['checkpoint']


def test_backbone(cfg, official):
    given = dict(cfg.model.backbone)
    assert given.pop('init_cfg') == {
        'type': 'Pretrained',
        'checkpoint': official['pretrained_backbone'],
    }
    # Not left to a preset or a default: they belong to the training recipe.
    assert {'arch', 'drop_path_rate', 'with_cp', 'out_indices'} <= set(given)
    settings = {**InternImage.DEFAULTS, **architecture(given.pop('arch')), **given}
    expected = dict(official['backbone'])
    del expected['variant']
    settings['out_indices'] = list(settings['out_indices'])
    assert {key: settings[key] for key in expected} == expected


@pytest.mark.parametrize('model_name', MASK_RCNN)
def test_mask_rcnn_heads(cfg, official):
    model, heads = cfg.model, official['heads']
    assert model.type == 'MaskRCNN'
    assert model.neck == official['neck']
    anchors = model.rpn_head.anchor_generator
    roi, rcnn_train, rcnn_test = model.roi_head, model.train_cfg.rcnn, model.test_cfg.rcnn

    def proposals(settings):
        assert settings.nms.type == 'nms'
        return {
            'nms_pre': settings.nms_pre,
            'max_per_img': settings.max_per_img,
            'nms_iou': settings.nms.iou_threshold,
        }

    assert {
        'base': heads['base'],
        'num_classes': roi.bbox_head.num_classes,
        'rpn': {
            'anchor_scales': anchors.scales,
            'ratios': anchors.ratios,
            'strides': anchors.strides,
            'loss_bbox': model.rpn_head.loss_bbox.type,
            'train': {
                'pos_iou': model.train_cfg.rpn.assigner.pos_iou_thr,
                'neg_iou': model.train_cfg.rpn.assigner.neg_iou_thr,
                'num': model.train_cfg.rpn.sampler.num,
                'pos_fraction': model.train_cfg.rpn.sampler.pos_fraction,
                **proposals(model.train_cfg.rpn_proposal),
            },
            'test': proposals(model.test_cfg.rpn),
        },
        'rcnn': {
            'bbox_head': roi.bbox_head.type,
            'reg_class_agnostic': roi.bbox_head.reg_class_agnostic,
            'bbox_stds': roi.bbox_head.bbox_coder.target_stds,
            'loss_bbox': roi.bbox_head.loss_bbox.type,
            'train': {
                'iou_thr': rcnn_train.assigner.pos_iou_thr,
                'match_low_quality': rcnn_train.assigner.match_low_quality,
                'num': rcnn_train.sampler.num,
                'pos_fraction': rcnn_train.sampler.pos_fraction,
                'mask_size': rcnn_train.mask_size,
            },
            'test': {
                'score_thr': rcnn_test.score_thr,
                'nms': {'nms': 'hard'}[rcnn_test.nms.type],
                'nms_iou': rcnn_test.nms.iou_threshold,
                'max_per_img': rcnn_test.max_per_img,
                'mask_thr_binary': rcnn_test.mask_thr_binary,
            },
        },
    } == heads
    assert roi.mask_head.num_classes == heads['num_classes']
    assert rcnn_train.assigner.neg_iou_thr == heads['rcnn']['train']['iou_thr']
    # The rest is `base` of the golden file: mmdet's own Mask R-CNN.
    import mmdet

    stock = Config.fromfile(
        Path(mmdet.__file__).parent / '.mim/configs/_base_/models/mask-rcnn_r50_fpn.py'
    ).model
    for part in ('data_preprocessor', 'rpn_head', 'roi_head', 'train_cfg', 'test_cfg'):
        assert model[part] == stock[part]


@pytest.mark.parametrize('model_name', UPERNET)
def test_upernet_heads(cfg, official):
    assert cfg.model.type == 'EncoderDecoder'
    assert cfg.model.test_cfg == official['test_mode']
    for name, expected in official['heads'].items():
        head = cfg.model[name]
        loss = head.loss_decode
        assert loss.type == 'CrossEntropyLoss' and not loss.use_sigmoid
        assert head.norm_cfg == {'type': 'SyncBN', 'requires_grad': True}
        described = {
            **head,
            'pool_scales': list(head.get('pool_scales', [])),
            'norm': head.norm_cfg.type,
            'loss': f'CrossEntropy w={loss.loss_weight}',
        }
        assert {key: described[key] for key in expected} == expected
    assert cfg.model.decode_head.in_index == [0, 1, 2, 3]


def test_train_pipeline(cfg, official):
    pipeline = cfg.train_dataloader.dataset.pipeline
    described = describe_all(pipeline) + describe_preprocessor(cfg.model.data_preprocessor, True)
    assert described == official_terms(official['train_pipeline'])


def test_test_pipeline(cfg, official):
    expected = official['test_pipeline']
    assert expected['flip'] is False
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        described = describe_all(loader.dataset.pipeline)
        # The ground truth is loaded after the last resize.
        assert 'load_annotations' in described.pop()
        described += describe_preprocessor(cfg.model.data_preprocessor, False)
        assert described[0]['resize'].pop('scale') == scale(expected['test_scale'])
        described[0]['resize']['scale'] = 'from test_scale'
        assert described == expected['ops']
        assert loader.batch_size == 1


def test_pipelines_run(cfg, tmp_path):
    height, width = 120, 170
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'image.png'), image)
    cv2.imwrite(str(tmp_path / 'labels.png'), np.full((height, width), 3, np.uint8))
    info = {
        'img_path': str(tmp_path / 'image.png'),
        'img_id': 1,
        'height': height,
        'width': width,
        'instances': [
            {
                'bbox': [10, 20, 150, 110],
                'bbox_label': 2,
                'ignore_flag': 0,
                'mask': [[10, 20, 150, 20, 150, 110, 10, 110]],
            }
        ],
        'seg_map_path': str(tmp_path / 'labels.png'),
        'label_map': None,
        'reduce_zero_label': True,
        'seg_fields': [],
    }
    torch.manual_seed(0)
    np.random.seed(0)
    preprocess = MODELS.build(cfg.model.data_preprocessor)
    for loader, training in ((cfg.train_dataloader, True), (cfg.test_dataloader, False)):
        pack = Compose(loader.dataset.pipeline)(copy.deepcopy(info))
        if not training:
            # By hand: keep the ratio, short edge as given, then (segmentation) ceil to 32.
            short = min(cfg.test_pipeline[1].scale)
            size = short, int(width * short / height + 0.5)
            if cfg.default_scope == 'mmseg':
                size = tuple(-(-side // 32) * 32 for side in size)
                labels = pack['data_samples'].gt_sem_seg.data
                assert labels.shape == (1, height, width)
                assert labels.unique().tolist() == [2]
            assert tuple(pack['inputs'].shape[1:]) == size
        batch = {'inputs': [pack['inputs']], 'data_samples': [pack['data_samples']]}
        inputs = preprocess(batch, training)['inputs']
        inputs = inputs if torch.is_tensor(inputs) else inputs[0]
        if cfg.default_scope == 'mmseg' and training:
            assert tuple(inputs.shape[-2:]) == cfg.model.data_preprocessor.size
        else:
            assert inputs.shape[-1] % 32 == inputs.shape[-2] % 32 == 0


def test_data_loaders(cfg, official):
    dataset = official['dataset']
    train, val = cfg.train_dataloader, cfg.val_dataloader
    assert train.batch_size == official['batch']['per_gpu']
    assert cfg.auto_scale_lr == {'enable': False, 'base_batch_size': official['batch']['total']}
    for loader in (train, val, cfg.test_dataloader):
        assert loader.num_workers == official['batch']['workers_per_gpu']
    assert train.dataset.type == dataset['train_type']
    assert val.dataset.type == cfg.test_dataloader.dataset.type == dataset['test_type']
    if cfg.default_scope == 'mmdet':
        assert (cfg.data_root + train.dataset.ann_file).endswith(dataset['train_ann'])
        assert (cfg.data_root + val.dataset.ann_file).endswith(dataset['test_ann'])
        assert cfg.val_evaluator.ann_file == cfg.data_root + val.dataset.ann_file
        # Official default; today's default filters nothing.
        assert train.dataset.filter_cfg == {'filter_empty_gt': True, 'min_size': 32}
        assert train.batch_sampler.type == 'AspectRatioBatchSampler'
    else:
        for loader, split in ((train, 'train'), (val, 'test')):
            assert loader.dataset.data_prefix == {
                'img_path': dataset[f'{split}_img_dir'],
                'seg_map_path': dataset[f'{split}_ann_dir'],
            }
    assert cfg.test_dataloader == val
    for loader in (train, val):
        built = DATASETS.build({**loader.dataset, 'lazy_init': True})
        assert len(built.metainfo['classes']) == (80 if cfg.default_scope == 'mmdet' else 150)


def test_evaluation(cfg, official):
    expected = official['evaluation']
    evaluator = cfg.val_evaluator
    assert cfg.test_evaluator == evaluator
    checkpoint = HOOKS.build(cfg.default_hooks.checkpoint)
    assert checkpoint.rules == ['greater']
    if cfg.default_scope == 'mmdet':
        assert evaluator.type == 'CocoMetric'
        assert evaluator.metric == expected['metric']
        assert evaluator.classwise is expected['classwise']
        # What 'auto' selected in the old stack: the first metric's AP.
        assert expected['save_best'] == 'auto'
        assert checkpoint.save_best == ['coco/bbox_mAP']
        assert cfg.train_cfg.val_interval == 1
        metric = METRICS.build({**evaluator, 'ann_file': None})
        assert metric.prefix == 'coco'
    else:
        assert evaluator == {'type': 'IoUMetric', 'iou_metrics': [expected['metric']]}
        assert checkpoint.save_best == [expected['save_best']]
        assert cfg.train_cfg.val_interval == expected['interval']
        METRICS.build(evaluator)


def test_optimizer(cfg, official):
    expected = official['optimizer']
    wrapper = cfg.optim_wrapper
    assert wrapper.type == 'OptimWrapper'  # float32, as the official release
    assert wrapper.optimizer == {
        'type': expected['type'],
        'lr': expected['lr'],
        'betas': tuple(expected['betas']),
        'weight_decay': expected['weight_decay'],
    }
    assert wrapper.constructor == expected['constructor']
    assert wrapper.get('clip_grad') == expected['grad_clip']
    paramwise = dict(expected['paramwise_cfg'])
    assert paramwise.pop('offset_lr_scale', 1.0) == 1.0  # the default
    assert wrapper.paramwise_cfg == paramwise
    assert official['ema'] is None and 'custom_hooks' not in cfg


def test_optimizer_groups(model_name, cfg):
    tree, _, path = official_config(MODELS_OF_RELEASE[model_name]).partition('/configs/')
    path = path.removesuffix('.py')
    name = f'{tree}__{SAME_OPTIMIZER.get(path, path).replace("/", "__")}'
    assert name in golden_optim_names()
    golden = load_golden_optim(name)
    model = build_on_meta(model_name)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert_matches_golden(model, optim_wrapper.optimizer, golden)


def test_parameter_counts(model_name, cfg):
    tree, _, path = official_config(MODELS_OF_RELEASE[model_name]).partition('/configs/')
    counts = json.loads((GOLDEN / 'optimizer' / f'param_counts_{tree}.json').read_text())[path]
    model = build_on_meta(model_name)

    def count(module):
        return sum(param.numel() for param in module.parameters())

    children = {name: count(child) for name, child in model.named_children()}
    assert {name: n for name, n in children.items() if n} == counts['children']
    assert count(model) == counts['total']
    assert len(model.state_dict()) == counts['n_tensors']
    assert MODELS_OF_RELEASE[model_name]['Metadata']['Parameters'] == counts['total']


def official_curve(base_lr, schedule, iterations, epoch_length):
    """Learning rate at each iteration by mmcv 1.5's formulas (``lr_updater.py``)."""
    t = np.arange(iterations)
    if schedule['policy'] == 'step':
        passed = np.searchsorted(schedule['milestones'], t // epoch_length, side='right')
        lr = base_lr * schedule['gamma'] ** passed
    else:
        coefficient = (1 - t / schedule['max_iters']) ** schedule['power']
        lr = (base_lr - schedule['min_lr']) * coefficient + schedule['min_lr']
    warmup = schedule['warmup']
    assert warmup['type'] == 'linear'
    factor = 1 - (1 - t / warmup['iters']) * (1 - warmup['start_ratio'])
    return lr * np.where(t < warmup['iters'], factor, 1.0)


@functools.cache
def new_curve(schedulers, base_lr, iterations, epoch_length):
    """Learning rate at each iteration as mmengine's training loop and scheduler hook set it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base_lr)
    built = [
        PARAM_SCHEDULERS.build({**config, 'optimizer': optimizer})
        for config in json.loads(schedulers)
    ]
    by_iteration = [s for s in built if not s.by_epoch]
    by_epoch = [s for s in built if s.by_epoch]
    curve = np.empty(iterations)
    for t in range(iterations):
        curve[t] = optimizer.param_groups[0]['lr']
        optimizer.step()
        for scheduler in by_iteration:
            scheduler.step()
        if (t + 1) % epoch_length == 0:
            for scheduler in by_epoch:
                scheduler.step()
    return curve


def test_learning_rate_curve(cfg, official):
    schedule = official['schedule']
    if 'max_epochs' in schedule:
        assert cfg.train_cfg.type == 'EpochBasedTrainLoop'
        assert cfg.train_cfg.max_epochs == schedule['max_epochs']
        # Shorter epochs than COCO's 7330 iterations: enough for warm-up and milestones.
        epoch_length = 400
        iterations = epoch_length * schedule['max_epochs']
    else:
        assert cfg.train_cfg.type == 'IterBasedTrainLoop'
        epoch_length = iterations = schedule['max_iters']
        assert cfg.train_cfg.max_iters == iterations
    base_lr = official['optimizer']['lr']
    expected = official_curve(base_lr, schedule, iterations, epoch_length)
    actual = new_curve(json.dumps(cfg.param_scheduler), base_lr, iterations, epoch_length)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=0)
