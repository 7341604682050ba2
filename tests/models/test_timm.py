"""Our models in timm, through its public functions."""

import pytest
import torch

import internimage_mm.timm
from internimage_mm.models.classifier import adapt_input_conv
from internimage_mm.models.factory import weights_of

# isort: split
import timm
from timm.models import adapt_input_conv as timm_rule
from timm.optim import create_optimizer_v2

SMALL = dict(channels=16, depths=[1, 1, 2, 1], groups=[1, 2, 4, 8])
SIZES = ['tiny', 'small', 'base', 'large', 'xlarge', 'huge', 'giant']


def test_names_and_weights():
    assert sorted(timm.list_models('internimage*')) == sorted(f'internimage_{s}' for s in SIZES)
    for size in SIZES:
        (name,) = timm.list_pretrained(f'internimage_{size}.*')
        assert timm.get_pretrained_cfg(name).url == weights_of(size, True)
    assert timm.get_pretrained_cfg('internimage_large.in22k_ft_in1k_384').input_size == (
        3,
        384,
        384,
    )


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 2)])
def test_features(out_indices):
    model = timm.create_model(
        'internimage_tiny', features_only=True, out_indices=out_indices, in_chans=1, **SMALL
    )
    features = model(torch.rand(1, 1, 64, 64))
    assert model.feature_info.channels() == [f.shape[1] for f in features]
    assert model.feature_info.reduction() == [64 // f.shape[2] for f in features]
    with pytest.raises(ValueError, match="feature_cls must be 'getter'"):
        timm.create_model('internimage_tiny', features_only=True, feature_cls='hook', **SMALL)


def test_pretrained(tmp_path):
    """A file of the release with its name in timm's cache, for one channel and five classes."""
    source = internimage_mm.create_model('internimage_tiny', **SMALL)
    torch.save({'model': source.state_dict()}, tmp_path / 'internimage_t_1k_224.pth')
    model = timm.create_model(
        'internimage_tiny', True, in_chans=1, num_classes=5, cache_dir=tmp_path, **SMALL
    )
    block, other = (m.backbone.levels[2].blocks[1].dcn.input_proj for m in (model, source))
    assert torch.equal(block.weight, other.weight)
    assert model.get_classifier().out_features == 5


@pytest.mark.parametrize('channels', [1, 2, 3, 4, 7])
def test_rule_for_input_channels(channels):
    weight = torch.rand(8, 3, 3, 3)
    torch.testing.assert_close(adapt_input_conv(channels, weight), timm_rule(channels, weight))


def test_layer_decay():
    """Each block is a layer, and so is the stem; the end of a stage belongs to its last block."""
    model = timm.create_model('internimage_tiny', **SMALL)
    optimizer = create_optimizer_v2(model, 'adamw', lr=1.0, layer_decay=0.5)
    names = {id(p): n for n, p in model.named_parameters()}
    scale = {names[id(p)]: g['lr_scale'] for g in optimizer.param_groups for p in g['params']}
    order = [
        *('backbone.patch_embed.conv1', 'backbone.levels.0.blocks.0.mlp.fc1'),
        *('backbone.levels.0.downsample.conv', 'backbone.levels.2.blocks.0.mlp.fc1'),
        *('backbone.levels.2.blocks.1.mlp.fc1', 'backbone.levels.3.norm.0', 'head.fc'),
    ]
    assert [scale[f'{name}.weight'] for name in order] == [2**-n for n in (6, 5, 5, 3, 2, 1, 0)]
