"""Testing detectors with augmentation: the settings of the configs, and the model that fuses."""

import pytest
import torch
from golden_detseg import ROOT
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.structures import InstanceData

from internimage_mm.det import FusedDetTTA

CONFIGS = sorted(p for data in ('coco', 'lvis') for p in (ROOT / 'configs' / data).glob('*.py'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_scales_about_that_of_the_test(path):
    cfg = Config.fromfile(path)
    assert cfg.tta_model.type == 'FusedDetTTA'
    # What the benchmarks count of an image.
    counted = 300 if 'lvis' in path.parts else 100
    assert cfg.tta_model.get('max_per_img', 100) == counted
    resizes, flips, _ = cfg.tta_pipeline[1].transforms
    scales = [resize.scale for resize in resizes]
    (tested,) = (t.scale for t in cfg.test_pipeline if t.type == 'Resize')
    assert tested in scales and scales == sorted(scales)
    assert [flip.prob for flip in flips] == [0, 1]


class Detector(BaseModel):
    """Detects what it is given, one list of (box, score, label, mask) for each augmentation."""

    def __init__(self, views):
        super().__init__()
        self.views = iter(views)

    def forward(self, inputs, data_samples, mode):
        (sample,) = data_samples
        boxes, scores, labels, masks = zip(*next(self.views), strict=True)
        instances = InstanceData(
            bboxes=torch.tensor(boxes), scores=torch.tensor(scores), labels=torch.tensor(labels)
        )
        if masks[0] is not None:
            instances.masks = torch.stack(masks)
        sample.pred_instances = instances
        return [sample]


def fuse(views, flips, **settings):
    samples = [
        [DetDataSample(metainfo=dict(ori_shape=(20, 30), flip=bool(f), flip_direction=f))]
        for f in flips
    ]
    data = dict(inputs=[[torch.zeros(3, 20, 30)]] * len(flips), data_samples=samples)
    (sample,) = FusedDetTTA(module=Detector(views), **settings).test_step(data)
    return sample.pred_instances


def mask(left, top, right, bottom):
    result = torch.zeros(20, 30, dtype=torch.bool)
    result[top:bottom, left:right] = True
    return result


def test_boxes_scores_and_masks_by_hand():
    plain = [
        ([2.0, 2.0, 12.0, 12.0], 0.9, 0, mask(2, 2, 12, 12)),
        ([2.0, 2.0, 12.0, 12.0], 0.8, 1, mask(2, 2, 12, 12)),  # of another class
        ([20.0, 2.0, 28.0, 9.0], 0.3, 0, mask(20, 2, 28, 9)),
    ]
    # In the mirror: the first object, a pixel lower and less sure of itself.
    mirrored = [([18.0, 3.0, 28.0, 13.0], 0.6, 0, mask(18, 3, 28, 13))]
    found = fuse([plain, mirrored], [None, 'horizontal'])
    assert found.labels.tolist() == [0, 1, 0]
    torch.testing.assert_close(found.scores, torch.tensor([0.75, 0.4, 0.15]))
    row = (2 * 0.9 + 3 * 0.6) / 1.5
    expected = torch.tensor([[2, row, 12, row + 10], [2, 2, 12, 12], [20, 2, 28, 9]])
    torch.testing.assert_close(found.bboxes, expected)
    # The heavier mask decides where the two differ.
    assert torch.equal(found.masks, torch.stack([m for *_, m in plain]))

    best = fuse([plain, mirrored], [None, 'horizontal'], max_per_img=1)
    torch.testing.assert_close(best.bboxes, expected[:1])
    apart = fuse([plain, mirrored], [None, 'horizontal'], iou_threshold=0.9)
    assert len(apart) == 4


def test_vertical_and_diagonal_flips_and_no_masks():
    views = [
        [([2.0, 1.0, 12.0, 5.0], 0.5, 0, None)],
        [([2.0, 15.0, 12.0, 19.0], 0.5, 0, None)],
        [([18.0, 15.0, 28.0, 19.0], 0.5, 0, None)],
    ]
    found = fuse(views, [None, 'vertical', 'diagonal'])
    torch.testing.assert_close(found.bboxes, torch.tensor([[2.0, 1.0, 12.0, 5.0]]))
    assert 'masks' not in found and found.scores.item() == 0.5
