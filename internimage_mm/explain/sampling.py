"""Where the DCNv3 layers of a backbone sample an image, recorded in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from ops_dcnv3 import DCNv3, sampling_points

from ..backbones import InternImage

STEM_STRIDE = 4


@dataclass
class Sampling:
    """Where one DCNv3 layer samples, for each pixel of its output, which is as large as its input.

    The layer's sum over the points, before its output projection, is ``sum_p weights * value`` with
    ``value`` interpolated bilinearly at ``points``, for each group of channels.

    Attributes:
        points: (H, W, groups, P, 2), (x, y) in pixels of the input, pixel centres at integers. With
            ``center_feature_scale`` the last one is the pixel itself.
        weights: (H, W, groups, P), 1 in sum over P.
    """

    points: Tensor
    weights: Tensor

    def spread(self, share: Tensor) -> Tensor:
        """Pass what each output pixel holds on to the input pixels that its points sample.

        Every group gets an equal part. What is sampled outside the image is lost.

        Args:
            share: (H, W).

        Returns:
            (H, W).
        """
        height, width = share.shape
        rows, columns = share.nonzero(as_tuple=True)
        points, weights = self.points[rows, columns], self.weights[rows, columns]
        carried = share[rows, columns, None, None] * weights / weights.shape[1]
        result = share.new_zeros(height * width)
        for step in ((0, 0), (1, 0), (0, 1), (1, 1)):
            corner = points.floor() + points.new_tensor(step)
            part = carried * (1 - (points - corner).abs()).prod(-1)
            x, y = corner.unbind(-1)
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            result.index_add_(0, (y * width + x)[inside].long(), part[inside])
        return result.view(height, width)


@dataclass
class Recording:
    """All DCNv3 layers of a backbone on one image.

    Attributes:
        size: Height and width of the image.
        stages: The layers of each stage, in order.
        stem: Share of each tap in the two 3x3 convolutions of stride 2 of the stem, (3, 3) each.
        downsamplings: The same for the convolution after each stage but the last.
    """

    size: tuple[int, int]
    stages: list[list[Sampling]]
    stem: list[Tensor] = field(default_factory=list)
    downsamplings: list[Tensor] = field(default_factory=list)

    def pixel(self, stage: int, x: float, y: float) -> tuple[int, int]:
        """The pixel (column, row) of a stage that is nearest to a point (x, y) of the image."""
        height, width = self.stages[stage][0].weights.shape[:2]
        stride = STEM_STRIDE * 2**stage
        return min(round(x / stride), width - 1), min(round(y / stride), height - 1)

    def trace(self, stage: int, block: int, column: int, row: int) -> Tensor:
        """Trace an output pixel of a block back to the image, through every DCNv3 layer before it.

        Follows the sampling points alone: neither residual connections nor layers of 1x1 pixels,
        which move nothing. A convolution passes its pixel on by the sum of absolute weights of each
        tap.

        Args:
            stage: Stage of the block, from 0.
            block: Block within the stage, from 0.
            column: Column of the pixel in the block's output.
            row: Its row.

        Returns:
            (H, W) of the image: the share of the output pixel that each pixel has; 1 in sum, minus
            what is sampled outside.
        """
        share = torch.zeros_like(self.stages[stage][block].weights[..., 0, 0])
        share[row, column] = 1
        for s in range(stage, -1, -1):
            for sampling in reversed(self.stages[s][: block + 1 if s == stage else None]):
                share = sampling.spread(share)
            if s > 0:
                share = _spread_convolution(
                    share, self.downsamplings[s - 1], self.stages[s - 1][0].weights.shape[:2]
                )
        height, width = self.size
        share = _spread_convolution(share, self.stem[1], ((height + 1) // 2, (width + 1) // 2))
        return _spread_convolution(share, self.stem[0], self.size)


def record(backbone: nn.Module, image: Tensor) -> Recording:
    """Run a backbone on an image and record where it samples.

    Args:
        backbone: An InternImage or a CBInternImage, of which the lead backbone is recorded.
        image: (1, 3, H, W), as the backbone takes it.

    Raises:
        ValueError: No InternImage in ``backbone``, or not one image.
    """
    first, last = ends(backbone)
    if image.dim() != 4 or image.shape[0] != 1:
        raise ValueError(f'image must have shape (1, 3, H, W), got {tuple(image.shape)}')
    stages: list[list[Sampling]] = [[] for _ in last.levels]
    with ExitStack() as hooks, torch.no_grad():
        for layers, stage in zip(stages, last.levels, strict=True):
            for block in stage.blocks:

                def keep(layer, args, layers=layers):
                    layers.append(_sampling(layer, args[0]))

                handle = block.dcn.register_forward_pre_hook(keep)
                hooks.callback(handle.remove)
        backbone(image)
    return Recording(
        size=(image.shape[2], image.shape[3]),
        stages=stages,
        stem=[_shares(conv) for conv in (first.patch_embed.conv1, first.patch_embed.conv2)],
        downsamplings=[_shares(stage.downsample.conv) for stage in last.levels if stage.downsample],
    )


def ends(backbone: nn.Module) -> tuple[Any, Any]:
    """The InternImage that has the stem, and the one whose features heads get.

    Raises:
        ValueError: There is none.
    """
    found = [module for module in backbone.modules() if isinstance(module, InternImage)]
    if not found:
        raise ValueError(f'{type(backbone).__name__} has no InternImage')
    return found[0], found[-1]


def _sampling(layer: DCNv3, x: Tensor) -> Sampling:
    query = layer.dw_conv(x.permute(0, 3, 1, 2))
    points = sampling_points(
        layer.offset(query),
        kernel_size=layer.kernel_size,
        stride=layer.stride,
        padding=layer.pad,
        dilation=layer.dilation,
        groups=layer.group,
        offset_scale=layer.offset_scale,
        remove_center=layer.remove_center,
    )[0]
    weights = layer.mask(query)[0].unflatten(-1, (layer.group, -1)).softmax(-1)
    if layer.center_feature_scale:
        scale = nn.functional.linear(
            query[0], layer.center_feature_scale_proj_weight, layer.center_feature_scale_proj_bias
        ).sigmoid()[..., None]
        weights = torch.cat([weights * (1 - scale), scale], -1)
        height, width = points.shape[:2]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
        itself = torch.stack([x, y], -1).to(points)[:, :, None, None]
        points = torch.cat([points, itself.expand(-1, -1, layer.group, 1, 2)], -2)
    return Sampling(points.float().cpu(), weights.float().cpu())


def _shares(conv: nn.Conv2d) -> Tensor:
    weight = conv.weight.detach().abs().sum((0, 1)).float().cpu()
    return weight / weight.sum()


def _spread_convolution(share: Tensor, taps: Tensor, size: Sequence[int]) -> Tensor:
    return conv2d_input((1, 1, *size), taps[None, None], share[None, None], stride=2, padding=1)[
        0, 0
    ]
