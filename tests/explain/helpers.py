"""A small backbone whose layers look around, and the truth that the tests compare with."""

import torch
from backbones.helpers import tiny
from torch.nn import functional as F

from ops_dcnv3 import DCNv3


def looking_around(backbone):
    """The backbone with offsets and masks of random layers, which start at zero."""
    torch.manual_seed(0)
    for layer in backbone.modules():
        if isinstance(layer, DCNv3):
            for linear in (layer.offset, layer.mask):
                torch.nn.init.normal_(linear.weight, std=layer.channels**-0.5)
    return backbone.eval().requires_grad_(False)


def small_backbone(**changes):
    return looking_around(tiny(**changes))


def sampled(image, points):
    """Values (N, C, H, W, ...) of an image (N, C, h, w) at points (N, H, W, ..., 2)."""
    height, width = image.shape[2:]
    grid = (2 * points + 1) / torch.tensor([width, height]) - 1
    values = F.grid_sample(image, grid.flatten(2, -2), align_corners=False)
    return values.unflatten(-1, points.shape[2:-1])
