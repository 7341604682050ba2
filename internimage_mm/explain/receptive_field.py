"""The effective receptive field: which pixels of an image a feature depends on, by its gradient.

Defined by Luo et al., arXiv:1701.04128; measured as by Ding et al., RepLKNet, arXiv:2203.06717.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .sampling import ends

SHARES = (0.2, 0.3, 0.5, 0.99)
"""Shares of the contribution that RepLKNet reports areas for."""


def receptive_field(
    backbone: nn.Module, image: Tensor, stage: int, block: int, column: int, row: int
) -> Tensor:
    """How much each image pixel contributes to an output pixel of a block.

    As RepLKNet measures it: the positive part of the gradient, with respect to the image, of the
    sum over channels of the positive features, summed over the colours.

    Args:
        backbone: An InternImage or a CBInternImage, of which the lead backbone is taken.
        image: (1, 3, H, W), as the backbone takes it.
        stage: Stage of the block, from 0.
        block: Block within the stage, from 0.
        column: Column of the pixel in the block's output.
        row: Its row.

    Returns:
        (H, W), not negative.

    Raises:
        ValueError: No InternImage in ``backbone``.
    """
    outputs: list[Tensor] = []
    layer = ends(backbone)[1].levels[stage].blocks[block]
    handle = layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    image = image.detach().requires_grad_()
    try:
        backbone(image)
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(outputs[0][0, row, column].relu().sum(), image)
    return gradient.relu().sum((0, 1)).cpu()


def areas(contribution: Tensor, x: int, y: int) -> dict[float, float]:
    """The smallest squares around a pixel that hold given shares of the contribution.

    RepLKNet's measure, whose pixel is the central one: there, and where no square leaves the image,
    the same. RepLKNet's script takes the logarithm of the contributions first, which makes the
    result depend on their scale; this does not.

    Args:
        contribution: (H, W), not negative.
        x: Column of the pixel.
        y: Its row.

    Returns:
        For each of ``SHARES``, the part of the image's area that the square covers, 0 to 1.
    """
    height, width = contribution.shape
    distance = torch.maximum(
        (torch.arange(height) - y).abs()[:, None], (torch.arange(width) - x).abs()
    ).flatten()
    held = torch.bincount(distance, contribution.flatten().double()).cumsum(0)
    covered = torch.bincount(distance).cumsum(0)
    radii = torch.searchsorted(held, torch.tensor(SHARES).double() * held[-1])
    return {
        share: covered[radius].item() / contribution.numel()
        for share, radius in zip(SHARES, radii.clamp(max=len(held) - 1), strict=True)
    }
