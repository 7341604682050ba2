"""Testing detectors with augmentation: the settings of the configs, and the model that fuses."""

import cv2
import numpy as np
import pytest
import torch
from golden_detseg import ROOT
from mmcv.transforms import Compose
from mmdet.registry import METRICS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from internimage_mm.det import FusedDetTTA

FOLDERS = ('coco', 'crowdhuman', 'lvis', 'objects365', 'openimages', 'voc')
CONFIGS = sorted(p for data in FOLDERS for p in (ROOT / 'configs' / data).glob('*.py'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_scales_about_that_of_the_test(path):
    cfg = Config.fromfile(path)
    assert cfg.tta_model.type == 'FusedDetTTA'
    # What the benchmarks count of an image; VOC and OpenImages count all that the model gives.
    counted = 300 if {'lvis', 'openimages', 'voc'} & set(path.parts) else 100
    assert cfg.tta_model.get('max_per_img', 100) == counted
    resizes, flips, *_ = cfg.tta_pipeline[1].transforms
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


@pytest.mark.parametrize('data', ['openimages', 'voc'])
def test_metrics_that_compare_with_the_sample(data, tmp_path):
    """The boxes that a sample brings are those of the image, whatever its augmentation."""
    cfg = Config.fromfile(next((ROOT / 'configs' / data).glob('*.py')))
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((50, 100, 3), np.uint8))
    box = dict(bbox=[20, 10, 60, 40], bbox_label=3, ignore_flag=0, is_group_of=False)
    image = dict(img_path=str(tmp_path / 'a.png'), img_id=0, instances=[box])
    with DefaultScope.overwrite_default_scope('mmdet'):
        augment, metric = Compose(cfg.tta_pipeline), METRICS.build(cfg.test_evaluator)
    batch = pseudo_collate([augment({**image, 'image_level_labels': [3]})])
    views = [[([left, 10.0, left + 40, 40.0], 0.9, 3, None)] for left in (20.0, 40.0) * 3]
    (sample,) = FusedDetTTA(module=Detector(views)).test_step(batch)
    classes = [f'class {i}' for i in range(5)]
    metric.dataset_meta = dict(classes=classes, RELATION_MATRIX=np.eye(5), dataset_type='VOC2007')
    metric.process({}, [sample.to_dict()])
    assert set(metric.evaluate(1).values()) == {1.0}


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
