"""Behaviour of necks and head beyond the golden values."""

import pytest
import torch
from mmpretrain.structures import DataSample

from internimage_mm.cls import AttentionPoolingNeck, ConvPoolingNeck, MetadataLinearClsHead


def neck(**changes):
    settings = dict(in_channels=[8, 16], embed_channels=32, num_heads=4, out_channels=12)
    return AttentionPoolingNeck(**{**settings, **changes})


def features(height, width, batch=2):
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(batch, channels, -(-height // s), -(-width // s), generator=generator)
        for channels, s in ((8, 16), (16, 32))
    )


def test_attention_pooling_against_the_formula():
    """One token at a time, in loops, from the description of the projector."""
    torch.manual_seed(0)
    module = neck().double()
    module.init_weights()
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x3, x4 = (f.double() for f in features(64, 96))
    (result,) = module((x3, x4))
    pool, attention = module.clip_projector, module.clip_projector.cross_dcn
    low = torch.nn.functional.pixel_shuffle(module.dcnv3_head_x4[0](x4), 2)
    tokens = (low + module.dcnv3_head_x3(x3)).flatten(2).permute(0, 2, 1)
    expected = []
    for image in tokens:
        q = attention.q(pool.norm1_q(image.mean(0))) + attention.q_bias
        k = attention.k(pool.norm1_k(image)) + attention.k_bias
        v = attention.v(pool.norm1_v(image)) + attention.v_bias
        heads = []
        for h in range(4):
            part = slice(8 * h, 8 * h + 8)
            weights = ((q[part] * 8**-0.5) @ k[:, part].T).softmax(0)
            heads.append(weights @ v[:, part])
        expected.append(module.fc_norm(attention.proj(torch.cat(heads))))
    torch.testing.assert_close(result, torch.stack(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('size', [(64, 80), (40, 64), (65, 64)])
def test_sizes_that_are_no_multiples_of_32_are_refused(size):
    with pytest.raises(ValueError, match='multiples of 32'):
        neck()(features(*size))


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match='num_heads'):
        neck(num_heads=5)
    with pytest.raises(ValueError, match='in_channels'):
        neck(in_channels=[16])
    with pytest.raises(ValueError, match='out_indices'):
        neck()(features(64, 64)[1:])


def test_conv_pooling_uses_the_last_feature_only():
    module = ConvPoolingNeck(16, 24).eval()
    x3, x4 = features(64, 96)
    (result,) = module((x3, x4))
    conv, norm, act = module.conv_head
    expected = torch.nn.functional.adaptive_avg_pool2d(act(norm(conv(x4))), 1).flatten(1)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


def head():
    torch.manual_seed(0)
    module = MetadataLinearClsHead(num_classes=5, in_channels=6, meta_channels=8)
    module.init_weights()
    return module


def sample(temporal, spatial, label=1):
    data = DataSample().set_gt_label(label)
    data.set_metainfo(dict(temporal_info=temporal, spatial_info=spatial))
    return data


def test_scores_are_the_sum_of_image_and_metadata():
    module = head().double()
    x = torch.randn(2, 6, dtype=torch.float64)
    meta = [([0.1, 0.2, 0.0, 0.0], [1.0, -0.5, 0.25]), ([0.0] * 4, [0.3, 0.2, 0.1])]
    scores = module((x,), [sample(*m) for m in meta])
    for i, (temporal, spatial) in enumerate(meta):
        encoded = torch.cat([
            module.meta_head_1(torch.tensor(temporal, dtype=torch.float64)),
            module.meta_head_2(torch.tensor(spatial, dtype=torch.float64)),
        ])  # fmt: skip
        expected = module.fc(x[i]) + module.meta_head(module.meta_norm(encoded))
        torch.testing.assert_close(scores[i], expected)
    assert not torch.allclose(scores[0] - module.fc(x[0]), scores[1] - module.fc(x[1]))


def test_unknown_metadata_are_zeros():
    module = head()
    x = (torch.randn(2, 6),)
    zeros = [sample([0.0] * 4, [0.0] * 3)] * 2
    known = [sample([0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0])] * 2
    assert torch.equal(module(x), module(x, zeros))
    assert torch.equal(module(x), module(x, [DataSample(), None]))
    assert not torch.equal(module(x), module(x, known))
    assert [len(p.pred_score) for p in module.predict(x)] == [5, 5]


def test_loss_and_prediction_use_the_metadata():
    module = head()
    x = (torch.randn(2, 6),)
    samples = [sample([0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0], label) for label in (1, 4)]
    scores = module(x, samples)
    expected = torch.nn.functional.cross_entropy(scores, torch.tensor([1, 4]))
    torch.testing.assert_close(module.loss(x, samples)['loss'], expected)
    predicted = torch.stack([p.pred_score for p in module.predict(x, samples)])
    torch.testing.assert_close(predicted, scores.softmax(1))
