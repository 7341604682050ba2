import logging

import pytest
import torch
from golden_optim import (
    assert_matches_golden,
    golden_module,
    golden_optim_names,
    golden_optim_wrapper_cfg,
    load_golden_optim,
    module_with_parameters,
    summarize_optimizer,
)
from mmengine.logging import MMLogger
from mmengine.optim import LinearLR, MultiStepLR, OptimWrapper, build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, DefaultScope
from torch import nn

from internimage_mm.optim import CustomLayerDecayOptimizerConstructor

DEPTHS = [2, 1, 3, 2]
NUM_LAYERS = 8
LAST = NUM_LAYERS + 1
RATE = 0.5
LR = 0.01
WEIGHT_DECAY = 0.1


def wrapper_cfg(**paramwise):
    return {
        'type': 'OptimWrapper',
        'optimizer': {'type': 'AdamW', 'lr': LR, 'weight_decay': WEIGHT_DECAY},
        'constructor': 'CustomLayerDecayOptimizerConstructor',
        'paramwise_cfg': {'layer_decay_rate': RATE, **paramwise},
    }


def backbone_shapes(prefix='backbone.', depths=DEPTHS):
    shapes = {f'{prefix}patch_embed.conv1.weight': (2, 3, 3, 3)}
    for i, depth in enumerate(depths):
        for j in range(depth):
            shapes[f'{prefix}levels.{i}.blocks.{j}.mlp.fc1.weight'] = (4, 2)
        shapes[f'{prefix}levels.{i}.norm.0.weight'] = (2,)
        if i < 3:
            shapes[f'{prefix}levels.{i}.downsample.conv.weight'] = (4, 2, 3, 3)
    return shapes


def build(shapes, device='meta', **paramwise):
    """``(model, optim_wrapper, parameter name -> its settings)``."""
    model = module_with_parameters(shapes, device)
    optim_wrapper = build_optim_wrapper(model, wrapper_cfg(**paramwise))
    return model, optim_wrapper, summarize_optimizer(model, optim_wrapper.optimizer)[1]


# All but the one official config that has the default constructor (in tests/configs).
LAYER_DECAY = [
    name for name in golden_optim_names() if 'constructor' in load_golden_optim(name)['optimizer']
]


def group_of(name, *context, shape=(2, 2), **paramwise):
    """Group name of the parameter ``name`` in a model that also has parameters ``context``."""
    shapes = backbone_shapes() | dict.fromkeys(context, (2, 2)) | {name: shape}
    return build(shapes, **paramwise)[2][name]['group']


@pytest.fixture
def mmengine_log(caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


# ---- the official release -----------------------------------------------------------------------


@pytest.mark.parametrize('name', LAYER_DECAY)
def test_groups_equal_the_official_ones(name):
    golden = load_golden_optim(name)
    model, cfg = golden_module(golden), golden_optim_wrapper_cfg(golden)
    assert_matches_golden(model, build_optim_wrapper(model, cfg).optimizer, golden)
    for found_in_the_model in ('num_layers', 'depths'):
        del cfg['paramwise_cfg'][found_in_the_model]
    assert_matches_golden(model, build_optim_wrapper(model, cfg).optimizer, golden)


def test_golden_cases_are_there():
    assert len(LAYER_DECAY) == len(golden_optim_names()) - 1 == 38
    # Rates other than 1 are what makes a wrong layer id visible in the learning rate.
    settings = [load_golden_optim(name)['optimizer']['paramwise_cfg'] for name in LAYER_DECAY]
    assert {0.94, 0.95, 1.0} <= {paramwise['layer_decay_rate'] for paramwise in settings}


# Official name -> name in mmdet 3.3's DINO. Groups: weights decay, the level embedding is layer 0.
DINO_NAMES = [
    ('bbox_head.transformer.level_embeds', 'level_embed', 'layer_0_decay'),
    ('bbox_head.transformer.enc_output.weight', 'memory_trans_fc.weight', f'layer_{LAST}_decay'),
    (
        'bbox_head.transformer.enc_output_norm.weight',
        'memory_trans_norm.weight',
        f'layer_{LAST}_no_decay',
    ),
    (
        'bbox_head.transformer.query_embed.weight',
        'query_embedding.weight',
        f'layer_{LAST}_decay',
    ),
    (
        'bbox_head.transformer.encoder.layers.0.attentions.0.sampling_offsets.weight',
        'encoder.layers.0.self_attn.sampling_offsets.weight',
        f'layer_{LAST}_no_decay_offset_lr_scale',
    ),
    (
        'bbox_head.transformer.decoder.layers.0.attentions.1.sampling_offsets.bias',
        'decoder.layers.0.cross_attn.sampling_offsets.bias',
        f'layer_{LAST}_no_decay_offset_lr_scale',
    ),
    (
        'bbox_head.transformer.reference_points.weight',
        'reference_points_fc.weight',
        f'layer_{LAST}_decay_offset_lr_scale',
    ),
    (
        'bbox_head.transformer.decoder.ref_point_head.0.weight',
        'decoder.ref_point_head.layers.0.weight',
        f'layer_{LAST}_decay',
    ),
    (
        'bbox_head.label_embedding.weight',
        'dn_query_generator.label_embedding.weight',
        f'layer_{LAST}_decay',
    ),
]


@pytest.mark.parametrize('official, renamed, group', DINO_NAMES)
def test_renamed_dino_parameters_keep_their_group(official, renamed, group):
    shape = (2,) if 'norm' in official or official.endswith('.bias') else (2, 2)
    assert group_of(official, shape=shape) == group
    assert group_of(renamed, shape=shape) == group


@pytest.mark.parametrize('name', ['mask_embed.0', 'cls_embed', 'level_embed', 'query_embed',
                                  'query_feat'])  # fmt: skip
def test_mask2former_embeddings_are_layer_0_in_a_segmentor_only(name):
    assert group_of(f'decode_head.{name}.weight') == 'layer_0_decay'
    assert group_of(f'panoptic_head.{name}.weight') == f'layer_{LAST}_decay'


def test_offset_lr_scale_in_a_segmentor_needs_backbone_in_the_name():
    offsets = 'sampling_offsets.weight'
    head = f'decode_head.pixel_decoder.{offsets}'
    assert group_of(head, offset_lr_scale=0.1) == f'layer_{LAST}_no_decay'
    name = f'backbone.adapter.{offsets}'
    group = f'layer_{LAST}_no_decay_offset_lr_scale'
    assert group_of(name, 'decode_head.conv.weight', offset_lr_scale=0.1) == group


def test_ids_of_a_backbone():
    _, _, params = build(backbone_shapes() | {'backbone.levels.2.post_norms.1.0.weight': (2,)})
    ids = {name: int(p['group'].split('_')[1]) for name, p in params.items()}
    expected = {
        'backbone.patch_embed.conv1.weight': 0,
        'backbone.levels.0.blocks.0.mlp.fc1.weight': 1,
        'backbone.levels.0.blocks.1.mlp.fc1.weight': 2,
        'backbone.levels.0.norm.0.weight': 3,
        'backbone.levels.0.downsample.conv.weight': 3,
        'backbone.levels.1.blocks.0.mlp.fc1.weight': 3,
        'backbone.levels.1.norm.0.weight': 4,
        'backbone.levels.1.downsample.conv.weight': 4,
        'backbone.levels.2.blocks.0.mlp.fc1.weight': 4,
        'backbone.levels.2.blocks.1.mlp.fc1.weight': 5,
        'backbone.levels.2.blocks.2.mlp.fc1.weight': 6,
        # Its place in the list counts as a block index.
        'backbone.levels.2.post_norms.1.0.weight': 5,
        'backbone.levels.2.norm.0.weight': 7,
        'backbone.levels.2.downsample.conv.weight': 7,
        'backbone.levels.3.blocks.0.mlp.fc1.weight': 7,
        'backbone.levels.3.blocks.1.mlp.fc1.weight': 8,
        # Not the last block's id: the id of its own level's first block.
        'backbone.levels.3.norm.0.weight': 7,
    }
    assert ids == expected
    for name, p in params.items():
        assert p['lr'] == pytest.approx(LR * RATE ** (LAST - expected[name]), rel=1e-12)


# ---- options ------------------------------------------------------------------------------------


def test_backbone_small_lr_takes_a_tenth_of_decayed_rates_only():
    shapes = backbone_shapes() | {'neck.conv.weight': (2, 2)}
    plain = build(shapes)[2]
    small = build(shapes, backbone_small_lr=True)[2]
    for name in shapes:
        factor = 1 if name == 'neck.conv.weight' else 0.1
        assert small[name]['lr'] == pytest.approx(plain[name]['lr'] * factor, rel=1e-12)


def test_offset_lr_scale_and_dino_head():
    offsets = 'encoder.layers.0.self_attn.sampling_offsets.weight'
    inside = 'backbone.levels.0.blocks.0.sampling_offsets.weight'
    shapes = backbone_shapes() | {offsets: (2, 2), inside: (2, 2)}
    inside_lr = LR * RATE ** (LAST - 1)

    params = build(shapes, offset_lr_scale=0.01)[2]
    assert params[offsets]['lr'] == pytest.approx(LR * 0.01, rel=1e-12)
    assert params[inside]['lr'] == pytest.approx(inside_lr * 0.01, rel=1e-12)

    params = build(shapes, offset_lr_scale=0.01, dino_head=True)[2]
    assert params[offsets]['group'] == f'layer_{LAST}_no_decay_0.1x'
    assert params[offsets]['lr'] == pytest.approx(LR * 0.1, rel=1e-12)
    assert params[inside]['lr'] == pytest.approx(inside_lr * 0.01, rel=1e-12)


@pytest.mark.parametrize(
    'name, shape, decayed',
    [
        ('neck.conv.weight', (2, 2), True),
        ('neck.scale', (2,), False),
        ('neck.conv.bias', (2, 2), False),
        ('neck.norm_proj', (2, 2), False),
        ('neck.relative_position_table', (2, 2), False),
        ('neck.sampling_offsets.weight', (2, 2), False),
        ('neck.scalar', (), True),
    ],
)
def test_weight_decay(name, shape, decayed):
    params = build(backbone_shapes() | {name: shape})[2]
    assert params[name]['weight_decay'] == (WEIGHT_DECAY if decayed else 0)


# ---- models -------------------------------------------------------------------------------------


@pytest.mark.parametrize('prefix', ['img_backbone.', 'student.backbone.', 'encoder.net.', ''])
def test_backbone_under_another_name(prefix, mmengine_log):
    official = build(backbone_shapes())[2]
    params = build(backbone_shapes(prefix))[2]
    assert params == {
        prefix + name.removeprefix('backbone.'): value for name, value in official.items()
    }
    assert 'no InternImage backbone' not in mmengine_log.text


def test_composite_backbone_is_not_decayed():
    shapes = backbone_shapes('backbone.cb_modules.0.') | backbone_shapes('backbone.cb_modules.1.')
    del shapes['backbone.cb_modules.1.patch_embed.conv1.weight']
    stem = 'backbone.cb_modules.0.patch_embed.conv1.weight'

    params = build(shapes)[2]
    assert {p['lr'] for p in params.values()} == {LR}

    params = build(shapes | {'decode_head.conv.weight': (2, 2)})[2]
    assert params.pop(stem)['group'] == 'layer_0_decay'
    assert {p['lr'] for p in params.values()} == {LR}


def test_model_without_internimage_backbone_warns_once(mmengine_log):
    params = build({'backbone.layer1.0.conv1.weight': (2, 2)}, num_layers=NUM_LAYERS)[2]
    assert params['backbone.layer1.0.conv1.weight']['lr'] == LR
    warnings = [r for r in mmengine_log.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert 'no InternImage backbone' in warnings[0].getMessage()


def test_frozen_parameters_are_left_out():
    model = module_with_parameters(backbone_shapes())
    model.backbone.patch_embed.requires_grad_(False)
    optim_wrapper = build_optim_wrapper(model, wrapper_cfg())
    _, params = summarize_optimizer(model, optim_wrapper.optimizer)
    assert set(params) == set(backbone_shapes()) - {'backbone.patch_embed.conv1.weight'}


def test_shared_parameter_is_in_one_group():
    model = module_with_parameters(
        backbone_shapes() | {'neck.a.weight': (2, 2), 'neck.b.weight': (2, 2)}
    )
    model.neck.b.weight = model.neck.a.weight
    optim_wrapper = build_optim_wrapper(model, wrapper_cfg())
    _, params = summarize_optimizer(model, optim_wrapper.optimizer)
    assert [name for name in params if name.startswith('neck')] == ['neck.a.weight']


def test_model_wrapped_for_distributed_training():
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    model = module_with_parameters(backbone_shapes())
    optim_wrapper = build_optim_wrapper(Wrapper(model), wrapper_cfg())
    assert summarize_optimizer(model, optim_wrapper.optimizer)[1] == build(backbone_shapes())[2]


def test_amp_optim_wrapper(monkeypatch):
    # mmengine refuses AmpOptimWrapper where there is no accelerator; the groups need none.
    monkeypatch.setattr(
        'mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True
    )
    model = module_with_parameters(backbone_shapes())
    cfg = wrapper_cfg() | {'type': 'AmpOptimWrapper', 'loss_scale': {'enabled': False}}
    optim_wrapper = build_optim_wrapper(model, cfg)
    assert type(optim_wrapper).__name__ == 'AmpOptimWrapper'
    assert summarize_optimizer(model, optim_wrapper.optimizer)[1] == build(backbone_shapes())[2]


# ---- mmengine -----------------------------------------------------------------------------------


def test_registered_in_the_root_registry():
    registered = OPTIM_WRAPPER_CONSTRUCTORS.module_dict['CustomLayerDecayOptimizerConstructor']
    assert registered is CustomLayerDecayOptimizerConstructor


def test_found_from_a_downstream_scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        optim_wrapper = build(backbone_shapes())[1]
    assert isinstance(optim_wrapper, OptimWrapper)


def test_schedulers_scale_the_rate_of_each_group():
    model, optim_wrapper, initial = build(backbone_shapes(), device='cpu')
    warmup = LinearLR(optim_wrapper, start_factor=0.1, by_epoch=False, begin=0, end=4)
    steps = MultiStepLR(optim_wrapper, milestones=[6], gamma=0.1, by_epoch=False)

    def factors():
        _, params = summarize_optimizer(model, optim_wrapper.optimizer)
        return [params[name]['lr'] / initial[name]['lr'] for name in params]

    assert len({p['lr'] for p in initial.values()}) == LAST
    assert factors() == pytest.approx([0.1] * len(initial))
    for expected in (0.4, 0.7, 1.0, 1.0, 1.0, 0.1):
        warmup.step()
        steps.step()
        assert factors() == pytest.approx([expected] * len(initial))


def test_one_step_moves_each_parameter_at_its_own_rate():
    model = module_with_parameters(backbone_shapes(), 'cpu')
    cfg = wrapper_cfg() | {'optimizer': {'type': 'SGD', 'lr': LR, 'weight_decay': 0.0}}
    optim_wrapper = build_optim_wrapper(model, cfg)
    for param in model.parameters():
        nn.init.zeros_(param)
    optim_wrapper.update_params(sum(param.sum() for param in model.parameters()))
    _, params = summarize_optimizer(model, optim_wrapper.optimizer)
    for name, param in model.named_parameters():
        torch.testing.assert_close(param.data, torch.full_like(param, -params[name]['lr']))


def test_optimizer_state_survives_a_round_trip():
    _, optim_wrapper, _ = build(backbone_shapes())
    state = optim_wrapper.state_dict()
    model, restored, params = build(backbone_shapes(), layer_decay_rate=0.9)
    assert params != build(backbone_shapes())[2]
    restored.load_state_dict(state)
    assert summarize_optimizer(model, restored.optimizer)[1] == build(backbone_shapes())[2]


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'paramwise, match',
    [
        ({'layer_decay': 0.9}, r"unknown .*\['layer_decay'\].*layer_decay_rate.*offset_lr_scale"),
        ({'custom_keys': {}}, r"unknown .*\['custom_keys'\]"),
        ({'layer_decay_rate': 0}, r'layer_decay_rate must be a number in \(0, 1\], got 0'),
        ({'layer_decay_rate': 1.1}, r'layer_decay_rate must .*got 1\.1'),
        ({'layer_decay_rate': float('nan')}, r'layer_decay_rate must .*got nan'),
        ({'layer_decay_rate': '0.9'}, r"layer_decay_rate must .*got '0\.9'"),
        ({'offset_lr_scale': -1}, r'offset_lr_scale must .*got -1'),
        ({'offset_lr_scale': float('inf')}, r'offset_lr_scale must .*got inf'),
        ({'offset_lr_scale': None}, r'offset_lr_scale must .*got None'),
        ({'dino_head': 1}, r'dino_head must be a bool, got 1'),
        ({'backbone_small_lr': 'yes'}, r"backbone_small_lr must be a bool, got 'yes'"),
    ],
)
def test_invalid_options(paramwise, match):
    with pytest.raises(ValueError, match=match):
        build(backbone_shapes(), **paramwise)


def test_no_paramwise_cfg():
    cfg = wrapper_cfg() | {'paramwise_cfg': None}
    with pytest.raises(ValueError, match='lacks layer_decay_rate'):
        build_optim_wrapper(module_with_parameters(backbone_shapes()), cfg)


@pytest.mark.parametrize('missing', ['lr', 'weight_decay'])
def test_optimizer_without_lr_or_weight_decay(missing):
    cfg = wrapper_cfg()
    del cfg['optimizer'][missing]
    with pytest.raises(ValueError, match=f'must give {missing}'):
        build_optim_wrapper(module_with_parameters(backbone_shapes()), cfg)


@pytest.mark.parametrize('prefix', ['backbone.', 'backbone.cb_modules.0.'])
@pytest.mark.parametrize(
    'given, has',
    [
        ({'depths': [2, 1, 4, 2]}, r"depths \[2, 1, 4, 2\].*'backbone.*' has \[2, 1, 3, 2\]"),
        ({'depths': [2, 1, 5]}, r"depths \[2, 1, 5\].*'backbone.*' has \[2, 1, 3, 2\]"),
        ({'num_layers': 9}, r"num_layers 9.*'backbone.*' has 8"),
    ],
)
def test_sizes_of_another_variant(prefix, given, has):
    with pytest.raises(ValueError, match=has):
        build(backbone_shapes(prefix), **given)


def test_backbones_of_two_sizes():
    shapes = backbone_shapes('student.') | backbone_shapes('teacher.', depths=[1, 1, 1, 1])
    with pytest.raises(ValueError, match='same depths.*student.*teacher'):
        build(shapes)


def test_model_without_internimage_needs_num_layers():
    with pytest.raises(ValueError, match='no InternImage backbone.*no num_layers'):
        build({'backbone.layer1.0.conv1.weight': (2, 2)})
