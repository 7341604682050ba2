"""The classifier of iNaturalist 2018, which also knows when and where a picture was taken."""

from collections.abc import Sequence

import torch
from mmengine.registry import MODELS
from mmpretrain.models.heads import LinearClsHead
from mmpretrain.structures import DataSample
from torch import Tensor, nn

TEMPORAL_DIM, SPATIAL_DIM = 4, 3


class _ResidualMLP(nn.Module):
    """Two linear layers, each with ReLU and layer norm, added to the input: (N, C) to (N, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_fn1 = nn.LayerNorm(channels)
        self.norm_fn2 = nn.LayerNorm(channels)
        self.w1 = nn.Linear(channels, channels)
        self.w2 = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm_fn2(self.w2(self.norm_fn1(self.w1(x).relu())).relu())


def _encoder(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_channels, channels),
        nn.ReLU(inplace=True),
        nn.LayerNorm(channels),
        _ResidualMLP(channels),
    )


@MODELS.register_module()
class MetadataLinearClsHead(LinearClsHead):
    """Linear classifier whose scores are the sum of one on the image and one on its metadata.

    The metadata are ``temporal_info`` (4 numbers) and ``spatial_info`` (3 numbers) of each data
    sample, as :class:`~internimage_mm.cls.INaturalist2018` makes them; zeros mean unknown, and so
    does a data sample without them. Weights are called as in the official classifier
    (``meta_head_1`` for time, ``meta_head_2`` for place, ``meta_norm``, ``meta_head``).

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the image vector.
        meta_channels: Channels of each of the two encodings. Official and default: 64.
        init_cfg: Of mmengine. Default: linear layers truncated normal (std 0.02), as officially.
        **kwargs: Of mmpretrain's ``LinearClsHead``.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        meta_channels: int = 64,
        init_cfg: dict | None = None,
        **kwargs,
    ) -> None:
        init_cfg = init_cfg or dict(type='TruncNormal', layer='Linear', std=0.02)
        super().__init__(num_classes, in_channels, init_cfg=init_cfg, **kwargs)
        self.meta_head_1 = _encoder(TEMPORAL_DIM, meta_channels)
        self.meta_head_2 = _encoder(SPATIAL_DIM, meta_channels)
        self.meta_norm = nn.LayerNorm(2 * meta_channels, eps=1e-6)
        self.meta_head = nn.Linear(2 * meta_channels, num_classes)

    def forward(
        self, feats: Sequence[Tensor], data_samples: list[DataSample] | None = None
    ) -> Tensor:
        """Image vectors and the data samples with the metadata to scores (N, num_classes)."""
        like = feats[-1]
        temporal = _metadata(like, data_samples, 'temporal_info', TEMPORAL_DIM)
        spatial = _metadata(like, data_samples, 'spatial_info', SPATIAL_DIM)
        return self.score(feats, temporal, spatial)

    def score(self, feats: Sequence[Tensor], temporal: Tensor, spatial: Tensor) -> Tensor:
        """Image vectors, ``temporal_info`` (N, 4) and ``spatial_info`` (N, 3) to scores."""
        x = self.pre_logits(feats)
        encoded = torch.cat([self.meta_head_1(temporal), self.meta_head_2(spatial)], dim=-1)
        return self.fc(x) + self.meta_head(self.meta_norm(encoded))

    def loss(self, feats: Sequence[Tensor], data_samples: list[DataSample], **kwargs) -> dict:
        """Losses of the scores, as mmpretrain's heads return them."""
        return self._get_loss(self(feats, data_samples), data_samples, **kwargs)

    def predict(
        self, feats: Sequence[Tensor], data_samples: list[DataSample] | None = None
    ) -> list[DataSample]:
        """The data samples with ``pred_score`` and ``pred_label``."""
        return self._get_predictions(self(feats, data_samples), data_samples)


def _metadata(like: Tensor, data_samples: list[DataSample] | None, key: str, size: int) -> Tensor:
    """One kind of metadata of a batch, (N, size)."""
    samples = data_samples if data_samples is not None else [None] * len(like)
    unknown = [0.0] * size
    rows = [unknown if s is None else s.get(key, unknown) for s in samples]
    return like.new_tensor(rows)
