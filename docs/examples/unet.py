"""A U-Net-like segmentor on InternImage's features, trained on discs; needs PyTorch only."""

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from internimage_mm import create_model


class UNet(nn.Module):
    """Images to scores of each pixel: features are enlarged and joined, the last one first."""

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        *skipped, width = backbone.feature_info.channels()
        self.joins = nn.ModuleList()
        for skip in reversed(skipped):
            self.joins.append(nn.Sequential(nn.Conv2d(width + skip, skip, 3, padding=1), nn.GELU()))
            width = skip
        self.scores = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        *skipped, x = self.backbone(images)
        for skip, join in zip(reversed(skipped), self.joins, strict=True):
            x = join(torch.cat([F.interpolate(x, skip.shape[-2:], mode='bilinear'), skip], 1))
        return F.interpolate(self.scores(x), images.shape[-2:], mode='bilinear')


def discs(number: int, size: int = 64) -> tuple[Tensor, Tensor]:
    """Noisy grey images (N, 1, size, size) with a bright disc, and its pixels (N, size, size)."""
    x, y = torch.meshgrid(torch.arange(size), torch.arange(size), indexing='xy')
    center, radius = torch.rand(2, number, 1, 1) * size, torch.rand(number, 1, 1) * 10 + 8
    inside = (x - center[0]) ** 2 + (y - center[1]) ** 2 < radius**2
    return (inside + 0.3 * torch.randn(inside.shape))[:, None], inside.long()


torch.manual_seed(0)
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 40
# A small one. Of the release: create_model('internimage_t', True, features_only=True, in_chans=1)
small = dict(channels=16, depths=[1] * 4, groups=[1, 2, 4, 8])
model = UNet(create_model('internimage_t', features_only=True, in_chans=1, **small), num_classes=2)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for _ in range(steps):
    images, labels = discs(8)
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
images, labels = discs(32)
found = model.eval()(images).argmax(1)
print(f'IoU of the discs: {(found & labels).sum() / (found | labels).sum():.2f}')
