"""Detections of the tiles of a picture as detections of the picture."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData

from ..tiles import Tile


def of_picture(found: InstanceData, tile: Tile) -> InstanceData:
    """What a tile decides about: its detections that are centred in its core, or almost.

    Args:
        found: Detections of the tile: ``bboxes`` (D, 4), ``scores`` and ``labels`` (D,), and, if it
            has them, ``masks`` (D, h, w).
        tile: Where it is.

    Returns:
        The same fields in pixels of the picture, on the CPU. A mask is cut out: left, top and a
        bool array.
    """
    found = found.cpu()
    left, top = tile.box[:2]
    kept = InstanceData(
        bboxes=found.bboxes + found.bboxes.new_tensor([left, top, left, top]),
        scores=found.scores,
        labels=found.labels,
    )
    centres = (kept.bboxes[:, :2] + kept.bboxes[:, 2:]) / 2
    core = centres.new_tensor(tile.core)
    decides = (centres >= core[:2] - tile.slack) & (centres < core[2:] + tile.slack)
    kept = kept[decides.all(1)]
    if 'masks' in found:
        kept.masks = [_cut_out(mask, left, top) for mask in found.masks[decides.all(1)].numpy()]
    return kept


def _cut_out(mask: np.ndarray, left: int, top: int) -> tuple[int, int, np.ndarray]:
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return left + x, top + y, mask[y : y + height, x : x + width].copy()


def merge(rows: list[list[InstanceData]], iou_threshold: float = 0.5) -> InstanceData:
    """The detections of a picture, best first.

    Of two detections of neighbouring tiles and of one class that overlap by more than the
    threshold, the worse one goes. Those of one tile never compete.

    Args:
        rows: Of the tiles of each row, from :func:`of_picture`.
        iou_threshold: Intersection over union of boxes.
    """
    merged: list[list[InstanceData]] = []
    for y, row in enumerate(rows):
        merged.append([])
        for x, found in enumerate(row):
            places = [(y, x - 1), (y - 1, x - 1), (y - 1, x), (y - 1, x + 1)]
            for other_y, other_x in places:
                if min(other_y, other_x) < 0 or other_x >= len(row):
                    continue
                before = merged[other_y][other_x]
                same = (bbox_overlaps(found.bboxes, before.bboxes) > iou_threshold) & (
                    found.labels[:, None] == before.labels
                )
                better = found.scores[:, None] > before.scores
                found, merged[other_y][other_x] = (
                    found[~(same & ~better).any(1)],
                    before[~(same & better).any(0)],
                )
            merged[-1].append(found)
    whole = InstanceData.cat([found for row in merged for found in row])
    return whole[torch.argsort(whole.scores, descending=True, stable=True)]
