"""Losses and gradients of the detectors against the official implementation.

The random numbers follow the rule of the golden data (``helpers.GoldenRandom``): the denoising
queries and the sampled anchors and boxes are thereby the official ones. The second image of a pair
is the first one mirrored (padding included), cut to its ``img_shape``, and zero elsewhere.

Tolerances. Between two CPU kernels the official losses move by up to 1.6e-6 and the norms of the
gradients by up to 1.1e-3, relative. Measured here: at most 9.2e-7 and 6.5e-4.
"""

import json

import numpy as np
import pytest
import torch
from det import helpers
from mmdet.structures.mask import BitmapMasks

from internimage_mm.checkpoint import convert_to_official

LOSS_TOLERANCE = 5e-6
GRADIENT_TOLERANCE = 3e-3


def compute_losses(name, monkeypatch, training=True):
    """The detector after ``loss`` on the golden pair of images, the losses and the golden file."""
    golden = json.loads((helpers.GOLDEN / name / 'losses.json').read_text())
    model = helpers.detector(name)
    # As the golden losses: modules in evaluation mode, and DINO with denoising queries, which hang
    # on the mode of the detector itself.
    model.training = training
    samples = helpers.training_samples(golden)
    images = helpers.golden_input(name)
    for sample in samples[1:]:
        height, width = sample.img_shape
        image = torch.zeros_like(images[:1])
        image[..., :height, :width] = images[:1].flip(-1)[..., :height, :width]
        images = torch.cat([images, image])
    for sample in samples:  # the masks of the golden run are not recorded: full boxes
        masks = np.zeros((len(sample.gt_instances), *sample.pad_shape), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, sample.gt_instances.bboxes.int(), strict=True):
            mask[y1:y2, x1:x2] = 1
        sample.gt_instances.masks = BitmapMasks(masks, *sample.pad_shape)
    random = helpers.GoldenRandom()
    random.patch(monkeypatch)
    losses = model.loss(images, samples)
    assert random.calls == golden['random_calls']
    return model, losses, golden


def total(losses):
    return sum(
        sum(value) if isinstance(value, (list, tuple)) else value
        for name, value in losses.items()
        if 'loss' in name
    )


def assert_losses(losses, expected):
    """Compare all losses by their official names."""
    losses = {name.replace('enc_loss', 'interm_loss'): value for name, value in losses.items()}
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        np.testing.assert_allclose(
            [float(v.detach()) for v in values],
            np.atleast_1d(expected[name]),
            rtol=LOSS_TOLERANCE,
            err_msg=name,
        )


def assert_gradients(model, expected):
    """Every parameter named has a gradient, of the official norm."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients = {name: g for name, g in gradients.items() if g is not None}
    gradients = convert_to_official(gradients)
    for name, norm in expected.items():
        actual = float(gradients[name].double().norm())
        assert actual == pytest.approx(norm, rel=GRADIENT_TOLERANCE, abs=1e-12), name


@pytest.mark.parametrize('name', ['dino_t_like_q100', 'cbdino_h_like_q100'])
def test_dino(name, monkeypatch):
    model, losses, golden = compute_losses(name, monkeypatch)
    assert_losses(losses, golden['losses'])
    loss = total(losses)
    assert float(loss.detach()) == pytest.approx(golden['total'], rel=LOSS_TOLERANCE)
    loss.backward()
    assert len(golden['grad_l2_norm']) == len(list(model.parameters()))
    assert_gradients(model, golden['grad_l2_norm'])


def test_denoising_queries(monkeypatch):
    name = 'dino_t_like_q100'
    golden = json.loads((helpers.GOLDEN / name / 'losses.json').read_text())
    stored = helpers.arrays(name, 'train_dn')
    model = helpers.detector(name)
    helpers.GoldenRandom().patch(monkeypatch)
    _, boxes, mask, dn_meta = model.dn_query_generator(helpers.training_samples(golden))
    # Logits of sums and products in another order. Measured: 8.3e-7 relative.
    np.testing.assert_allclose(boxes.numpy(), stored['dn_bbox_query'], rtol=4e-6, atol=1e-6)
    size = tuple(stored['attn_mask_shape'])
    expected = np.unpackbits(stored['attn_mask_packbits'])[: size[0] * size[1]].reshape(size)
    np.testing.assert_array_equal(mask.numpy(), expected.astype(bool))
    assert dn_meta == {
        'num_denoising_queries': golden['dn_meta']['pad_size'],
        'num_denoising_groups': golden['dn_meta']['num_dn_group'],
    }


def test_mask_rcnn(monkeypatch):
    model, losses, golden = compute_losses('mask_rcnn_t', monkeypatch, training=False)
    # The golden masks are not recorded, so neither their loss nor what depends on it is compared.
    expected = golden['losses']
    assert losses.pop('loss_mask').isfinite() and expected.pop('loss_mask')
    assert_losses(losses, expected)
    total(losses).backward()
    heads = ('rpn_head.', 'roi_head.bbox_head.')
    norms = {name: n for name, n in golden['grad_l2_norm'].items() if name.startswith(heads)}
    assert len(norms) == 14
    assert_gradients(model, norms)
