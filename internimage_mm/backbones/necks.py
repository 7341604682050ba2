"""From backbone features to the one vector per image that the classifier takes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internimage_mm.engine import MODELS, BaseModule
from ops_dcnv3.modules import build_activation, build_norm


@MODELS.register_module()
class ConvPoolingNeck(BaseModule):
    """1x1 convolution, batch norm, activation and mean over the image (InternImage-T to XL).

    Takes the features of the backbone, of which it uses the last, (N, ``in_channels``, H, W), and
    returns a tuple of one tensor (N, ``out_channels``). Weights are called as in the official
    classifier (``conv_head.*``).

    Args:
        in_channels: Channels of the last feature.
        out_channels: Channels of the result; official: 1.5 times ``in_channels``.
        act_layer: ``'GELU'`` (default), ``'ReLU'`` or ``'SiLU'``.
        init_cfg: Of mmengine. Default: PyTorch's initialisation, as officially.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        act_layer: str = 'GELU',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.conv_head = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            build_norm(out_channels, 'BN', input_last=False, output_last=False),
            build_activation(act_layer),
        )

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor]:
        return (self.pool(self.fuse(feats)),)

    def fuse(self, feats: Sequence[Tensor]) -> Tensor:
        """Features to the map that is pooled, (N, ``out_channels``, H, W)."""
        return self.conv_head(feats[-1])

    def pool(self, x: Tensor) -> Tensor:
        """That map to (N, ``out_channels``)."""
        return x.mean((2, 3))


class CrossAttention(nn.Module):
    """Multi-head attention with projections, (N, Q, C) and twice (N, K, C) to (N, Q, C_out)."""

    def __init__(self, channels: int, num_heads: int, out_channels: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        # The biases are parameters of their own: official state-dict keys.
        self.q = nn.Linear(channels, channels, bias=False)
        self.k = nn.Linear(channels, channels, bias=False)
        self.v = nn.Linear(channels, channels, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(channels))
        self.k_bias = nn.Parameter(torch.zeros(channels))
        self.v_bias = nn.Parameter(torch.zeros(channels))
        self.proj = nn.Linear(channels, out_channels)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (
            F.linear(x, layer.weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, layer, bias in (
                (query, self.q, self.q_bias),
                (key, self.k, self.k_bias),
                (value, self.v, self.v_bias),
            )
        )
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class AttentionPooling(nn.Module):
    """Attention of the mean token over all tokens, (N, T, C) to (N, C_out)."""

    def __init__(self, channels: int, num_heads: int, out_channels: int) -> None:
        super().__init__()
        self.norm1_q = build_norm(channels, 'LN')
        self.norm1_k = build_norm(channels, 'LN')
        self.norm1_v = build_norm(channels, 'LN')
        self.cross_dcn = CrossAttention(channels, num_heads, out_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.norm1_q(tokens.mean(1, keepdim=True))
        return self.cross_dcn(query, self.norm1_k(tokens), self.norm1_v(tokens)).squeeze(1)


@MODELS.register_module()
class AttentionPoolingNeck(BaseModule):
    """The CLIP projector of InternImage-H and G: the two last stages, pooled by attention.

    The last feature goes through a 1x1 convolution and a pixel shuffle to the resolution of the one
    before it, the two are added, and the query of the attention is the mean over the image. Takes
    the features of the backbone, of which it uses the last two, (N, C, H, W) and (N, 2C, H/2, W/2),
    and returns a tuple of one tensor (N, ``out_channels``). Weights are called as in the official
    classifier (``dcnv3_head_x3.*``, ``dcnv3_head_x4.*``, ``clip_projector.*``, ``fc_norm.*``).

    Args:
        in_channels: Channels of the last two features.
        embed_channels: Channels of the attention. Official and default: 1024.
        num_heads: Heads of the attention. Official and default: 16.
        out_channels: Channels of the result. Official and default: 768.
        init_cfg: Of mmengine. Default: linear layers truncated normal (std 0.02), as officially.

    Raises:
        ValueError: Settings that do not fit one another, or (in ``forward``) features whose sizes
            do not: height and width of the images must be multiples of 32.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        embed_channels: int = 1024,
        num_heads: int = 16,
        out_channels: int = 768,
        init_cfg: dict | None = None,
    ) -> None:
        init_cfg = init_cfg or dict(type='TruncNormal', layer='Linear', std=0.02)
        super().__init__(init_cfg=init_cfg)
        if len(in_channels) != 2:
            raise ValueError(f'in_channels must be those of 2 features, got {in_channels}')
        if embed_channels % num_heads:
            raise ValueError(
                f'embed_channels must be a multiple of num_heads, got {embed_channels} and '
                f'{num_heads}'
            )
        self.dcnv3_head_x4 = nn.Sequential(
            nn.Conv2d(in_channels[1], embed_channels * 4, 1), nn.PixelShuffle(2)
        )
        self.dcnv3_head_x3 = nn.Conv2d(in_channels[0], embed_channels, 1)
        self.clip_projector = AttentionPooling(embed_channels, num_heads, out_channels)
        self.fc_norm = build_norm(out_channels, 'LN')

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor]:
        return (self.pool(self.fuse(feats)),)

    def fuse(self, feats: Sequence[Tensor]) -> Tensor:
        """Features to the map that is pooled, (N, ``embed_channels``, H, W)."""
        if len(feats) < 2:
            raise ValueError(
                f'AttentionPoolingNeck needs two features, got {len(feats)}; set '
                'out_indices=(2, 3) of the backbone'
            )
        x3, x4 = feats[-2:]
        if x3.shape[2:] != tuple(2 * s for s in x4.shape[2:]):
            raise ValueError(
                'AttentionPoolingNeck needs images whose height and width are multiples of 32: '
                f'the last two features are {tuple(x3.shape[2:])} and {tuple(x4.shape[2:])} '
                'instead of one twice the size of the other'
            )
        return self.dcnv3_head_x4(x4) + self.dcnv3_head_x3(x3)

    def pool(self, x: Tensor) -> Tensor:
        """That map to (N, ``out_channels``)."""
        return self.fc_norm(self.clip_projector(x.flatten(2).transpose(1, 2)))
