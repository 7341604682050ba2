"""Recognising layouts, and loading that is strict."""

import pytest
import torch
from backbones.helpers import golden
from golden.deterministic_weights import tensor_for

from internimage_mm import InternImage
from internimage_mm.checkpoint import CheckpointError, extract_state_dict

T_LIKE = golden('t_like')


def official_weights(name='t_like'):
    return {k: torch.from_numpy(tensor_for(k, *like)) for k, *like in golden(name)['keys']}


def backbone(**changes):
    return InternImage(**{**T_LIKE['config'], **changes})


def load(model, path, prefix=None):
    model.init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix=prefix)
    model.init_weights()


CLASSIFIER = {
    'conv_head.0.weight': torch.ones(1),
    'conv_head.1.0.running_mean': torch.ones(1),
    'head.weight': torch.ones(1),
    'fc_norm.0.weight': torch.ones(1),
    'clip_projector.cross_dcn.q_bias': torch.ones(1),
    'dcnv3_head_x3.weight': torch.ones(1),
    'dcnv3_head_x4.0.weight': torch.ones(1),
}
DETECTOR = {
    'neck.lateral_convs.0.conv.weight': torch.ones(1),
    'rpn_head.rpn_cls.bias': torch.ones(1),
}


def prefixed(state_dict, prefix):
    return {f'{prefix}{k}': v for k, v in state_dict.items()}


def hugging_face(state_dict):
    return {f'model.{k.replace("gamma", "layer_scale")}': v for k, v in state_dict.items()}


LAYOUTS = {
    'raw': lambda w: w,
    'classification': lambda w: {
        'model': {**w, **CLASSIFIER},
        'model_ema': {k: v + 1 for k, v in w.items()},
        'optimizer': {'state': {}},
        'epoch': 299,
    },
    'deepspeed': lambda w: {'module': {**w, **CLASSIFIER}, 'global_steps': 1},
    'detector': lambda w: {'state_dict': {**prefixed(w, 'backbone.'), **DETECTOR}, 'meta': {}},
    'distributed': lambda w: {
        'state_dict': prefixed({**prefixed(w, 'backbone.'), **DETECTOR}, 'module.')
    },
    'distillation': lambda w: {
        'model': {
            **prefixed({**w, **CLASSIFIER}, 'student.'),
            **prefixed({k: v + 1 for k, v in w.items()}, 'teacher.'),
            'student_proj.weight': torch.zeros(2, 2),
        }
    },
    'm3i': lambda w: {
        'module': {
            'mask_token': torch.zeros(1, 1, 8),
            **prefixed(w, 'dcnv3.'),
            'dcnv3_head_x3.bias': torch.zeros(4),
            'clip_projector.norm1_q.0.bias': torch.zeros(4),
            'mm_dcnv3.levels.0.norm.0.bias': torch.zeros(4),
            'text_encoder.weight': torch.zeros(4, 4),
        }
    },
    'hugging_face': lambda w: hugging_face({**w, **CLASSIFIER}),
    'old_ema_hook': lambda w: {
        'state_dict': {
            **prefixed(w, 'backbone.'),
            **{f'ema_backbone_{k.replace(".", "_")}': v + 1 for k, v in w.items()},
        }
    },
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_official_layout_fills_the_backbone(tmp_path, layout):
    weights = official_weights()
    torch.save(LAYOUTS[layout](weights), tmp_path / 'official.pth')
    model = backbone()
    load(model, tmp_path / 'official.pth')
    state = model.state_dict()
    assert state.keys() == weights.keys()
    for key, value in weights.items():
        assert torch.equal(state[key], value), key


def test_prefix(tmp_path):
    weights = official_weights()
    torch.save(prefixed(weights, 'student.trunk.'), tmp_path / 'w.pth')
    model = backbone()
    load(model, tmp_path / 'w.pth', prefix='student.trunk')
    assert torch.equal(model.state_dict()['levels.3.norm.0.bias'], weights['levels.3.norm.0.bias'])
    with pytest.raises(
        CheckpointError, match=r'like teacher\.patch_embed.* are needed, it has student'
    ):
        load(backbone(), tmp_path / 'w.pth', prefix='teacher.')


def test_centers_are_left_out_where_the_model_has_none(tmp_path):
    """As the official classification code drops them: index 4 of 9 masks, 8 and 9 of 18 offsets."""
    weights = official_weights()
    torch.save({'model': weights}, tmp_path / 'w.pth')
    model = backbone(remove_center=True)
    load(model, tmp_path / 'w.pth')
    state = model.state_dict()
    for name, size, center in (('mask', 9, (4,)), ('offset', 18, (8, 9))):
        for leaf in ('weight', 'bias'):
            key = f'levels.3.blocks.1.dcn.{name}.{leaf}'
            kept = [i for i in range(weights[key].shape[0]) if i % size not in center]
            assert torch.equal(state[key], weights[key][kept]), key
    # Weights without centres are taken as they are, and not into a model with centres.
    torch.save({'model': state}, tmp_path / 'without.pth')
    load(backbone(remove_center=True), tmp_path / 'without.pth')
    with pytest.raises(CheckpointError, match='have another shape'):
        load(backbone(), tmp_path / 'without.pth')


@pytest.mark.parametrize('layer_scale', [1.0, 1e-5])
def test_layer_scale_missing_altogether(tmp_path, logged, layer_scale):
    """Keeps its values, and warns unless these are one."""
    weights = {k: v for k, v in official_weights().items() if 'gamma' not in k}
    torch.save({'model': weights}, tmp_path / 't.pth')
    model = backbone(layer_scale=layer_scale)
    load(model, tmp_path / 't.pth')
    gammas = [v for k, v in model.state_dict().items() if 'gamma' in k]
    assert len(gammas) == 2 * sum(T_LIKE['config']['depths'])
    assert all((g == layer_scale).all() for g in gammas)
    warned = any('has no layer scale' in message for message in logged)
    assert warned == (layer_scale != 1)


def test_one_layer_scale_missing_raises(tmp_path):
    weights = official_weights()
    del weights['levels.1.blocks.0.gamma2']
    torch.save(weights, tmp_path / 'w.pth')
    with pytest.raises(CheckpointError, match=r'1 of \d+ .* missing.*levels\.1\.blocks\.0\.gamma2'):
        load(backbone(), tmp_path / 'w.pth')


def test_other_variant_names_keys_shapes_and_counts(tmp_path):
    torch.save({'model': official_weights()}, tmp_path / 'w.pth')
    model = backbone(channels=48, depths=[2, 2, 4, 2], groups=[3, 6, 12, 24])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load(model, tmp_path / 'w.pth')
    message = str(error.value)
    assert f'{tmp_path}/w.pth does not fit InternImage' in message
    block = [k for k in before if k.startswith('levels.2.blocks.3.')]
    assert f'{len(block)} of {len(before)} weights of the model are missing' in message
    assert block[0] in message
    # Every weight of the smaller model has another width.
    assert f'{len(T_LIKE["keys"])} weights have another shape' in message
    assert 'patch_embed.conv1.weight (file (16, 3, 3, 3), model (24, 3, 3, 3))' in message
    assert 'file has 32 channels, depths 2-2-3-2; the model 48 channels, depths 2-2-4-2' in message
    # Nothing is half loaded.
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_other_options_are_unexpected_keys(tmp_path):
    torch.save(official_weights('h_like'), tmp_path / 'h.pth')
    with pytest.raises(CheckpointError, match='unknown to the model: .*center_feature_scale'):
        load(backbone(), tmp_path / 'h.pth')


@pytest.mark.parametrize(
    ('content', 'found'),
    [
        ({'state_dict': {'decode_head.conv_seg.weight': torch.ones(1)}}, 'decode_head'),
        ({'stem.0.weight': torch.ones(1), 'fc.bias': torch.ones(1)}, 'fc, stem'),
        ({'meta': {'epoch': 3}}, 'no tensors at all'),
    ],
)
def test_no_backbone_lists_what_is_there(tmp_path, content, found):
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(
        CheckpointError, match=rf'other\.pth has no weights for InternImage.* it has {found}'
    ):
        load(backbone(), tmp_path / 'other.pth')


def test_extract_does_not_change_the_checkpoint():
    inner = {'module.w': torch.ones(1), 'ema_w': torch.ones(1)}
    assert extract_state_dict({'state_dict': inner}).keys() == {'module.w'}
    assert inner.keys() == {'module.w', 'ema_w'}


def test_mmengine_names_that_look_like_layouts_are_kept():
    # 'model.' is stripped only if every name has it, 'module.' likewise.
    state_dict = {'model.w': torch.ones(1), 'head.w': torch.ones(1)}
    assert extract_state_dict(state_dict) == state_dict
