"""Detectors end to end against the official implementation under deterministic weights.

Official names and weights -> converter -> detector of our config -> our test pipeline on the golden
image -> every stage up to the final detections. Every recorded array is compared, the largest
feature maps at every third row and column of the recorded channels.

Tolerances. ``stability.json`` says how far the official results move when the same official code
runs on other CPU kernels (max abs difference of each array). Ours may be FACTOR times as far from
the stored ones. Measured: at most 2.9 (boxes of dino_t), and at most 1.6 for the others.

In dino_t, whose image has 2301 tokens for 900 queries, neighbours in the ranking of the encoder's
proposals are closer than float32 noise: the official run itself swaps two of them. That ranking is
therefore put in; the tolerances downstream are those of dino_t_like_q100, which has no such ties.
"""

import functools

import numpy as np
import pytest
import torch
from det import helpers
from golden_detseg import STABILITY, arrays, assert_near, golden_input, meta

FACTOR = 4
DINO = ['dino_t', 'dino_t_like_q100', 'cbdino_h_like_q100']
CASCADE_STAGES = 3
# Proposals of cascade_l_like whose scores are equal but for the last bits change places.
EQUAL_SCORES = 1e-6
# How far masks may be from the official ones: pixels of one area, number of areas, pixels of the
# first ten masks. Between CPU kernels the official code differs in 15 and 22 of 100 areas and in 1
# and 5 bytes of the first ten masks: a pixel on the edge of a mask may fall to either side.
MASK_NOISE = {'mask_rcnn_t': (2, 30, 4), 'cascade_l_like': (4, 44, 8)}
# Have tests of their own (labels, ranking, masks), are in another array (topk_anchor is the first
# of reference_points_all), or only explain the golden data.
NOT_COMPARED = {
    *('topk_indices', 'topk_anchor', 'topk_min_gap', 'n_degenerate_anchors', 'final_label'),
    *('final_mask_area', 'final_masks_packbits_first10', 'final_mask_shape'),
}


# Of dino_t. Rounding anywhere, as of the image, moves one of its 900 queries either by 1e-6 or by
# 2.7e-6, with tolerances made for 100 queries. The official results are on the first side: so must
# ours be, for the image or for one that differs from it by rounding (4 in 10 of those are). On the
# other side nothing but this query may be off, and by no more.
BISTABLE = {'bbox_pred_last', 'reference_points_all'}
NUDGES = 16
OTHER_SIDE = 3e-6


def tolerance(name, key):
    upstream = key.startswith(('backbone', 'neck', 'encoder'))
    source = name if name != 'dino_t' or upstream else 'dino_t_like_q100'
    return FACTOR * STABILITY[source]['all'][key.removesuffix('__every3rd_pixel')]


def run_features(model, inputs, results):
    features = model.backbone(inputs)
    if isinstance(features[0], tuple):
        for branch, maps in enumerate(features):
            results |= {f'backbone{branch}_{i}': x for i, x in enumerate(maps)}
    else:
        results |= {f'backbone{i}': x for i, x in enumerate(features)}
    maps = model.extract_feat(inputs)
    results |= {f'neck{i}': x for i, x in enumerate(maps)}
    return maps


def run_dino(name, model, inputs, samples):
    """Every stage of DINO; the ranking of the proposals is put in for dino_t only."""
    results = {}
    maps = run_features(model, inputs, results)
    stored = torch.from_numpy(arrays(name)['topk_indices'])
    topk = torch.topk

    def ranked(scores, k, dim):
        values, indices = topk(scores, k, dim=dim)
        results['topk_values'], results['topk_indices'] = values, indices
        return values, stored if name == 'dino_t' else indices

    def keep(key):
        return lambda module, args, output: results.__setitem__(key, output)

    proposals = model.bbox_head.cls_branches[model.decoder.num_layers]
    hooks = [
        model.encoder.register_forward_hook(keep('memory')),
        proposals.register_forward_hook(keep('proposal_scores')),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, 'topk', ranked)
        outputs = model.forward_transformer(maps, samples)
    for hook in hooks:
        hook.remove()
    scores = results.pop('proposal_scores')
    results['topk_score'] = scores.gather(1, stored[..., None].expand(-1, -1, scores.shape[-1]))
    results['encoder_memory_first200tokens'] = results.pop('memory')[:, :200].transpose(0, 1)
    results['hs_last_first100'] = outputs['hidden_states'][-1][:, :100].transpose(0, 1)
    results['reference_points_all'] = torch.stack(outputs['references'])
    logits, boxes = model.bbox_head(**outputs)
    results['cls_logits_last'] = logits[-1]
    results['cls_logits_layer0_first50'] = logits[0][:, :50]
    results['bbox_pred_last'] = boxes[-1]
    results['bbox_pred_layer0'] = boxes[0]
    return results, model.bbox_head.predict(**outputs, batch_data_samples=samples)[0]


def in_official_order(proposals, official):
    """Swap neighbours of equal official scores where that brings the boxes together."""
    for i in np.flatnonzero(np.abs(np.diff(official[:, 4])) <= EQUAL_SCORES):
        here, swapped = proposals[[i, i + 1]], proposals[[i + 1, i]]
        wanted = torch.from_numpy(official[[i, i + 1]])
        if (swapped - wanted).abs().max() < (here - wanted).abs().max():
            proposals[[i, i + 1]] = swapped
    return proposals


def run_two_stages(name, model, inputs, samples):
    """Every stage of Mask R-CNN or Cascade Mask R-CNN; the heads get the official boxes."""
    results = {}
    maps = run_features(model, inputs, results)
    scores, boxes = model.rpn_head(maps)
    results |= {f'rpn_cls{i}': x for i, x in enumerate(scores)}
    results |= {f'rpn_reg{i}': x for i, x in enumerate(boxes)}
    proposals = model.rpn_head.predict(maps, samples, rescale=False)[0]
    results['proposals'] = in_official_order(
        torch.cat([proposals.bboxes, proposals.scores[:, None]], 1),
        arrays(name)['proposals'],
    )
    results['rois_first64'] = torch.nn.functional.pad(proposals.bboxes[:64], (1, 0))
    rois = torch.from_numpy(arrays(name)['rois_first64'])
    stages = range(CASCADE_STAGES) if name == 'cascade_l_like' else [None]
    for stage in stages:
        prefix, which = ('', ()) if stage is None else (f'stage{stage}_', (stage,))
        head = model.roi_head._bbox_forward(*which, maps, rois)
        results[f'{prefix}cls_score'] = head['cls_score']
        results[f'{prefix}bbox_pred'] = head['bbox_pred']
        masks = model.roi_head._mask_forward(*which, maps, rois[:4])
        results[f'{prefix}mask_pred_first4'] = masks['mask_preds']
    return results, model.predict(inputs, samples)[0].pred_instances


@pytest.fixture(scope='module', params=helpers.CONFIGS)
def run(request):
    """Name, all results by golden key, and the final detections of one detector."""
    name = request.param
    model = helpers.detector(name)
    inputs, samples = helpers.preprocess(name, model)
    assert torch.equal(inputs, golden_input(name))
    expected = meta(name)['img_meta']
    assert samples[0].img_shape == tuple(expected['img_shape'][:2])
    # The official factors are float32.
    assert samples[0].scale_factor == pytest.approx(expected['scale_factor'][:2], abs=1e-7)
    stages = run_dino if name in DINO else run_two_stages
    with torch.no_grad():
        results, detections = stages(name, model, inputs, samples)
    order = detections.scores.argsort(descending=True, stable=True)
    detections = detections[order]
    results['final_box_xyxy'] = detections.bboxes
    results['final_score'] = detections.scores
    return name, results, detections


def test_every_stage(run):
    name, results, _ = run
    keys = {key.partition('__')[0] for key in arrays(name)} - NOT_COMPARED
    assert {'neck3', 'final_box_xyxy', 'final_score'} < keys <= set(results)
    for key in sorted(keys - (BISTABLE if name == 'dino_t' else set())):
        assert_near(name, key, results[key], functools.partial(tolerance, name))


@pytest.fixture(scope='module')
def dino_t():
    """The model and its inputs."""
    model = helpers.detector('dino_t')
    return model, *helpers.preprocess('dino_t', model)


def test_bistable_stages_of_dino_t(dino_t):
    name, (model, image, samples) = 'dino_t', dino_t
    stored = arrays(name)
    inputs, rng = image, torch.Generator().manual_seed(0)
    for _ in range(NUDGES):
        with torch.no_grad():
            results, _ = run_dino(name, model, inputs, samples)
        right = True
        for key in sorted(BISTABLE):
            errors = np.abs(results[key].numpy() - stored[key])
            assert errors.max() <= OTHER_SIDE, key
            off = (errors > tolerance(name, key)).reshape(-1, 900, 4).any((0, 2))
            assert off.sum() <= 1, key
            right &= not off.any()
        if right:
            return
        noise = torch.randn(image.shape, generator=rng)
        inputs = image * (1 + torch.finfo(torch.float32).eps / 2 * noise)
    pytest.fail('always on the other side')


def test_every_stage_of_dino_t_in_float64(dino_t):
    name, (model, image, samples) = 'dino_t', dino_t
    torch.set_default_dtype(torch.float64)  # of the tensors that DINO makes
    try:
        with torch.no_grad():
            results, _ = run_dino(name, model.double(), image.double(), samples)
    finally:
        torch.set_default_dtype(torch.float32)
        model.float()
    keys = {key.partition('__')[0] for key in arrays(name)} - NOT_COMPARED
    keys -= {'final_box_xyxy', 'final_score'}  # come after the stages
    assert BISTABLE < keys <= set(results)
    for key in sorted(keys):
        assert_near(name, key, results[key], functools.partial(tolerance, name))


def test_detections_one_to_one(run):
    name, _, detections = run
    stored = arrays(name)
    assert len(detections) == meta(name)['n_final']
    np.testing.assert_array_equal(detections.labels.numpy(), stored['final_label'])


def test_ranking_of_proposals(run):
    name, results, _ = run
    if name not in DINO:
        assert 'topk_indices' not in results
        return
    stored = arrays(name)
    chosen, official = results['topk_indices'].numpy(), stored['topk_indices']
    if name != 'dino_t':
        np.testing.assert_array_equal(chosen, official)
        return
    # Only proposals whose scores differ by less than float32 noise change places, also between runs
    # of the official code: 2 places of 900 there, here 2 with one thread and 4 with two.
    scores = stored['topk_score'].max(-1)
    noise = tolerance(name, 'topk_score')
    assert np.abs(results['topk_values'].numpy() - scores).max() <= noise
    score_of = dict(zip(official[0], scores[0], strict=True))
    for rank, index in enumerate(chosen[0]):
        assert abs(score_of.get(index, scores[0, -1]) - scores[0, rank]) <= noise


def test_instance_masks(run):
    name, _, detections = run
    if name in DINO:
        assert 'masks' not in detections
        return
    stored = arrays(name)
    masks = detections.masks.numpy()
    assert masks.shape[1:] == tuple(stored['final_mask_shape'])
    areas = masks.sum((1, 2))
    pixels, changed, pixels_of_first = MASK_NOISE[name]
    assert np.abs(areas - stored['final_mask_area']).max() <= pixels
    assert (areas != stored['final_mask_area']).sum() <= changed
    first = np.unpackbits(stored['final_masks_packbits_first10'], axis=1)
    assert (first != masks[:10].reshape(10, -1)).sum() <= pixels_of_first


def test_reference_boxes_are_encoded_as_officially():
    """Also where mmdet encodes them with twice as many wavelengths (onedl-mmdetection)."""
    from mmdet.models.layers.transformer.utils import coordinate_to_encoding

    from internimage_mm.det.dino import ReferencePointHead

    head = ReferencePointHead(256)
    boxes = torch.rand(2, 5, 4, generator=torch.manual_seed(0))
    usual, doubled = (coordinate_to_encoding(boxes, num_feats=n) for n in (128, 256))
    assert usual.shape[-1] * 2 == doubled.shape[-1] == 1024
    assert torch.equal(head(usual), head(doubled))
