"""Official names to ours and back: every official model by its full list of names and shapes."""

import pytest
import torch
from checkpoint.helpers import (
    CB_DINO,
    CLASSIFIERS,
    DINO,
    MASK2FORMER,
    UPERNET,
    empty,
    giant,
    official_shapes,
)
from golden_optim import golden_optim_names

from internimage_mm.checkpoint import CheckpointError, convert_official, convert_to_official
from internimage_mm.checkpoint.convert import convert
from internimage_mm.checkpoint.names import FAMILIES


def shapes(state_dict):
    return {name: list(tensor.shape) for name, tensor in state_dict.items()}


@pytest.mark.parametrize('name', [*golden_optim_names(), *CLASSIFIERS])
def test_every_official_model_there_and_back(name):
    """Names and shapes of the full-size models; nothing is left over, twice is the same as once."""
    official = official_shapes(name)
    ours = convert(empty(official), 'ours')
    assert ours.left_over == []
    assert not (ours.dropped or ours.merged or ours.split)
    back = convert(ours.state_dict, 'official')
    assert back.left_over == []
    assert shapes(back.state_dict) == official
    again = convert(ours.state_dict, 'ours')
    assert again.left_over == []
    assert not again.rows
    assert again.state_dict.keys() == ours.state_dict.keys()
    assert not convert(empty(official), 'official').rows


# What test_every_official_model_there_and_back cannot tell: that the names are the right ones.
# Attention 0 is self-attention in DINO and cross-attention in Mask2Former.
EXPECTED = {
    DINO: {
        'bbox_head.transformer.level_embeds': 'level_embed',
        'bbox_head.transformer.query_embed.weight': 'query_embedding.weight',
        'bbox_head.transformer.enc_output.weight': 'memory_trans_fc.weight',
        'bbox_head.transformer.enc_output_norm.bias': 'memory_trans_norm.bias',
        'bbox_head.transformer.encoder.layers.5.attentions.0.sampling_offsets.weight': (
            'encoder.layers.5.self_attn.sampling_offsets.weight'
        ),
        'bbox_head.transformer.encoder.layers.2.ffns.0.layers.0.0.weight': (
            'encoder.layers.2.ffn.layers.0.0.weight'
        ),
        'bbox_head.transformer.encoder.layers.2.ffns.0.layers.1.bias': (
            'encoder.layers.2.ffn.layers.1.bias'
        ),
        'bbox_head.transformer.encoder.layers.1.norms.1.weight': 'encoder.layers.1.norms.1.weight',
        'bbox_head.transformer.decoder.layers.3.attentions.0.attn.in_proj_weight': (
            'decoder.layers.3.self_attn.attn.in_proj_weight'
        ),
        'bbox_head.transformer.decoder.layers.3.attentions.1.value_proj.bias': (
            'decoder.layers.3.cross_attn.value_proj.bias'
        ),
        'bbox_head.transformer.decoder.layers.4.ffns.0.layers.1.weight': (
            'decoder.layers.4.ffn.layers.1.weight'
        ),
        'bbox_head.transformer.decoder.layers.0.norms.2.bias': 'decoder.layers.0.norms.2.bias',
        'bbox_head.transformer.decoder.ref_point_head.0.weight': (
            'decoder.ref_point_head.layers.0.weight'
        ),
        'bbox_head.transformer.decoder.ref_point_head.2.bias': (
            'decoder.ref_point_head.layers.1.bias'
        ),
        'bbox_head.transformer.decoder.norm.weight': 'decoder.norm.weight',
        'bbox_head.label_embedding.weight': 'dn_query_generator.label_embedding.weight',
        'bbox_head.cls_branches.6.bias': 'bbox_head.cls_branches.6.bias',
        'bbox_head.reg_branches.6.4.weight': 'bbox_head.reg_branches.6.4.weight',
        'neck.extra_convs.0.gn.bias': 'neck.extra_convs.0.gn.bias',
        'backbone.levels.3.norm.0.weight': 'backbone.levels.3.norm.0.weight',
    },
    CB_DINO: {
        'neck.0.convs.2.conv.weight': 'neck.convs.2.conv.weight',
        'neck.0.extra_convs.0.gn.weight': 'neck.extra_convs.0.gn.weight',
        'backbone.cb_modules.1.gamma3': 'backbone.cb_modules.1.gamma3',
        'bbox_head.transformer.decoder.layers.5.attentions.0.attn.out_proj.bias': (
            'decoder.layers.5.self_attn.attn.out_proj.bias'
        ),
    },
    MASK2FORMER: {
        'decode_head.transformer_decoder.layers.8.attentions.0.attn.in_proj_weight': (
            'decode_head.transformer_decoder.layers.8.cross_attn.attn.in_proj_weight'
        ),
        'decode_head.transformer_decoder.layers.8.attentions.1.attn.in_proj_weight': (
            'decode_head.transformer_decoder.layers.8.self_attn.attn.in_proj_weight'
        ),
        'decode_head.transformer_decoder.layers.0.ffns.0.layers.0.0.bias': (
            'decode_head.transformer_decoder.layers.0.ffn.layers.0.0.bias'
        ),
        'decode_head.pixel_decoder.encoder.layers.5.attentions.0.output_proj.weight': (
            'decode_head.pixel_decoder.encoder.layers.5.self_attn.output_proj.weight'
        ),
        'decode_head.pixel_decoder.encoder.layers.5.ffns.0.layers.1.weight': (
            'decode_head.pixel_decoder.encoder.layers.5.ffn.layers.1.weight'
        ),
        'decode_head.mask_embed.4.bias': 'decode_head.mask_embed.4.bias',
        'decode_head.level_embed.weight': 'decode_head.level_embed.weight',
    },
}


@pytest.mark.parametrize('name', EXPECTED)
def test_names(name):
    official = official_shapes(name)
    # One number per tensor that tells it from all others.
    numbered = {k: torch.tensor(i).expand(v) for i, (k, v) in enumerate(official.items())}
    ours = convert_official(numbered)
    for old, new in EXPECTED[name].items():
        assert ours[new] is numbered[old], new
    back = convert_to_official(ours)
    assert back.keys() == numbered.keys()
    assert all(back[k] is v for k, v in numbered.items())


def test_classifier_names():
    trunk = {'patch_embed.conv1.weight': 1, 'levels.0.blocks.0.dcn.offset.bias': 2}
    pooled = {'conv_head.1.0.running_mean': 3, 'head.weight': 4, 'head.bias': 5}
    clip = {'dcnv3_head_x4.0.bias': 6, 'dcnv3_head_x3.weight': 7, 'fc_norm.0.bias': 8,
            'clip_projector.cross_dcn.q_bias': 9, 'head.weight': 4}  # fmt: skip
    assert convert_official({**trunk, **pooled}) == {
        'backbone.patch_embed.conv1.weight': 1,
        'backbone.levels.0.blocks.0.dcn.offset.bias': 2,
        'neck.conv_head.1.0.running_mean': 3,
        'head.fc.weight': 4,
        'head.fc.bias': 5,
    }
    assert convert_official({**trunk, **clip}) == {
        'backbone.patch_embed.conv1.weight': 1,
        'backbone.levels.0.blocks.0.dcn.offset.bias': 2,
        'neck.dcnv3_head_x4.0.bias': 6,
        'neck.dcnv3_head_x3.weight': 7,
        'neck.fc_norm.0.bias': 8,
        'neck.clip_projector.cross_dcn.q_bias': 9,
        'head.fc.weight': 4,
    }
    # A backbone alone has the same names in both.
    assert convert_official(trunk) == trunk == convert_to_official(trunk)


def test_split_ffn_is_merged_and_split_again():
    official = giant()
    conversion = convert(official, 'ours')
    assert conversion.left_over == []
    assert len(conversion.merged) == 2 * 6 * 3
    ours = conversion.state_dict
    back = convert(ours, 'official')
    assert back.left_over == []
    assert len(back.split) == 2 * 6 * 3
    assert back.state_dict.keys() == official.keys()
    assert all(torch.equal(back.state_dict[k], v) for k, v in official.items())
    # Each part is saved alone, not with all of the tensor it comes from.
    part = back.state_dict['bbox_head.transformer.decoder.layers.1.ffns.0.fc2_3.weight']
    assert part.untyped_storage().nbytes() == part.numel() * 4
    assert convert(ours, 'ours').left_over == []
    assert convert(official, 'official').state_dict.keys() == official.keys()


def test_merged_ffn_computes_the_same():
    official = giant()
    ours = convert_official(official)
    stem = 'bbox_head.transformer.encoder.layers.0.ffns.0'
    x = torch.randn(5, 64, generator=torch.manual_seed(0), dtype=torch.float64)
    weights = {k.removeprefix(f'{stem}.'): v.double() for k, v in official.items() if stem in k}
    summed = sum(
        (x @ weights[f'fc1_{i}.weight'].T + weights[f'fc1_{i}.bias']).relu()
        @ weights[f'fc2_{i}.weight'].T
        for i in range(4)
    ) + weights['fc2_bias']  # fmt: skip
    w = {k.removeprefix('encoder.layers.0.ffn.layers.'): v.double() for k, v in ours.items()}
    merged = (x @ w['0.0.weight'].T + w['0.0.bias']).relu() @ w['1.weight'].T + w['1.bias']
    # Measured 4e-16: float64, another order of summation.
    torch.testing.assert_close(merged, summed, rtol=0, atol=5e-15)


def test_incomplete_split_ffn_is_left_over():
    official = giant()
    lost = 'bbox_head.transformer.encoder.layers.4.ffns.0.fc1_2.bias'
    del official[lost]
    conversion = convert(official, 'ours')
    assert sorted(conversion.left_over) == [
        lost.replace('fc1_2', f'fc1_{i}') for i in (0, 1, 3)
    ]  # fmt: skip
    assert 'encoder.layers.4.ffn.layers.0.0.bias' not in conversion.state_dict


def test_ffn_that_cannot_be_split():
    ours = convert_official(giant())
    ours['encoder.layers.0.ffn.layers.0.0.bias'] = torch.zeros(6)
    with pytest.raises(CheckpointError, match=r'0\.bias cannot be split into 4 .* is \(6,\)'):
        convert_to_official(ours)


def test_unused_classifier_of_mask2former_is_dropped():
    official = empty(official_shapes(MASK2FORMER))
    old = {**official, 'decode_head.conv_seg.weight': 1, 'decode_head.conv_seg.bias': 2}
    conversion = convert(old, 'ours')
    assert conversion.dropped.keys() == {
        'decode_head.conv_seg.weight',
        'decode_head.conv_seg.bias',
    }
    assert conversion.left_over == []
    assert conversion.state_dict.keys() == convert_official(official).keys()
    # Other decode heads do use theirs.
    upernet = empty(official_shapes(UPERNET))
    assert 'decode_head.conv_seg.weight' in convert_official(upernet)


def test_unknown_names_are_kept_and_reported():
    name = 'bbox_head.transformer.surprise.weight'
    conversion = convert({**empty(official_shapes(DINO)), name: torch.ones(1)}, 'ours')
    assert conversion.left_over == [name]
    assert name in conversion.state_dict
    other = {'backbone.conv1.weight': torch.ones(1), 'bbox_head.retina_cls.bias': torch.ones(1)}
    conversion = convert(other, 'ours')
    assert conversion.family is None
    assert conversion.left_over == list(other)
    assert conversion.state_dict == other


def test_no_row_is_ambiguous():
    """Whatever matches the official side of a row and the other side of another is a mistake."""
    for family in FAMILIES:
        fill = dict(i=0, j=0, k=1, m=1, n=0, p='weight', x='0.weight')
        for official, ours in family.rows:
            example = official.format_map(fill)
            if official != ours:
                assert not any(p.fullmatch(example) for p in family.ours), (family.title, official)
