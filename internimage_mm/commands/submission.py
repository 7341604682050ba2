"""Predictions for the server of a benchmark, instead of an evaluation."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence

from mmengine.config import Config, ConfigDict

from ..errors import UserError

_FORMATS = 'COCO, LVIS, VOC, ADE20K and Cityscapes'


def submit_to(cfg: Config, folder: str) -> None:
    """Make a test write what the benchmark's server takes. It then needs no annotations.

    Args:
        cfg: The whole config; changed.
        folder: Where the files go.

    Raises:
        UserError: There is no such format for the config's evaluator.
    """
    dataset = cfg.test_dataloader.dataset
    evaluator = cfg.get('test_evaluator')
    kind = evaluator.get('type') if isinstance(evaluator, dict) else None
    if kind in ('CocoMetric', 'LVISMetric'):
        ann_file = osp.join(dataset.get('data_root') or '', dataset.ann_file)
        evaluator.update(
            format_only=True, outfile_prefix=osp.join(folder, 'results'), ann_file=ann_file
        )
    elif kind == 'VOCMetric':
        dataset.type = 'VOCTestImages'
        cfg.test_evaluator = dict(type='VOCSubmission', folder=folder)
    elif kind == 'IoUMetric' and dataset.type == 'CityscapesDataset':
        cfg.test_evaluator = dict(type='CityscapesSubmission', folder=folder)
    elif kind == 'IoUMetric':
        evaluator.update(format_only=True, output_dir=folder)
    else:
        raise UserError(f'--format-only knows {_FORMATS}; {cfg.filename} evaluates by {kind}')
    if kind == 'IoUMetric':
        dataset.data_prefix.pop('seg_map_path', None)
    dataset.pipeline = _without_annotations(dataset.pipeline)


def _without_annotations(transforms: Sequence) -> list:
    kept = []
    for transform in transforms:
        if isinstance(transform, (list, tuple)):  # of TestTimeAug
            transform = _without_annotations(transform)
            if transform:
                kept.append(transform)
        elif transform['type'] != 'LoadAnnotations':
            if 'transforms' in transform:
                inner = _without_annotations(transform['transforms'])
                transform = ConfigDict({**transform, 'transforms': inner})
            kept.append(transform)
    return kept
