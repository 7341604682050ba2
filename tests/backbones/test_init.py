"""How the weights start, and ``init_cfg``. tests/checkpoint has every layout and every error."""

import math

import pytest
import torch
from backbones.helpers import golden, tiny
from golden.deterministic_weights import tensor_for
from mmengine.config import ConfigDict
from mmengine.model import BaseModule, PretrainedInit
from mmengine.registry import MODELS
from torch import nn

from internimage_mm import CBInternImage, InternImage
from internimage_mm.checkpoint import CheckpointError
from ops_dcnv3 import DCNv3


@pytest.fixture
def model():
    torch.manual_seed(0)
    return tiny(
        channels=32,
        layer_scale=0.5,
        res_post_norm=True,
        center_feature_scale=True,
        dw_kernel_size=5,
    )


def start(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_zero_offsets_masks_and_centre_weights(model):
    layers = [m for m in model.modules() if isinstance(m, DCNv3)]
    assert len(layers) == sum(model.depths)
    for layer in layers:
        for parameter in (
            *layer.offset.parameters(),
            *layer.mask.parameters(),
            layer.center_feature_scale_proj_weight,
            layer.center_feature_scale_proj_bias,
        ):
            assert not parameter.any()


def test_distributions(model):
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert not module.bias.any(), name
        if isinstance(module, nn.Linear) and '.mlp.' in name:
            # Standard error of a standard deviation over n samples: std / sqrt(2 n).
            deviation = 0.02 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(0.02, abs=5 * deviation), name
        if name.endswith(('input_proj', 'output_proj')):
            bound = math.sqrt(6 / (2 * module.in_features))
            assert 0.95 * bound < module.weight.abs().max() <= bound, name
        if isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any(), name
            assert module.eps == 1e-6
    gammas = [p for k, p in model.named_parameters() if 'gamma' in k]
    assert len(gammas) == 2 * sum(model.depths)
    assert all((gamma == 0.5).all() for gamma in gammas)


def test_init_weights_without_a_checkpoint_changes_nothing(model):
    before = start(model)
    model.init_weights()
    model.init_weights()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('listed', [False, True])
def test_other_init_cfg_is_that_of_mmengine(listed):
    init_cfg = dict(type='Constant', layer='Conv2d', val=0.25)
    model = tiny(init_cfg=[init_cfg] if listed else init_cfg)
    model.init_weights()
    assert (model.patch_embed.conv1.weight == 0.25).all()
    assert not model.levels[0].blocks[0].dcn.offset.weight.any()


# ---- init_cfg=dict(type='Pretrained') -----------------------------------------------------------


def official_weights(name):
    return {k: torch.from_numpy(tensor_for(k, s, t)) for k, s, t in golden(name)['keys']}


class Detector(BaseModule):
    """Initialised as by mmengine's runner: through ``init_weights`` of the whole model."""

    def __init__(self, backbone, init_cfg=None):
        super().__init__(init_cfg)
        self.backbone = MODELS.build(backbone)


OTHER = dict(type='TruncNormal', layer=['Conv2d', 'Linear', 'LayerNorm'], std=0.5, bias=0.5)
FORMS = {
    'dict': lambda pretrained: pretrained,
    'list': lambda pretrained: [pretrained],
    'others first': lambda pretrained: [OTHER, pretrained],
    'others last': lambda pretrained: [pretrained, OTHER],
    'class': lambda pretrained: [dict(pretrained, type=PretrainedInit)],
    'prefix': lambda pretrained: [dict(pretrained, prefix='backbone.')],
}


@pytest.fixture(params=FORMS)
def init_cfg(request, tmp_path):
    """Names the file of a detector with the backbone l_like."""
    weights = {f'backbone.{k}': v for k, v in official_weights('l_like').items()}
    weights['bbox_head.weight'] = torch.ones(1)
    torch.save({'state_dict': weights, 'meta': {}}, tmp_path / 'l.pth')
    return FORMS[request.param](dict(type='Pretrained', checkpoint=str(tmp_path / 'l.pth')))


def test_every_form_loads(init_cfg):
    config = dict(type='InternImage', **golden('l_like')['config'], init_cfg=init_cfg)
    # The initialisers of the whole model must not overwrite the backbone.
    detector = Detector(ConfigDict(config), init_cfg=[OTHER])
    detector.init_weights()
    state, weights = detector.backbone.state_dict(), official_weights('l_like')
    assert list(state) == list(weights)
    for key, value in weights.items():
        assert torch.equal(state[key], value), key


def test_unknown_initialiser_is_not_taken_for_pretrained(tmp_path):
    config = golden('l_like')['config']
    torch.save(official_weights('l_like'), tmp_path / 'l.pth')
    wrong = dict(type='Pretraind', checkpoint=str(tmp_path / 'l.pth'))
    with pytest.raises(KeyError, match='Pretraind'):
        InternImage(**config, init_cfg=wrong).init_weights()


def test_override_of_the_whole_model(tmp_path):
    pretrained = dict(type='Pretrained', name='backbone', checkpoint=str(tmp_path / 'l.pth'))
    weights = official_weights('l_like')
    for saved in (weights, {k: v for k, v in weights.items() if 'mlp.fc1' not in k}):
        torch.save({'model': saved}, tmp_path / 'l.pth')
        config = dict(type='InternImage', **golden('l_like')['config'])
        detector = Detector(ConfigDict(config), init_cfg=[{**OTHER, 'override': pretrained}])
        if saved is weights:
            detector.init_weights()
            assert torch.equal(
                detector.backbone.levels[0].blocks[0].mlp.fc1.weight,
                saved['levels.0.blocks.0.mlp.fc1.weight'],
            )
        else:
            with pytest.raises(CheckpointError, match='missing in the file'):
                detector.init_weights()


def test_every_form_loads_into_the_composite_backbone(init_cfg, monkeypatch):
    config = {**golden('l_like')['config'], 'out_indices': [(1, 2, 3), (1, 2, 3)]}
    model = CBInternImage(**config, init_cfg=init_cfg)
    reads, load = [], torch.load
    monkeypatch.setattr(torch, 'load', lambda *args, **kw: reads.append(args) or load(*args, **kw))
    model.init_weights()
    assert len(reads) == 1
    weights = official_weights('l_like')
    assisting, lead = model.cb_modules
    for backbone, prefix in ((assisting, ''), (lead.levels, 'levels.')):
        for key, value in backbone.state_dict().items():
            assert torch.equal(value, weights[prefix + key]), key
    assert not any(lead.get_parameter(f'gamma{i}').any() for i in range(4))


def test_every_form_raises_for_another_variant(init_cfg):
    model = InternImage(**golden('h_like')['config'], init_cfg=init_cfg)
    wanted = model.state_dict().keys()
    missing = wanted - official_weights('l_like').keys()
    with pytest.raises(CheckpointError) as error:
        model.init_weights()
    message = str(error.value)
    assert f'{len(missing)} of {len(wanted)} weights of the model are missing' in message
    assert any(key in message for key in missing)
