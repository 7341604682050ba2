"""Every config against the official release: settings, learning rates, sizes, optimizer groups.

``golden/model_zoo.yaml`` holds the settings of the 67 official configs, resolved. Each of our
configs is put into the terms of that table (``release``) and compared leaf by leaf; what differs
must be explained in ``explained_differences.yml``. Models are built at full size without memory.
"""

import functools
import gzip
import json
from pathlib import Path

import mmdet
import numpy as np
import pytest
import torch
from golden_optim import golden_optim_names, load_golden_optim, summarize_optimizer
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from release import classification_terms, ours, zoo
from release.compare import Explanations, differences, listing
from release.describe import describe
from release.training_terms import new_curve, official_cosine_curve, official_curve

from internimage_mm.checkpoint import convert_official

DETSEG = zoo.DETECTION + zoo.SEGMENTATION
# Ours alone: for first trainings, and the pre-training of which the release has only weights.
NO_OFFICIAL_CONFIG = {'_base_', 'objects365', 'quickstart', 'recipes'}
# Shorter epochs than COCO's 7330 iterations: enough for warm-up and milestones.
EPOCH_LENGTH = 600
CLASSIFICATION_EPOCH_LENGTH = 50

# Optimizers that were not recorded, and a recorded one of the same model and settings.
SAME_OPTIMIZER = {
    'coco/mask_rcnn_internimage_s_fpn_1x_coco': 'coco/mask_rcnn_internimage_s_fpn_3x_coco',
    'lvis/dino_4scale_cbinternimage_h_objects365_lvis_val_ss': (
        'lvis/dino_4scale_cbinternimage_h_objects365_lvis_minival_ss'
    ),
    'voc/dino_4scale_cbinternimage_h_objects365_voc12': (
        'voc/dino_4scale_cbinternimage_h_objects365_voc07'
    ),
    'ade20k/mask2former_internimage_h_896_80k_cocostuff2ade20k_ms': (
        'ade20k/mask2former_internimage_h_896_80k_cocostuff2ade20k_ss'
    ),
    'ade20k/upernet_internimage_b_512_160k_ade20k': (
        'cityscapes/upernet_internimage_b_512x1024_160k_cityscapes'
    ),
    'ade20k/upernet_internimage_xl_640_160k_ade20k': (
        'cityscapes/upernet_internimage_xl_512x1024_160k_cityscapes'
    ),
    'cityscapes/upernet_internimage_l_512x1024_160k_mapillary2cityscapes': (
        'cityscapes/upernet_internimage_l_512x1024_160k_cityscapes'
    ),
    'mapillary/segformer_internimage_xl_512x1024_80k_mapillary': (
        'cityscapes/segformer_internimage_xl_512x1024_160k_mapillary2cityscapes'
    ),
}
# Neither these nor a model with the same settings were recorded; their settings are compared here,
# the constructor's rules with every recorded model.
NOT_RECORDED = {
    'coco/cascade_internimage_xl_fpn_3x_coco',
    'coco/dino_4scale_internimage_g_objects365_coco_ss',
    'coco/dino_4scale_internimage_l_1x_coco_layer_wise_lr',
    'coco_stuff10k/mask2former_internimage_h_512_40k_cocostuff164k_to_10k',
}


def split(official):
    """``detection/configs/coco/x.py`` -> ``detection``, ``coco/x``"""
    tree, _, path = official.removesuffix('.py').partition('/configs/')
    return tree, path


def test_every_official_config_has_exactly_one_of_ours():
    counts = zoo.COUNTS
    assert len(zoo.ENTRIES) == counts['all'] == 67
    assert len(zoo.DETECTION) == counts['detection']['total']
    assert len(zoo.SEGMENTATION) == counts['segmentation']['total']
    assert set(zoo.models()) == set(zoo.ENTRIES)
    configs = [model['Config'] for model in zoo.models().values()]
    assert sorted(configs) == sorted(
        path.relative_to(zoo.ROOT).as_posix()
        for path in (zoo.ROOT / 'configs').glob('*/*.py')
        if path.parent.name not in NO_OFFICIAL_CONFIG
    )


def optimizer_of(official):
    cfg = ours.load(official)
    # Without autocast, which needs a GPU: the parameter groups are the same.
    wrapper = {**cfg.optim_wrapper, 'type': 'OptimWrapper'}
    wrapper.pop('loss_scale', None)
    with ours.default_scope(cfg):
        return build_optim_wrapper(ours.build_on_meta(official), wrapper).optimizer


@functools.cache
def differences_of(official):
    cfg, entry, expected = ours.load(official), zoo.models()[official], zoo.canonical(official)
    model = ours.build_on_meta(official)
    with ours.default_scope(cfg):
        if official in DETSEG:
            return differences(expected, describe(cfg, model, entry, expected))
        optimizer = optimizer_of(official)
        return differences(
            expected, classification_terms.describe(cfg, model, optimizer, entry, expected)
        )


CHAPTERS = {'table': DETSEG, 'classification': zoo.CLASSIFICATION}


@pytest.mark.parametrize(
    'chapter, official', [(key, path) for key, paths in CHAPTERS.items() for path in paths]
)
def test_settings(chapter, official):
    left = Explanations(chapter).unexplained(official, differences_of(official))
    assert not left, '\n' + listing(left)


@pytest.mark.parametrize('chapter', CHAPTERS)
def test_every_explanation_is_needed(chapter):
    explanations = Explanations(chapter)
    for official in CHAPTERS[chapter]:
        explanations.unexplained(official, differences_of(official))
    assert explanations.unused() == []


@pytest.mark.parametrize('official', DETSEG)
def test_learning_rate_at_every_iteration(official):
    cfg, schedule = ours.load(official), zoo.ENTRIES[official]['schedule']
    length = schedule.get('max_iters') or EPOCH_LENGTH * schedule['max_epochs']
    epoch = EPOCH_LENGTH if 'max_epochs' in schedule else length
    # From the base rate 1, so that configs share curves: test_settings compares the base rates.
    expected = official_curve(1.0, schedule, length, epoch)
    actual = new_curve(json.dumps(cfg.param_scheduler), 1.0, length, epoch)
    # The schedulers multiply factors step by step: 160000 roundings, measured 4e-12.
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize('official', zoo.CLASSIFICATION)
def test_learning_rate_of_classification_at_every_iteration(official):
    cfg, entry = ours.load(official), zoo.ENTRIES[official]
    factor = cfg.auto_scale_lr.base_batch_size / 512
    schedule = dict(entry['schedule'])
    for key in ('warmup_lr', 'min_lr'):
        schedule[key] *= factor
    lr = entry['optimizer']['base_lr'] * factor
    length = CLASSIFICATION_EPOCH_LENGTH * schedule['epochs']
    expected = official_cosine_curve(lr, schedule, length, CLASSIFICATION_EPOCH_LENGTH)
    schedulers = json.dumps(classification_terms.schedulers(cfg))
    with ours.default_scope(cfg):
        actual = new_curve(schedulers, lr, length, CLASSIFICATION_EPOCH_LENGTH)
    # The official code sets the rate of iteration t + 1 to the value for t (it calls
    # step_update(t) after iteration t); here iteration t has the value for t.
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-20)


@functools.cache
def parameter_counts(tree):
    (path,) = (zoo.GOLDEN / 'optimizer').glob(f'param_counts_{tree}.json*')
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == '.gz' else data)


def count(module):
    return sum(param.numel() for param in module.parameters())


@pytest.mark.parametrize('official', zoo.ENTRIES)
def test_parameter_counts(official):
    tree, _, path = official.partition('/configs/')
    # The classification configs with and without layer decay have the same model.
    expected = parameter_counts(tree)[path.removeprefix('without_lr_decay/')]
    model = ours.build_on_meta(official)
    total = count(model)
    assert zoo.models()[official]['Metadata']['Parameters'] == total
    if 'inat18' not in path:  # counted without its metadata branch
        assert total == expected['total']
    if tree == 'classification':
        return
    children = {name: n for name, child in model.named_children() if (n := count(child))}
    official_children = dict(expected['children'])
    for name in ('backbone', 'neck'):
        assert children.pop(name, 0) == official_children.pop(name, 0)
    if set(children) <= set(official_children):
        assert children == official_children
    else:  # DINO: the transformer moved from the head into the detector
        assert set(official_children) == {'bbox_head'}


def recorded_optimizer(official):
    tree, path = split(official)
    return f'{tree}__{SAME_OPTIMIZER.get(path, path).replace("/", "__")}'


def test_every_optimizer_is_recorded_or_listed():
    recorded = set(golden_optim_names())
    missing = {split(path)[1] for path in DETSEG if recorded_optimizer(path) not in recorded}
    assert missing == NOT_RECORDED


@pytest.mark.parametrize(
    'official', [path for path in DETSEG if split(path)[1] not in NOT_RECORDED]
)
def test_optimizer_groups(official):
    golden = load_golden_optim(recorded_optimizer(official))
    model, optimizer = ours.build_on_meta(official), optimizer_of(official)
    names = our_names(golden)
    if ours.load(official).optim_wrapper.get('constructor') is None:
        name_of = {id(param): name for name, param in model.named_parameters()}
        actual = {
            name_of[id(param)]: (group['lr'], group['weight_decay'])
            for group in optimizer.param_groups
            for param in group['params']
        }
        expected = {
            names[name]: (values['lr'], values['weight_decay'])
            for name, values in golden['params'].items()
        }
        assert actual == expected
        return
    groups, params = summarize_optimizer(model, optimizer)
    assert params == {names[name]: values for name, values in golden['params'].items()}
    assert groups == golden['groups']


def our_names(golden):
    """Official parameter name -> ours, as the checkpoint converter renames them."""
    official = {name: torch.empty(shape, device='meta') for name, shape in golden['shapes'].items()}
    ours_by_id = {id(tensor): name for name, tensor in convert_official(official).items()}
    return {name: ours_by_id[id(official[name])] for name in golden['params']}


@pytest.mark.parametrize('official', [path for path in DETSEG if '/mask_rcnn_' in path])
def test_mask_rcnn_is_that_of_mmdet(official):
    stock = Path(mmdet.__file__).parent / '.mim/configs/_base_/models/mask-rcnn_r50_fpn.py'
    ours_, theirs = ours.load(official).model, Config.fromfile(stock).model
    for part in ('type', 'data_preprocessor', 'rpn_head', 'roi_head', 'train_cfg', 'test_cfg'):
        assert ours_[part] == theirs[part]
