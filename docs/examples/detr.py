"""A DETR-like detector on InternImage's features, trained on squares; needs PyTorch only."""

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from internimage_mm import create_model


class DETR(nn.Module):
    """Images to scores (N, queries) and boxes (N, queries, 4) as centre x, y, width, height."""

    def __init__(self, backbone: nn.Module, queries: int = 4, width: int = 64) -> None:
        super().__init__()
        self.backbone = backbone
        self.project = nn.Conv2d(backbone.feature_info.channels()[-1], width, 1)
        self.place = nn.Linear(2, width)
        self.queries = nn.Parameter(torch.randn(queries, width))
        options = dict(dropout=0.0, batch_first=True, norm_first=True)
        self.transformer = nn.Transformer(width, 4, 1, 2, 128, **options)
        self.head = nn.Linear(width, 5)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.project(self.backbone(images)[-1])
        rows, columns = (torch.linspace(-1, 1, size) for size in x.shape[-2:])
        grid = torch.stack(torch.meshgrid(columns, rows, indexing='xy'), -1)
        tokens = (x.permute(0, 2, 3, 1) + self.place(grid)).flatten(1, 2)
        found = self.head(self.transformer(tokens, self.queries.expand(len(images), -1, -1)))
        return found[..., 0], found[..., 1:].sigmoid()


def squares(number: int, size: int = 64) -> tuple[Tensor, Tensor]:
    """Noisy images (N, 3, size, size) with a bright square, and its boxes (N, 4) from 0 to 1."""
    center, width = torch.rand(2, number, 1) * 0.6 + 0.2, torch.rand(number, 1) * 0.2 + 0.2
    x, y = (torch.linspace(0, 1, size) - center).abs() < width / 2
    images = (x[:, None] & y[:, :, None])[:, None] + 0.3 * torch.randn(number, 3, size, size)
    return images, torch.cat([*center, width, width], 1)


torch.manual_seed(0)
# A small one. Of the release: create_model('internimage_t', True, features_only=True)
small = dict(channels=16, depths=[1] * 4, groups=[1, 2, 4, 8])
model = DETR(create_model('internimage_t', features_only=True, out_indices=(2,), **small))
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 200):
    images, targets = squares(16)
    scores, boxes = model(images)
    distance = (boxes - targets[:, None]).abs().sum(-1)
    # One object: the cheapest query. Of several: scipy.optimize.linear_sum_assignment.
    matched = F.one_hot((distance - scores.sigmoid()).argmin(1), scores.shape[1]).float()
    loss = F.binary_cross_entropy_with_logits(scores, matched) + (distance * matched).mean() * 8
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
images, targets = squares(32)
scores, boxes = model.eval()(images)
best = boxes[torch.arange(32), scores.argmax(1)]
print(f'mean error of the boxes: {(best - targets).abs().mean():.3f} of the width of the image')
