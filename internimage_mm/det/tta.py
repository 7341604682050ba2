"""Multi-scale and flip testing of detectors, with masks."""

from __future__ import annotations

from typing import Any

import torch
from mmcv.ops import batched_nms
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor

_AXES = {'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1)}


@MODELS.register_module()
class FusedDetTTA(DetTTAModel):
    """Fuse the detections of all augmentations of an image, boxes and masks.

    mmdet's ``DetTTAModel`` keeps the best box of each object and refuses masks. Here non-maximum
    suppression only says which detections show one object. Box and mask of that object are the
    means of theirs, weighted by score, and its score is the mean over the augmentations, 0 for one
    that does not see it (weighted boxes fusion, arXiv:1910.13302).

    Args:
        iou_threshold: Detections of one class that overlap more are one object.
        max_per_img: Most detections of an image.
        module: The detector or its config.
        data_preprocessor: As of :class:`mmengine.model.BaseTTAModel`.
    """

    def __init__(
        self,
        iou_threshold: float = 0.6,
        max_per_img: int = 100,
        *,
        module: Any,
        data_preprocessor: Any = None,
    ) -> None:
        super().__init__(module=module, data_preprocessor=data_preprocessor)
        self.iou_threshold = iou_threshold
        self.max_per_img = max_per_img

    def merge_preds(self, data_samples_list: list[list[DetDataSample]]) -> list[DetDataSample]:
        """Merge the samples of each image, one for each augmentation.

        Returns:
            One sample per image, whose ``pred_instances`` are the fused ones, best first.
        """
        return [self._fuse(samples) for samples in data_samples_list]

    def _fuse(self, samples: list[DetDataSample]) -> DetDataSample:
        found = [sample.pred_instances for sample in samples]
        boxes, scores = self.merge_aug_bboxes(
            [instances.bboxes for instances in found],
            [instances.scores for instances in found],
            [sample.metainfo for sample in samples],
        )
        labels = torch.cat([instances.labels for instances in found])
        views = torch.arange(len(found), device=boxes.device).repeat_interleave(
            torch.tensor([len(instances) for instances in found], device=boxes.device)
        )
        if len(boxes) == 0:
            return samples[0]
        _, best = batched_nms(
            boxes, scores, labels, dict(type='nms', iou_threshold=self.iou_threshold)
        )
        # Each detection belongs to the best kept one that it overlaps enough.
        same = (bbox_overlaps(boxes[best], boxes) > self.iou_threshold) & (
            labels[best, None] == labels
        )
        same[torch.arange(len(best)), best] = True  # also a box without area
        objects = same.int().argmax(0)
        per_view = scores.new_zeros(len(best) * len(found))
        per_view.scatter_reduce_(0, objects * len(found) + views, scores, 'amax')
        order = per_view.view(len(best), -1).mean(1).argsort(descending=True)[: self.max_per_img]
        weights = (objects == order[:, None]) * scores
        weights = weights / weights.sum(1, keepdim=True)

        fused = InstanceData()
        fused.bboxes = weights @ boxes
        fused.scores = per_view.view(len(best), -1).mean(1)[order]
        fused.labels = labels[best[order]]
        if 'masks' in found[0]:
            masks = torch.cat([_unflipped(sample) for sample in samples])
            fused.masks = torch.stack([_mean_mask(masks, row) for row in weights])
        samples[0].pred_instances = fused
        return samples[0]


def _unflipped(sample: DetDataSample) -> Tensor:
    masks = sample.pred_instances.masks
    return masks.flip(_AXES[sample.flip_direction]) if sample.flip else masks


def _mean_mask(masks: Tensor, weights: Tensor) -> Tensor:
    (used,) = weights.nonzero(as_tuple=True)
    return (masks[used] * weights[used, None, None]).sum(0) > 0.5
