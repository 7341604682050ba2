"""Detectors of mmdet in exportable form, and exported ones as models of mmdet.

Two-stage detectors work on lists that have as many places as the config allows boxes, 1000
proposals and 100 detections, so that no size depends on what is seen. A free place has a score
of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.ops import nms as mmcv_nms
from mmcv.ops import roi_align as mmcv_roi_align
from mmdet.models import DINO, CascadeRoIHead, StandardRoIHead, TwoStageDetector
from mmdet.models.layers import DinoTransformerDecoder
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import replace_attention, sizes_as_tensor
from .exported import ExportedModel
from .forms import Form

# ---- operators that torch.export keeps whole; onnx_operators.py has them in ONNX ----------------


@torch.library.custom_op('internimage_mm::nms', mutates_args=())
def nms(boxes: Tensor, scores: Tensor, threshold: float, max_boxes: int) -> Tensor:
    """Non-maximum suppression among the boxes with a score above 0.

    Args:
        boxes: (B, 4) as x1, y1, x2, y2.
        scores: (B,).
        threshold: Overlap (IoU) from which the box of the lower score is dropped.
        max_boxes: M, how many are kept at most.

    Returns:
        Indices of the kept boxes, best first, (M,). Where there are fewer, -1.
    """
    candidates = (scores > 0).nonzero().flatten()
    kept = boxes.new_full((max_boxes,), -1, dtype=torch.int64)
    if len(candidates):
        _, best = mmcv_nms(boxes[candidates], scores[candidates], threshold, max_num=max_boxes)
        kept[: len(best)] = candidates[best]
    return kept


@nms.register_fake
def _(boxes, scores, threshold, max_boxes):
    return boxes.new_empty((max_boxes,), dtype=torch.int64)


@torch.library.custom_op('internimage_mm::roi_align', mutates_args=())
def roi_align(
    maps: Sequence[Tensor],
    boxes: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    size: int,
    samples: int,
) -> Tensor:
    """RoIAlign of one image, aligned, of several maps.

    Args:
        maps: Features (1, C, h, w) of each level.
        boxes: (R, 4) in pixels of the image.
        levels: From which map each box is taken, (R,).
        scales: Pixels of a map by pixels of the image.
        size: S, cells of a side.
        samples: Samples along a side of a cell; 0: as many as it has pixels.

    Returns:
        (R, C, S, S).
    """
    features = maps[0].new_zeros(len(boxes), maps[0].shape[1], size, size)
    rois = F.pad(boxes, (1, 0))
    for level, (x, scale) in enumerate(zip(maps, scales, strict=True)):
        here = (levels == level).nonzero().flatten()
        if len(here):
            features[here] = mmcv_roi_align(x, rois[here], size, scale, samples, 'avg', True)
    return features


@roi_align.register_fake
def _(maps, boxes, levels, scales, size, samples):
    return maps[0].new_empty((boxes.shape[0], maps[0].shape[1], size, size))


# ---- forms --------------------------------------------------------------------------------------


class Detector(Form):
    """``image`` and ``image_size`` to ``boxes`` (N, D, 4), ``scores`` and ``labels`` (N, D).

    ``image_size`` (N, 2), int64, is the height and width of each image that are not padding. Boxes
    are x1, y1, x2, y2 in pixels of ``image``, best first. Those with a score of 0 are none.
    """

    family = 'detector'
    inputs = ('image', 'image_size')
    outputs: tuple[str, ...] = ('boxes', 'scores', 'labels')

    def normalize(self, image: Tensor, image_size: Tensor) -> Tensor:  # type: ignore[override]
        """As the base; and padding is zero after normalization, as mmdet pads."""
        normalized = super().normalize(image)
        if self.preprocess is None:
            return normalized
        return normalized.masked_fill(padding_of(normalized, image_size)[:, None], 0.0)

    def examples(self, height: int, width: int, dynamic: bool) -> tuple[dict, dict | None]:
        arguments, sizes = super().examples(height, width, dynamic)
        batch = len(arguments['image'])
        arguments['image_size'] = torch.tensor([[height, width]]).repeat(batch, 1)
        if sizes is not None:
            sizes['image_size'] = {0: sizes['image'][0]} if self.any_batch else {}
        return arguments, sizes


def padding_of(image: Tensor, image_size: Tensor) -> Tensor:
    """Which pixels are padding, (N, H, W)."""
    rows, columns = (
        torch.arange(n, device=image.device) >= image_size[:, axis, None]
        for axis, n in enumerate(image.shape[2:])
    )
    return rows[:, :, None] | columns[:, None]


def clip(boxes: Tensor, image_size: Tensor) -> Tensor:
    """Boxes (..., 4) within an image of (height, width)."""
    return torch.minimum(boxes.clamp(min=0), image_size.flip(-1).repeat(2).to(boxes.dtype))


def nms_by_group(
    boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, max_boxes: int
) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression (:func:`nms`) within each group, an integer for each box, (B,).

    Boxes are moved apart by group, as mmdet does, which also rounds them the same.

    Returns:
        Indices and scores of the kept boxes, (``max_boxes``,); free places have 0 and 0.
    """
    largest = torch.where(scores > 0, boxes.amax(1), 0).amax(0)
    apart = boxes + (groups.to(boxes.dtype) * (largest + 1))[:, None]
    kept = nms(apart, scores, threshold, max_boxes)
    index = kept.clamp(min=0)
    return index, torch.where(kept < 0, 0, scores[index])


class TwoStage(Detector):
    """Faster, Mask, Cascade and Cascade Mask R-CNN, one image at a time.

    With masks, also ``masks``: (1, D, 28, 28), probabilities within the boxes, or pasted.

    Args:
        model: The detector.
        preprocess: As of :class:`Form`.
        paste: Whether ``masks`` are (1, D, H, W), bool, of the whole image.

    Raises:
        ValueError: Of its parts, one cannot be exported.
    """

    # Non-maximum suppression and RoIAlign work on the boxes of one image.
    any_batch = False

    def __init__(self, model: Any, preprocess: dict | None, paste: bool = False) -> None:
        super().__init__(model, preprocess)
        head = model.roi_head
        self.paste = paste
        if head.with_mask:
            self.outputs = (*self.outputs, 'masks')
        if isinstance(head, CascadeRoIHead):
            stages = range(head.num_stages)
            self.stages = [(head.bbox_roi_extractor[i], head.bbox_head[i]) for i in stages]
            masks = [
                (head.mask_roi_extractor[i], head.mask_head[i]) for i in stages if head.with_mask
            ]
        else:
            self.stages = [(head.bbox_roi_extractor, head.bbox_head)]
            masks = [(head.mask_roi_extractor, head.mask_head)] if head.with_mask else []
        self.mask_stages = masks
        for stage in ('rpn', 'rcnn'):
            nms_cfg = model.test_cfg[stage].nms
            if set(nms_cfg) - {'type'} != {'iou_threshold'} or nms_cfg.get('type', 'nms') != 'nms':
                raise ValueError(
                    f'model.test_cfg.{stage}.nms can be exported with type=nms and iou_threshold '
                    f'alone, got {dict(nms_cfg)}'
                )
        for extractor, _ in self.stages + self.mask_stages:
            if any((x.pool_mode, x.aligned) != ('avg', True) for x in extractor.roi_layers):
                raise ValueError(
                    'only RoIAlign with pool_mode=avg and aligned=True can be exported'
                )

    def forward(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        maps = self.model.extract_feat(self.normalize(image, image_size))
        size = image_size[0]
        proposals, valid = self.propose(maps, size)
        boxes, scores, labels = self.detect(maps, proposals, valid, size)
        results = [boxes, scores, torch.where(scores > 0, labels, -1)]
        if self.mask_stages:
            masks = self.masks(maps, boxes, labels)
            results.append(paste(masks, boxes, image) if self.paste else masks)
        return tuple(x[None] for x in results)

    def propose(self, maps: Sequence[Tensor], size: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes of the region proposal network (P, 4), and which places of them are taken."""
        head, cfg = self.model.rpn_head, self.model.test_cfg.rpn
        anchors = head.prior_generator.grid_priors(
            [x.shape[2:] for x in maps], device=maps[0].device
        )
        all_boxes, all_scores, levels = [], [], []
        for level, (logits, shifts, priors) in enumerate(zip(*head(maps), anchors, strict=True)):
            scores = logits.permute(0, 2, 3, 1).flatten().sigmoid()
            shifts = shifts.permute(0, 2, 3, 1).reshape(-1, 4)
            scores, best = scores.topk(torch.sym_min(cfg.nms_pre, scores.shape[0]))
            boxes = clip(head.bbox_coder.decode(priors[best], shifts[best]), size)
            if cfg.get('min_bbox_size', -1) >= 0:
                sides = boxes[:, 2:] - boxes[:, :2]
                scores = torch.where((sides > cfg.min_bbox_size).all(1), scores, 0)
            all_boxes.append(boxes)
            all_scores.append(scores)
            levels.append(torch.full_like(best, level))
        boxes = torch.cat(all_boxes)
        index, scores = nms_by_group(
            boxes,
            torch.cat(all_scores),
            torch.cat(levels),
            cfg.nms.iou_threshold,
            cfg.max_per_img,
        )
        return boxes[index], scores > 0

    def detect(
        self, maps: Sequence[Tensor], boxes: Tensor, valid: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (D, 4), scores (D,) and labels (D,) after the box heads."""
        all_logits = []
        for extractor, head in self.stages:
            refined = boxes
            logits, shifts = head(extract(extractor, maps, refined))
            all_logits.append(logits)
            count = 1 if head.reg_class_agnostic else head.num_classes
            shifts = shifts.view(-1, count, 4)
            if head is not self.stages[-1][1]:
                label = logits[:, :-1].argmax(1) * (count > 1)
                shift = shifts.gather(1, label[:, None, None].expand(-1, 1, 4))[:, 0]
                boxes = clip(head.bbox_coder.decode(refined, shift), size)
        cfg, classes = self.model.test_cfg.rcnn, head.num_classes
        scores = torch.stack(all_logits).mean(0).softmax(1)[:, :-1]
        scores = torch.where((scores > cfg.score_thr) & valid[:, None], scores, 0).flatten()
        boxes = refined[:, None].expand(-1, count, 4).reshape(-1, 4)
        boxes = clip(head.bbox_coder.decode(boxes, shifts.reshape(-1, 4)), size)
        boxes = boxes.view(-1, count, 4).expand(-1, classes, 4).reshape(-1, 4)
        labels = torch.arange(classes, device=boxes.device).repeat(refined.shape[0])
        index, scores = nms_by_group(boxes, scores, labels, cfg.nms.iou_threshold, cfg.max_per_img)
        return boxes[index], scores, labels[index]

    def masks(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Mask of each detection within its box, (D, 28, 28), averaged over the stages."""
        probabilities = []
        for extractor, head in self.mask_stages:
            logits = head(extract(extractor, maps, boxes))
            channel = labels * (not head.class_agnostic)
            channel = channel[:, None, None, None].expand(-1, 1, *logits.shape[2:])
            probabilities.append(logits.gather(1, channel)[:, 0].sigmoid())
        return torch.stack(probabilities).mean(0)


def extract(extractor: Any, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """RoI features as mmdet's ``SingleRoIExtractor`` takes them."""
    layers = extractor.roi_layers
    maps = maps[: len(layers)]
    levels = extractor.map_roi_levels(F.pad(boxes, (1, 0)), len(maps))
    scales = [layer.spatial_scale for layer in layers]
    first = layers[0]
    return roi_align(list(maps), boxes, levels, scales, first.output_size[0], first.sampling_ratio)


def paste(masks: Tensor, boxes: Tensor, image: Tensor, threshold: float = 0.5) -> Tensor:
    """Masks within boxes as masks of the whole image, (D, H, W), bool.

    Bilinear interpolation is one matrix for the rows and one for the columns.
    """
    weights = []
    for axis, size in enumerate(image.shape[2:]):
        cells = torch.arange(masks.shape[1 + axis], device=masks.device)
        start, stop = boxes[:, 1 - axis, None], boxes[:, 3 - axis, None]
        positions = torch.arange(size, device=masks.device) + 0.5
        positions = (positions - start) / (stop - start).clamp(min=1e-6) * len(cells) - 0.5
        weights.append((1 - (positions[..., None] - cells).abs()).clamp(min=0))
    return weights[0] @ masks @ weights[1].transpose(1, 2) >= threshold


class Transformer(Detector):
    """DINO and CB-DINO."""

    def __init__(self, model: Any, preprocess: dict | None) -> None:
        super().__init__(model, preprocess)
        replace_attention(model)

    def forward(self, image: Tensor, image_size: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        maps = model.extract_feat(self.normalize(image, image_size))
        padding = padding_of(image, image_size)[:, None].float()
        sizes = [tuple(x.shape[2:]) for x in maps]
        masks = [F.interpolate(padding, size=size)[:, 0] > 0 for size in sizes]
        mask = torch.cat([m.flatten(1) for m in masks], 1)
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1)
        # Columns and rows of each map that are not padding, (N, levels, 2).
        counts = torch.stack(
            [torch.stack([(~m[:, 0]).sum(1), (~m[:, :, 0]).sum(1)], 1) for m in masks], 1
        )
        valid = counts / sizes_as_tensor(sizes, tokens)
        position = torch.cat(
            [
                model.positional_encoding(m).flatten(2).transpose(1, 2) + embedding
                for m, embedding in zip(masks, model.level_embed, strict=True)
            ],
            1,
        )
        grid = self.grid(sizes, counts)
        memory = tokens
        for layer in model.encoder.layers:
            memory = layer(
                query=memory,
                query_pos=position,
                key_padding_mask=mask,
                reference_points=grid[:, :, None] * valid[:, None],
                spatial_shapes=sizes,
            )
        queries, reference = self.select(memory, mask, grid, sizes)
        states, references = model.decoder(
            query=queries,
            value=memory,
            key_padding_mask=mask,
            self_attn_mask=None,
            reference_points=reference,
            spatial_shapes=sizes,
            level_start_index=None,
            valid_ratios=valid,
            reg_branches=model.bbox_head.reg_branches,
        )
        logits, boxes = (x[-1] for x in model.bbox_head(states, list(references)))
        scores, index = logits.flatten(1).sigmoid().topk(model.test_cfg.max_per_img)
        labels, index = index % logits.shape[2], index // logits.shape[2]
        boxes = bbox_cxcywh_to_xyxy(boxes).gather(1, index[..., None].expand(-1, -1, 4))
        limit = image_size.flip(1).repeat(1, 2)[:, None].to(boxes.dtype)
        return torch.minimum((boxes * limit).clamp(min=0), limit), scores, labels

    @staticmethod
    def grid(sizes: Sequence[tuple[int, int]], counts: Tensor) -> Tensor:
        """Centre of every token in parts of the image without padding, (N, tokens, 2), x and y."""
        centers = []
        for level, (h, w) in enumerate(sizes):
            rows, columns = (torch.arange(n, device=counts.device) + 0.5 for n in (h, w))
            grid = torch.stack([columns.expand(h, w), rows[:, None].expand(h, w)], dim=-1)
            centers.append(grid.flatten(0, 1) / counts[:, None, level])
        return torch.cat(centers, 1)

    def select(
        self, memory: Tensor, mask: Tensor, grid: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """The queries (N, Q, C) and the boxes (N, Q, 4) that the decoder starts from."""
        model = self.model
        sides = [grid.new_full((h * w,), 0.05 * 2.0**level) for level, (h, w) in enumerate(sizes)]
        side = torch.cat(sides)[None, :, None].expand(grid.shape[0], -1, 2)
        proposals = torch.cat([grid, side], -1)
        outside = mask | ~((proposals > 0.01) & (proposals < 0.99)).all(-1)
        proposals = torch.log(proposals / (1 - proposals))
        proposals = proposals.masked_fill(outside[..., None], float('inf'))
        memory = model.memory_trans_fc(memory.masked_fill(outside[..., None], 0.0))
        memory = model.memory_trans_norm(memory)
        last = model.decoder.num_layers
        logits = model.bbox_head.cls_branches[last](memory)
        boxes = model.bbox_head.reg_branches[last](memory) + proposals
        best = logits.amax(-1).topk(model.num_queries, dim=1).indices
        queries = model.query_embedding.weight.expand(memory.shape[0], -1, -1)
        return queries, boxes.gather(1, best[..., None].expand(-1, -1, 4)).sigmoid()


def form_of(model: nn.Module, preprocess: dict | None, paste_masks: bool = False) -> Detector:
    """The exportable form of a detector.

    Raises:
        ValueError: A detector of a family that has none, or with a part that cannot be exported.
    """
    part = getattr(model, 'roi_head', None) or getattr(model, 'decoder', None)
    # Their subclasses, in other detectors, compute something else.
    if isinstance(model, DINO) and type(part) is DinoTransformerDecoder:
        return Transformer(model, preprocess)
    if isinstance(model, TwoStageDetector) and type(part) in (CascadeRoIHead, StandardRoIHead):
        return TwoStage(model, preprocess, paste_masks)
    names = ' with '.join(type(x).__name__ for x in (model, part) if x is not None)
    raise ValueError(f'Mask R-CNN, Cascade R-CNN and DINO can be exported, got {names}')


@MODELS.register_module()
class ExportedDetector(ExportedModel):
    """An exported detector in place of mmdet's."""

    def predict(self, inputs: Tensor, data_samples: list[DetDataSample]) -> list[DetDataSample]:
        sizes = torch.tensor([sample.img_shape[:2] for sample in data_samples])
        outputs = self.run(image=inputs, image_size=sizes)
        for i, sample in enumerate(data_samples):
            found = self.predictor.detections(
                {name: x[i].numpy() for name, x in outputs.items()},
                sample.img_shape[:2],
                sample.ori_shape[:2],
            )
            tensors = {name: torch.from_numpy(array) for name, array in found.items()}
            tensors['bboxes'] = tensors.pop('boxes')
            sample.pred_instances = InstanceData(**tensors)
        return data_samples
