"""The order of Mask2Former's post-processing, by hand."""

import pytest
import torch
from golden_detseg import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch.nn import functional as F

CONFIG = 'mapillary/mask2former_internimage-h_16xb2-80k_mapillary-896x896.py'


@pytest.fixture(scope='module')
def head():
    cfg = Config.fromfile(ROOT / 'configs' / CONFIG).model.decode_head
    cfg.update(in_channels=[8, 16, 32, 64], num_queries=7)
    cfg.transformer_decoder.num_layers = 2
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        built = MODELS.build(cfg)
    built.init_weights()
    return built.eval()


@pytest.fixture(scope='module')
def features():
    torch.manual_seed(1)
    return [torch.randn(2, 8 * 2**i, 16 // 2**i, 24 // 2**i) for i in range(4)]


@torch.no_grad()
def predict_by_hand(head, features, size):
    cls_scores, mask_logits = (outputs[-1] for outputs in head(features, [None, None]))
    probabilities = cls_scores.softmax(-1)[..., :-1]
    maps = (probabilities[..., None, None] * mask_logits.sigmoid()[:, :, None]).sum(1)
    return F.interpolate(maps, size, mode='bilinear', align_corners=False)


@pytest.mark.parametrize(
    'meta',
    [
        {'img_shape': (63, 95)},
        {'img_shape': (60, 90), 'pad_shape': (63, 95)},
        # In a window: mmseg overwrites img_shape; pad_shape is still that of the whole image.
        {'img_shape': torch.Size((63, 95)), 'pad_shape': (512, 1024)},
    ],
    ids=['whole', 'padded', 'window'],
)
@torch.no_grad()
def test_predict(head, features, meta):
    actual = head.predict(features, [meta, meta], {})
    assert actual.shape == (2, 19, 63, 95)
    expected = predict_by_hand(head, features, (63, 95))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    # mmseg's own order gives something else.
    stock_meta = {'img_shape': (63, 95)}
    stock = super(type(head), head).predict(features, [stock_meta] * 2, {})
    assert (stock - actual).abs().max() > 1e-3
