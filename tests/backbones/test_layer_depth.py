"""``get_layer_depth`` against the rule of the official classification optimizer.

The rate of a block is ``decay ** index``, the index counting from the last block (0) to the first.
The stem has the rate of the first block, downsampling and end norm of a level that of the first
block of the next level, and everything else the full rate.
"""

import pytest
from backbones.helpers import tiny
from mmengine.optim import build_optim_wrapper
from mmpretrain.registry import MODELS

DEPTHS = [2, 1, 12, 2]
# Index from the last block, of 17.
INDEX = {
    'patch_embed.conv1.weight': 16,
    'patch_embed.norm2.1.bias': 16,
    'levels.0.blocks.0.norm1.0.weight': 16,
    'levels.0.blocks.1.dcn.offset.weight': 15,
    'levels.0.norm.0.weight': 14,
    'levels.0.downsample.conv.weight': 14,
    'levels.1.blocks.0.mlp.fc1.bias': 14,
    'levels.1.norm.0.bias': 13,
    'levels.1.downsample.norm.1.weight': 13,
    'levels.2.blocks.0.gamma1': 13,
    'levels.2.blocks.1.gamma2': 12,
    'levels.2.blocks.10.dcn.mask.bias': 3,
    'levels.2.blocks.11.norm2.0.bias': 2,
    'levels.2.post_norms.0.0.weight': 0,
    'levels.2.norm.0.weight': 1,
    'levels.2.downsample.conv.weight': 1,
    'levels.3.blocks.0.dcn.input_proj.weight': 1,
    'levels.3.blocks.1.dcn.output_proj.bias': 0,
    'levels.3.norm.0.weight': 0,
}
SETTINGS = dict(
    depths=DEPTHS, layer_scale=1.0, level2_post_norm=True, level2_post_norm_block_ids=[3]
)


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_rule(prefix):
    model = tiny(**SETTINGS)
    assert INDEX.keys() <= dict(model.named_parameters()).keys()
    depth = {k: model.get_layer_depth(prefix + k, prefix) for k in INDEX}
    assert depth == {k: (16 - index, 17) for k, index in INDEX.items()}


def test_parameters_outside_the_backbone_belong_to_the_last_block():
    model = tiny(**SETTINGS)
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (16, 17)
    assert model.get_layer_depth('levels.0.blocks.0.gamma1', 'backbone.') == (16, 17)


def test_layer_decay_of_mmpretrain():
    classifier = MODELS.build(
        dict(
            type='mmpretrain.ImageClassifier',
            backbone=dict(
                **{'type': 'InternImage', 'channels': 16, 'groups': [1, 2, 4, 8]}, **SETTINGS
            ),
            neck=dict(type='mmpretrain.GlobalAveragePooling'),
            head=dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=128),
        )
    )
    wrapper = build_optim_wrapper(
        classifier,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
            constructor='mmpretrain.LearningRateDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.5),
        ),
    )
    name_of = {id(p): k for k, p in classifier.named_parameters()}
    rates = {
        name_of[id(p)]: group['lr']
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }
    assert rates.keys() == set(name_of.values())
    for name, index in INDEX.items():
        assert rates[f'backbone.{name}'] == pytest.approx(1e-3 * 0.5**index), name
    assert rates['head.fc.weight'] == pytest.approx(1e-3)
