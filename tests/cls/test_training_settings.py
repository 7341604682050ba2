"""Optimizer groups, schedule and settings of the classification configs against the release."""

import functools
import json
import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope

import internimage_mm.cls  # noqa: F401  registers

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
LAYER_DECAY = sorted((CONFIGS / 'imagenet').glob('*-20e_in1k*.py'))
assert len(LAYER_DECAY) == 5
PLAIN = sorted(
    {*(CONFIGS / 'imagenet').glob('*.py'), *(CONFIGS / 'inaturalist2018').glob('*.py')}
    - set(LAYER_DECAY)
)
DCN_NAMES = ('offset', 'attention_weights', 'center_feature_scale_proj', 'alpha_beta')


@functools.cache
def load(path):
    return Config.fromfile(path)


def meta_model(cfg):
    with DefaultScope.overwrite_default_scope('mmpretrain'), torch.device('meta'):
        return MODELS.build(cfg.model)


def groups(cfg, model):
    """Parameter name to (learning rate, weight decay)."""
    # Mixed precision needs a GPU and does not touch the groups.
    settings = {k: v for k, v in cfg.optim_wrapper.items() if k not in ('type', 'loss_scale')}
    wrapper = build_optim_wrapper(model, settings)
    of_parameter = {
        id(p): (group['lr'], group['weight_decay'])
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }
    return {name: of_parameter[id(p)] for name, p in model.named_parameters()}


def official_ratio(name, depths, rate):
    """The rule of the release in its own form: the first name part found in the name decides."""
    ratios = {}
    distance = 0
    for level in (3, 2, 1, 0):
        for block in reversed(range(depths[level])):
            ratios[f'levels.{level}.blocks.{block}.'] = rate**distance
            distance += 1
    ratios['patch_embed'] = ratios['levels.0.blocks.0.']
    for level in (0, 1, 2):
        for part in ('downsample', 'norm'):
            ratios[f'levels.{level}.{part}'] = ratios[f'levels.{level + 1}.blocks.0.']
    return next((ratio for part, ratio in ratios.items() if part in name), 1.0)


@pytest.mark.parametrize('case', ['cls_t_like', 'cls_h_like'])
def test_the_stated_rule_is_that_of_the_release(case):
    """official_ratio() against the name parts that the official model itself returned."""
    golden = json.loads((ROOT / f'tests/golden/classification/{case}.json').read_text())
    recorded = golden['lr_decay_keywords']
    assert recorded
    for key, _, _ in golden['keys']:
        expected = next((r for part, r in recorded.items() if part in key), 1.0)
        assert official_ratio(key, golden['config']['depths'], 0.87) == pytest.approx(expected)


@pytest.mark.parametrize('path', LAYER_DECAY, ids=lambda p: p.stem)
def test_layer_decay_groups(path):
    cfg = load(path)
    model = meta_model(cfg)
    base_lr = {1024: 4e-5, 512: 2e-5}[cfg.auto_scale_lr.base_batch_size]
    found = groups(cfg, model)
    for name, parameter in model.named_parameters():
        lr = base_lr * official_ratio(name, model.backbone.depths, 0.9)
        if any(part in name for part in DCN_NAMES):
            lr *= 0.1
        decay = 0.05 if parameter.ndim > 1 else 0.0
        assert found[name] == (pytest.approx(lr, rel=1e-12), decay), name
    assert min(lr for lr, _ in found.values()) < 5e-3 * base_lr  # the stem is reached


@pytest.mark.parametrize('path', PLAIN, ids=lambda p: p.stem)
def test_plain_groups(path):
    cfg = load(path)
    model = meta_model(cfg)
    base_lr = (
        (5e-4 if cfg.train_cfg.max_epochs == 300 else 2e-5)
        * cfg.auto_scale_lr.base_batch_size
        / 512
    )
    for name, group in groups(cfg, model).items():
        decay = 0.05 if model.get_parameter(name).ndim > 1 else 0.0
        assert group == (pytest.approx(base_lr, rel=1e-12), decay), name


def learning_rates(cfg, epoch_length, lr=1.0):
    """Learning rate at each iteration, as the runner steps the scheduler."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    settings = dict(cfg.param_scheduler)
    assert settings.pop('convert_to_iter_based')
    cls = PARAM_SCHEDULERS.get(settings.pop('type'))
    scheduler = cls.build_iter_from_epoch(optimizer, epoch_length=epoch_length, **settings)
    rates = []
    for _ in range(cfg.train_cfg.max_epochs * epoch_length):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ('name', 'epochs', 'warmup', 'warmup_lr', 'lr', 'end_lr'),
    [
        ('imagenet/internimage-t_8xb512_in1k-224', 300, 20, 4e-6, 4e-3, 4e-5),
        ('imagenet/internimage-g_joint-in22k-pre_64xb8-20e_in1k-512', 20, 2, 0.0, 2e-5, 0.0),
        (
            'inaturalist2018/internimage-h_joint-in22k-pre_8xb128-100e_inat2018-384',
            *(100, 0, 0.0, 4e-5, 0.0),
        ),
    ],
)
def test_schedule(name, epochs, warmup, warmup_lr, lr, end_lr):
    cfg = load(CONFIGS / f'{name}.py')
    per_epoch = 7
    rates = learning_rates(cfg, per_epoch, lr=cfg.optim_wrapper.optimizer.lr)
    assert len(rates) == epochs * per_epoch
    for t, rate in enumerate(rates):
        if t < warmup * per_epoch:
            expected = warmup_lr + t * (lr - warmup_lr) / (warmup * per_epoch)
        else:
            cosine = 0.5 * (1 + math.cos(math.pi * t / (epochs * per_epoch)))
            expected = end_lr + (lr - end_lr) * cosine
        assert rate == pytest.approx(expected, rel=1e-12, abs=1e-18), t


def test_schedule_goes_on_after_loading_its_state():
    cfg = load(CONFIGS / 'imagenet/internimage-l_in22k-pre_32xb16-20e_in1k-384.py')
    cls = PARAM_SCHEDULERS.get('WarmupCosineLR')
    whole = learning_rates(cfg, 3)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    first = cls(optimizer, T_max=60, warmup=6, end=60, by_epoch=False)
    for _ in range(25):
        optimizer.step()
        first.step()
    resumed_optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    resumed = cls(resumed_optimizer, T_max=60, warmup=6, end=60, by_epoch=False)
    resumed.load_state_dict(first.state_dict())
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed_optimizer.step()
    resumed.step()
    assert resumed_optimizer.param_groups[0]['lr'] == pytest.approx(whole[26], rel=1e-12)


@pytest.mark.parametrize('settings', [dict(T_max=0), dict(T_max=3, warmup=4)])
def test_schedule_refuses_nonsense(settings):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with pytest.raises(ValueError, match='T_max must be at least 1'):
        PARAM_SCHEDULERS.get('WarmupCosineLR')(optimizer, **settings)


@pytest.mark.parametrize(
    ('paramwise', 'message'),
    [
        (dict(), 'layer_decay_rate'),
        (dict(layer_decay_rate=1.5), 'layer_decay_rate'),
        (dict(layer_decay_rate=0.9, dcn_lr_mult=-1), 'dcn_lr_mult'),
        (dict(layer_decay_rate=0.9, num_layers=30), 'num_layers'),
    ],
)
def test_layer_decay_refuses_nonsense(paramwise, message):
    settings = dict(
        optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
        constructor='ClassificationLayerDecayOptimizerConstructor',
        paramwise_cfg=paramwise,
    )
    with pytest.raises(ValueError, match=message):
        build_optim_wrapper(torch.nn.Linear(1, 1), settings)


def test_layer_decay_needs_a_backbone_that_knows_its_layers():
    settings = dict(
        optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
        constructor='ClassificationLayerDecayOptimizerConstructor',
        paramwise_cfg=dict(layer_decay_rate=0.9),
    )
    with pytest.raises(ValueError, match='get_layer_depth'):
        build_optim_wrapper(torch.nn.Linear(1, 1), settings)
