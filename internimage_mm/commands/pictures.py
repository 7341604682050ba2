"""Predictions for pictures in tiles: as records for a JSON file, and drawn part by part."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.registry import VISUALIZERS
from mmengine.structures import PixelData
from rich.progress import track

from ..tiles import Picture, Tile, run_length_code, runs_of
from ..tiles.grid import Box
from .inference import infer

Drawn = Iterator[tuple[Box, np.ndarray]]
"""Boxes of a picture and what to see there, (h, w, 3), BGR, uint8."""


class TiledPredictor:
    """A detector or segmentor that predicts for pictures of any size, and draws it.

    Args:
        model: From :func:`.inference.load_model`.
        score_thr: Detections count from this score on.
        draw: Whether pictures are drawn.
    """

    def __init__(self, model: Any, score_thr: float, draw: bool) -> None:
        self.model, self.score_thr, self.draw = model, score_thr, draw
        self.classes = model.dataset_meta.get('classes') or ()
        self.drawn: list[np.ndarray] = []
        if draw:
            # mmengine keeps visualizers by name.
            own = dict(vis_backends=None, name=f'tiled {id(self)}')
            self.visualizer = VISUALIZERS.build({**model.cfg.visualizer, **own})
            self.visualizer.dataset_meta = model.dataset_meta
            self.visualizer.add_image = lambda name, image, step=0: self.drawn.append(image)

    def __call__(
        self, picture: Picture, rows: list[list[Tile]], records: list[dict], bar: bool = True
    ) -> Drawn:
        """Predict for the tiles of a picture.

        Args:
            picture: The picture.
            rows: From :func:`internimage_mm.tiles.divide`.
            records: Gets one record for each detection, or for each class that a segmentor finds.
            bar: Show a progress bar if there are several tiles.

        Yields:
            If pictures are drawn, the core of each tile once.
        """
        detector = self.model.cfg.default_scope == 'mmdet'
        method = self._detect if detector else self._segment
        bar = bar and len(rows) * len(rows[0]) > 1

        def show(items: list, title: str) -> Iterator[Any]:
            return iter(track(items, title) if bar else items)

        return method(picture, rows, records, show)

    def _detect(
        self,
        picture: Picture,
        rows: list[list[Tile]],
        records: list[dict],
        show: Callable[[list, str], Iterator],
    ) -> Drawn:
        from ..det.tiling import merge, of_picture

        tiles = [tile for row in rows for tile in row]
        parts = []
        for tile in show(tiles, 'detecting'):
            found = infer(self.model, picture.read(tile.box)).pred_instances
            parts.append(of_picture(found[found.scores > self.score_thr], tile))
        width = len(rows[0])
        found = merge([parts[i : i + width] for i in range(0, len(parts), width)])
        for i in range(len(found)):
            left, top, right, bottom = found.bboxes[i].tolist()
            record = {
                'category': self._name(int(found.labels[i])),
                'score': round(float(found.scores[i]), 5),
                'bbox': [round(x, 2) for x in (left, top, right - left, bottom - top)],
            }
            if 'masks' in found:
                x, y, mask = found.masks[i]
                runs = runs_of(mask, x, y, picture.height)
                record['segmentation'] = run_length_code([runs], picture.width, picture.height)
            records.append(record)
        if self.draw:
            for tile in show(tiles, 'drawing'):
                yield tile.core, self._draw_detections(picture, tile, found)

    def _draw_detections(self, picture: Picture, tile: Tile, found: Any) -> np.ndarray:
        """The core of a tile, cut out of a drawing that has room for all that reaches into it.

        matplotlib would shrink a picture to show what lies outside.
        """
        from mmdet.structures import DetDataSample

        boxes, core = found.bboxes, found.bboxes.new_tensor(tile.core)
        reaches = ((boxes[:, :2] < core[2:]) & (boxes[:, 2:] > core[:2])).all(1)
        part = found[reaches]
        around = torch.cat([part.bboxes, core[None]])
        left, top = (int(x) for x in around[:, :2].amin(0).floor().clamp(min=0))
        right, bottom = (int(x) for x in around[:, 2:].amax(0).ceil())
        right, bottom = min(right, picture.width), min(bottom, picture.height)
        part.bboxes = part.bboxes - part.bboxes.new_tensor([left, top, left, top])
        if 'masks' in found:
            masks = np.zeros((len(part), bottom - top, right - left), bool)
            for canvas, (x, y, mask) in zip(masks, part.masks, strict=True):
                x, y = x - left, y - top
                seen = mask[max(-y, 0) :, max(-x, 0) :]
                target = canvas[max(y, 0) :, max(x, 0) :][: seen.shape[0], : seen.shape[1]]
                target[:] = seen[: target.shape[0], : target.shape[1]]
            del part.masks
            part.masks = torch.from_numpy(masks)
        drawn = self._draw(
            picture,
            (left, top, right, bottom),
            DetDataSample(pred_instances=part),
            pred_score_thr=-1,
        )
        x0, y0, x1, y1 = tile.core
        return drawn[y0 - top : y1 - top, x0 - left : x1 - left]

    def _segment(
        self,
        picture: Picture,
        rows: list[list[Tile]],
        records: list[dict],
        show: Callable[[list, str], Iterator],
    ) -> Drawn:
        runs: dict[int, list[np.ndarray]] = {}
        for tile in show([tile for row in rows for tile in row], 'segmenting'):
            result = infer(self.model, picture.read(tile.box))
            left, top, right, bottom = tile.core
            x, y = tile.box[:2]
            labels = result.pred_sem_seg.data[:, top - y : bottom - y, left - x : right - x].cpu()
            for label in labels.unique().tolist():
                mask = (labels[0] == label).numpy()
                runs.setdefault(label, []).append(runs_of(mask, left, top, picture.height))
            if self.draw:
                from mmseg.structures import SegDataSample

                sample = SegDataSample(pred_sem_seg=PixelData(data=labels))
                yield tile.core, self._draw(picture, tile.core, sample)
        for label, found in sorted(runs.items()):
            code = run_length_code(found, picture.width, picture.height)
            record = {'category': self._name(label), 'area': sum(code['counts'][1::2])}
            records.append({**record, 'segmentation': code})

    def _draw(self, picture: Picture, box: Box, sample: Any, **settings: Any) -> np.ndarray:
        with warnings.catch_warnings():
            # Of boxes that end at the edge of the picture.
            warnings.filterwarnings('ignore', '.*out of bounds')
            self.visualizer.add_datasample(
                'image', picture.read(box)[..., ::-1], sample, draw_gt=False, **settings
            )
        return self.drawn.pop()[..., ::-1]

    def _name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else f'class {label}'
