"""Detections of VOC's test images, which have no annotations, as its server takes them."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence
from pathlib import Path

from mmdet.datasets import VOCDataset
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS


@DATASETS.register_module()
class VOCTestImages(VOCDataset):
    """The images that a list of VOC names, without annotations. Arguments as ``VOCDataset``."""

    def parse_data_info(self, img_info: dict) -> dict:
        path = osp.join(self.sub_data_root, img_info['file_name'])
        return dict(img_path=path, img_id=img_info['img_id'], instances=[])


@METRICS.register_module()
class VOCSubmission(BaseMetric):
    """Write one file for each class, ``comp4_det_test_CLASS.txt``, instead of measuring anything.

    Its lines are those of VOC's development kit: name of the image, score, and left, top, right and
    bottom of the box in pixels that count from 1.

    Args:
        folder: Where the files go.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            found = sample['pred_instances']
            boxes, scores, labels = (found[key].cpu() for key in ('bboxes', 'scores', 'labels'))
            rows = zip(labels.tolist(), scores.tolist(), (boxes + 1).tolist(), strict=True)
            self.results.append((sample['img_id'], list(rows)))

    def compute_metrics(self, results: list) -> dict:
        assert self.dataset_meta is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        for index, name in enumerate(self.dataset_meta['classes']):
            lines = [
                f'{image} {score:.6f} {" ".join(f"{side:.6f}" for side in box)}\n'
                for image, rows in results
                for label, score, box in rows
                if label == index
            ]
            (self.folder / f'comp4_det_test_{name}.txt').write_text(''.join(lines))
        return {}
