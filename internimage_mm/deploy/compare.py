"""How far two predictions for one image are from each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def compare(expected: Any, actual: Any) -> dict[str, str]:
    """Differences of two data samples of mmdet, mmseg or mmpretrain, as what and how much."""
    if 'pred_instances' in expected:
        return _compare_detections(expected.pred_instances, actual.pred_instances)
    if 'pred_sem_seg' in expected:
        maps = [sample.pred_sem_seg.data.cpu() for sample in (expected, actual)]
        return {'equal pixels': f'{(maps[0] == maps[1]).float().mean():.4%}'}
    scores = [sample.pred_score.cpu() for sample in (expected, actual)]
    same = 'the same' if scores[0].argmax() == scores[1].argmax() else 'another'
    return {'largest difference of a score': _largest(*scores), 'best class': same}


def _largest(a: Tensor, b: Tensor) -> str:
    return f'{(a - b).abs().max():.1e}' if a.numel() else 'none'


def _compare_detections(expected: Any, actual: Any) -> dict[str, str]:
    pairs = match(expected, actual)
    first, second = (x.cpu()[index] for x, index in zip((expected, actual), pairs, strict=True))
    result = {
        'detections': f'{len(expected)} and {len(actual)}, {len(pairs[0])} of them the same',
        'largest difference of a box': f'{_largest(first.bboxes, second.bboxes)} px',
        'largest difference of a score': _largest(first.scores, second.scores),
    }
    if 'masks' in expected and len(pairs[0]):
        masks = [torch.as_tensor(x.masks) for x in (first, second)]
        result['equal pixels of masks'] = f'{(masks[0] == masks[1]).float().mean():.4%}'
    return result


def match(expected: Any, actual: Any, limit: float = 1.0) -> tuple[Tensor, Tensor]:
    """Pairs of detections of the same label whose corners are less than ``limit`` pixels apart."""
    far = torch.cdist(expected.bboxes.cpu(), actual.bboxes.cpu(), p=float('inf'))
    far[expected.labels.cpu()[:, None] != actual.labels.cpu()] = float('inf')
    pairs = []
    while far.numel() and far.min() < limit:
        i, j = divmod(int(far.argmin()), far.shape[1])
        pairs.append((i, j))
        far[i], far[:, j] = float('inf'), float('inf')
    index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return index[:, 0], index[:, 1]
