"""Deformable attention over maps whose sizes are integers, which can be exported as symbols.

mmcv's takes them as a tensor and checks its values, which torch.export cannot trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from torch import Tensor, nn
from torch.nn import functional as F

from .forms import replace

Sizes = Sequence[tuple[int, int]]


class DeformableAttention(nn.Module):
    """The layers of an ``MultiScaleDeformableAttention`` with ``batch_first``.

    Called as that, except that ``spatial_shapes`` is a sequence of (height, width).
    """

    def __init__(self, layers: MultiScaleDeformableAttention) -> None:
        super().__init__()
        if not layers.batch_first:
            raise ValueError('deformable attention can be exported with batch_first=True only')
        self.layers: Any = layers

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Sizes = (),
        **_: Any,
    ) -> Tensor:
        layers = self.layers
        heads, levels, points = layers.num_heads, layers.num_levels, layers.num_points
        identity = query if identity is None else identity
        value = layers.value_proj(query if value is None else value)
        query = query if query_pos is None else query + query_pos
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0.0)
        weights = layers.attention_weights(query).unflatten(-1, (heads, levels * points))
        weights = weights.softmax(-1).unflatten(-1, (levels, points))
        offsets = layers.sampling_offsets(query).unflatten(-1, (heads, levels, points, 2))
        assert reference_points is not None
        reference = reference_points[:, :, None, :, None]
        if reference.shape[-1] == 2:
            positions = reference + offsets / sizes_as_tensor(spatial_shapes, query)[:, None]
        else:
            positions = reference[..., :2] + offsets * reference[..., 2:] * (0.5 / points)
        sampled = multi_scale_deformable_attn_pytorch(
            value.unflatten(-1, (heads, -1)), spatial_shapes, positions, weights
        )
        return layers.dropout(layers.output_proj(sampled)) + identity


def sizes_as_tensor(sizes: Sizes, like: Tensor) -> Tensor:
    """(width, height) of each, (levels, 2)."""
    rows = [torch.stack([like.new_ones(n).sum() for n in (w, h)]) for h, w in sizes]
    return torch.stack(rows)


def replace_attention(model: nn.Module) -> nn.Module:
    """Replace the deformable attention of a model by exportable one, in place."""
    return replace(model, MultiScaleDeformableAttention, DeformableAttention)


class PixelDecoder(nn.Module):
    """The layers of mmdet's ``MSDeformAttnPixelDecoder``, for images without padding.

    Called as that: features of strides 4 to 32 to the mask features and the maps of three strides.
    """

    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.layers: Any = replace_attention(layers)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        layers = self.layers
        batch, levels = features[0].shape[0], layers.num_encoder_levels
        tokens, positions, reference, sizes = [], [], [], []
        for i, feature in enumerate(reversed(features[-levels:])):
            h, w = feature.shape[2:]
            sizes.append((h, w))
            tokens.append(layers.input_convs[i](feature).flatten(2).transpose(1, 2))
            position = layers.postional_encoding(feature.new_zeros((batch, h, w), dtype=torch.bool))
            position = position.flatten(2).transpose(1, 2)
            positions.append(position + layers.level_encoding.weight[i])
            rows, columns = ((torch.arange(n, device=feature.device) + 0.5) / n for n in (h, w))
            grid = torch.stack([columns.expand(h, w), rows[:, None].expand(h, w)], dim=-1)
            reference.append(grid.flatten(0, 1))
        reference_points = torch.cat(reference)[None, :, None].expand(batch, -1, levels, -1)
        memory, position = torch.cat(tokens, 1), torch.cat(positions, 1)
        for layer in layers.encoder.layers:
            memory = layer(
                query=memory,
                query_pos=position,
                key_padding_mask=None,
                reference_points=reference_points,
                spatial_shapes=sizes,
            )
        parts = memory.transpose(1, 2).split([h * w for h, w in sizes], dim=-1)
        maps = [x.unflatten(-1, size) for x, size in zip(parts, sizes, strict=True)]
        for i in range(len(features) - levels - 1, -1, -1):
            lateral = layers.lateral_convs[i](features[i])
            coarser = F.interpolate(
                maps[-1], size=lateral.shape[2:], mode='bilinear', align_corners=False
            )
            maps.append(layers.output_convs[i](lateral + coarser))
        return layers.mask_feature(maps[-1]), maps[: layers.num_outs]
