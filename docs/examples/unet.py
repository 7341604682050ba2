"""A U-Net-like segmentor on InternImage's features, trained on discs; needs PyTorch only."""

import sys
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from internimage_mm import create_model


class UNet(nn.Module):
    """Images to scores of each pixel: features are enlarged and joined, the last one first."""

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        widths = backbone.feature_info.channels()
        self.joins = nn.ModuleList(nn.Conv2d(a + b, a, 3, padding=1) for a, b in pairwise(widths))
        self.scores = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        *skipped, x = self.backbone(images)
        for skip, join in zip(reversed(skipped), reversed(self.joins), strict=True):
            x = F.interpolate(x, skip.shape[-2:], mode='bilinear')
            x = F.gelu(join(torch.cat([x, skip], 1)))
        return F.interpolate(self.scores(x), images.shape[-2:], mode='bilinear')


def discs(number: int, size: int = 64) -> tuple[Tensor, Tensor]:
    """Noisy grey images (N, 1, size, size) with a bright disc, and its pixels (N, size, size)."""
    x, y = (torch.arange(size) - torch.rand(2, number, 1) * size) ** 2  # from the centre
    inside = x[:, None] + y[:, :, None] < (torch.rand(number, 1, 1) * 10 + 8) ** 2
    return (inside + 0.3 * torch.randn(inside.shape))[:, None], inside.long()


torch.manual_seed(0)
# A small one. Of the release: create_model('internimage_t', True, features_only=True, in_chans=1)
small = dict(channels=16, depths=[1] * 4, groups=[1, 2, 4, 8])
model = UNet(create_model('internimage_t', features_only=True, in_chans=1, **small), num_classes=2)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 40):
    images, labels = discs(8)
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
images, labels = discs(32)
found = model.eval()(images).argmax(1)
print(f'IoU of the discs: {(found & labels).sum() / (found | labels).sum():.2f}')
