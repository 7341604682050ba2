"""The forward pass of the release's models on tensors without values (``meta`` or fake).

What needs values is replaced: proposals, the sampling of multi-scale deformable attention, and the
sizes that mmdet reads from tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def run_without_values(model: Any, images: Tensor, num_boxes: int, num_masks: int) -> list[Any]:
    """Compute what the heads of a model return.

    Args:
        model: A detector, segmentor or classifier of the release. In training mode, its auxiliary
            heads run too.
        images: (N, 3, H, W).
        num_boxes: Regions of interest of all images together, in detectors that have them.
        num_masks: Of these, the ones with a mask.

    Returns:
        The outputs, nested as the heads nest them.

    Raises:
        ValueError: A model of another kind.
    """
    with _attention_without_values(model):
        if hasattr(model, 'roi_head'):
            return _two_stages(model, images, num_boxes, num_masks)
        if hasattr(model, 'decode_head'):
            return _segmentor(model, images)
        if hasattr(model, 'encoder'):
            return _dino(model, images)
        if hasattr(model, 'extract_feat') and hasattr(model, 'head'):
            return [model.head(model.extract_feat(images))]
    raise ValueError(
        f'{type(model).__name__} is none of the known kinds: detectors with regions of interest '
        '(Mask R-CNN, Cascade), DINO, segmentors and classifiers'
    )


def _two_stages(model: Any, images: Tensor, num_boxes: int, num_masks: int) -> list[Any]:
    feats, roi_head = model.extract_feat(images), model.roi_head
    outputs = [model.rpn_head(feats)]
    outputs += _regions(roi_head.bbox_head, roi_head.bbox_roi_extractor, num_boxes, feats)
    if roi_head.with_mask:
        outputs += _regions(roi_head.mask_head, roi_head.mask_roi_extractor, num_masks, feats)
    return outputs


def _regions(heads: Any, extractors: Any, number: int, feats: Any) -> list[Any]:
    many = isinstance(heads, nn.ModuleList)
    pairs = zip(heads, extractors, strict=True) if many else [(heads, extractors)]
    outputs = []
    for head, extractor in pairs:
        size = extractor.roi_layers[0].output_size
        sizes = size if isinstance(size, tuple) else (size, size)
        regions = feats[0].new_empty((number, extractor.out_channels, *sizes), dtype=torch.float32)
        # Any way from the features to the regions, for the backward pass.
        outputs.append(head(regions + torch.stack([feat.sum() for feat in feats]).sum()))
    return outputs


def _segmentor(model: Any, images: Tensor) -> list[Any]:
    feats, head = model.extract_feat(images), model.decode_head
    if hasattr(head, 'pixel_decoder'):
        head.pixel_decoder.forward = partial(_pixel_decoder, head.pixel_decoder)
        try:
            return [head(feats, [None] * len(images))]
        finally:
            del head.pixel_decoder.forward
    outputs = [head(feats)]
    if model.training and getattr(model, 'auxiliary_head', None) is not None:
        outputs.append(model.auxiliary_head(feats))
    return outputs


def _pixel_decoder(decoder: Any, feats: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    levels = [
        conv(feats[decoder.num_input_levels - 1 - i]) for i, conv in enumerate(decoder.input_convs)
    ]
    tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
    for layer in decoder.encoder.layers:
        tokens = layer(query=tokens, query_pos=torch.empty_like(tokens), key_padding_mask=None)
    parts = tokens.split([level[0, 0].numel() for level in levels], dim=1)
    outputs = [
        part.transpose(1, 2).reshape(level.shape) for part, level in zip(parts, levels, strict=True)
    ]
    for i in reversed(range(decoder.num_input_levels - decoder.num_encoder_levels)):
        lateral = decoder.lateral_convs[i](feats[i])
        up = nn.functional.interpolate(outputs[-1], lateral.shape[-2:], mode='bilinear')
        outputs.append(decoder.output_convs[i](lateral + up))
    return decoder.mask_feature(outputs[-1]), outputs[: decoder.num_outs]


def _dino(model: Any, images: Tensor) -> list[Tensor]:
    """The layers of DINO. mmdet's forward reads sizes from tensors."""
    features = model.backbone(images)
    branches = features if isinstance(features[0], (list, tuple)) else [features]
    levels = zip(*(model.neck(branch) for branch in branches), strict=True)
    tokens = torch.cat([torch.cat(level).flatten(2).transpose(1, 2) for level in levels], dim=1)
    position = torch.empty_like(tokens)
    for layer in model.encoder.layers:
        tokens = layer(query=tokens, query_pos=position, key_padding_mask=None)
    head, decoder = model.bbox_head, model.decoder
    proposals = model.memory_trans_norm(model.memory_trans_fc(tokens))
    outputs = [head.cls_branches[-1](proposals), head.reg_branches[-1](proposals)]
    denoising = 2 * model.dn_query_generator.num_dn_queries
    shape = (len(tokens), model.num_queries + denoising, model.embed_dims)
    queries = tokens.new_empty(shape) + model.query_embedding.weight.mean()
    for i, layer in enumerate(decoder.layers):
        where = decoder.ref_point_head(tokens.new_empty((*shape[:2], 2 * shape[2])))
        queries = layer(query=queries, query_pos=where, value=tokens)
        state = decoder.norm(queries)
        outputs += [head.cls_branches[i](state), head.reg_branches[i](state)]
    return outputs


class _Sample(torch.autograd.Function):
    """Multi-scale deformable attention's sampling: what it keeps, and the shapes it returns."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(value, offsets, weights)
        return value.new_empty((*offsets.shape[:2], value.shape[-1]))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors)


@contextmanager
def _attention_without_values(model: nn.Module) -> Iterator[None]:
    modules = [m for m in model.modules() if hasattr(m, 'sampling_offsets')]
    for module in modules:
        module.forward = partial(_attend, module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _attend(
    module: Any,
    query: Tensor,
    value: Tensor | None = None,
    identity: Tensor | None = None,
    query_pos: Tensor | None = None,
    **_: Any,
) -> Tensor:
    value = query if value is None else value
    identity = query if identity is None else identity
    query = query if query_pos is None else query + query_pos
    weights = module.attention_weights(query).unflatten(-1, (module.num_heads, -1)).softmax(-1)
    # mmcv's operator takes float32.
    inputs = (module.value_proj(value), module.sampling_offsets(query), weights)
    sampled = _Sample.apply(*(tensor.float() for tensor in inputs))
    return module.dropout(module.output_proj(sampled)) + identity
