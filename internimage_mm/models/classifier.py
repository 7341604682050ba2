"""InternImage as a whole classifier, in the interface of timm's models."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..backbones import AttentionPoolingNeck, ConvPoolingNeck, InternImage
from ..backbones.internimage import Block
from ..backbones.presets import preset_name
from ..checkpoint import (
    convert_official,
    extract_state_dict,
    fit_state_dict,
    load_backbone,
    read_checkpoint,
)
from ..engine import print_log
from .features import chosen_stages, cut, feature_info

_FIRST_CONV = 'patch_embed.conv1.weight'
_ATTENTION_POOLED = ('huge', 'giant')
# Initial layer scale in ImageNet training; the presets have that of detection, 1.0.
_LAYER_SCALE = dict.fromkeys(('small', 'base', 'large', 'xlarge'), 1e-5)


class InternImageClassifier(nn.Module):
    """Backbone, pooling and linear classifier of the release: images to (N, num_classes).

    Weights have the names of mmpretrain's ``ImageClassifier`` with our configs (``backbone.*``,
    ``neck.*``, ``head.fc.*``). ``load_state_dict`` also takes official names.

    Args:
        arch: As of :class:`InternImage`, like all arguments that are not listed here.
        in_chans: Channels of the images.
        num_classes: Number of classes; 0 returns the pooled vector.
        global_pool: None: the pooling of the release, convolution and mean for T to XL
            (``'avg'``), attention for H and G (``'map'``). ``''``: the map before it is pooled;
            needs ``num_classes=0``.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after the stem and in the MLPs; ``drop_rate`` of the backbone.
        drop_path_rate: Stochastic depth.

    Attributes:
        feature_info: Channels, stride and name of each stage.
        num_features: Channels of :meth:`forward_features`.
        head_hidden_size: Channels of the pooled vector.

    Raises:
        TypeError: Unknown argument.
        ValueError: Unknown ``arch``, or settings that do not fit together.
    """

    def __init__(
        self,
        arch: str = 'tiny',
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **backbone: Any,
    ) -> None:
        super().__init__()
        self._pooled_stages: tuple[int, ...]
        arch = preset_name(arch)
        if arch in _LAYER_SCALE:
            backbone = {'layer_scale': _LAYER_SCALE[arch], **backbone}
        self.in_chans = in_chans
        self.backbone = InternImage(
            arch,
            in_channels=in_chans,
            drop_rate=proj_drop_rate,
            drop_path_rate=drop_path_rate,
            **backbone,
        )
        self.feature_info = feature_info(self.backbone)
        channels = [info['num_chs'] for info in self.feature_info]
        self.neck: Any
        if arch in _ATTENTION_POOLED:
            self._pool_type, self._pooled_stages = 'map', (2, 3)
            self.num_features, self.head_hidden_size = 1024, 768
            self.neck = AttentionPoolingNeck(channels[2:], self.num_features)
        else:
            self._pool_type, self._pooled_stages = 'avg', (3,)
            self.num_features = self.head_hidden_size = channels[3] * 3 // 2
            self.neck = ConvPoolingNeck(channels[3], self.num_features)
        self.neck.apply(_init_linear)
        self.global_pool = self._pool_type
        self.head: Any = nn.Sequential(OrderedDict(drop=nn.Dropout(drop_rate), fc=nn.Identity()))
        self.reset_classifier(num_classes, global_pool)

    def get_classifier(self) -> nn.Module:
        """The last linear layer, an identity with ``num_classes=0``."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one; ``global_pool=None`` keeps the pooling.

        Raises:
            ValueError: A pooling that this model does not have, or none before a classifier.
        """
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in ('', self._pool_type):
            raise ValueError(f"global_pool must be {self._pool_type!r} or '', got {pool!r}")
        if num_classes and not pool:
            raise ValueError(f"global_pool='' needs num_classes=0, got num_classes={num_classes}")
        self.num_classes, self.global_pool = num_classes, pool
        if num_classes:
            like = next(self.backbone.parameters())
            fc: nn.Module = nn.Linear(
                self.head_hidden_size, num_classes, device=like.device, dtype=like.dtype
            )
        else:
            fc = nn.Identity()
        self.head.fc = fc.apply(_init_linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The map that is pooled: (N, num_features, H / 32, W / 32), for H and G H / 16, W / 16."""
        return self.neck.fuse(self.backbone.features(x, self._pooled_stages))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """That map to scores, or to the pooled vector with ``pre_logits``."""
        if self.global_pool:
            x = self.neck.pool(x)
        return self.head.drop(x) if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of the stages, and what :meth:`forward_features` returns.

        Args:
            x: Images.
            indices: The last n stages if an int, all if None, these if a sequence.
            norm: Without effect; the stages end with the norms that the release has there.
            stop_early: Run no stage after the last one asked for; then the first result is its
                feature.
            output_fmt: ``'NCHW'``.
            intermediates_only: Return the features alone.

        Raises:
            ValueError: Unknown stage or format.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        stages = chosen_stages(indices)
        if intermediates_only or stop_early:
            features = self.backbone.features(x, stages, last=stages[-1])
            return features if intermediates_only else (features[-1], features)
        every = self.backbone.features(x, {*stages, *self._pooled_stages})
        kept = dict(zip(sorted({*stages, *self._pooled_stages}), every, strict=True))
        final = self.neck.fuse([kept[i] for i in self._pooled_stages])
        return final, [kept[i] for i in stages]

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the stages after the last of ``indices``, and with ``prune_head`` all after them.

        ``prune_norm`` has no effect. Returns the stages that ``indices`` stands for.
        """
        stages = chosen_stages(indices)
        cut(self.backbone, stages[-1])
        if prune_head:
            self.reset_classifier(0, '')
            self.neck = None
        return stages

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass, to save memory."""
        for module in self.backbone.modules():
            if isinstance(module, Block):
                module.with_cp = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's layer groups, for layer-wise learning rates: one per block, or per stage."""
        stage = r'^backbone\.levels\.(\d+)'
        if coarse:
            return dict(stem=r'^backbone\.patch_embed', blocks=stage)
        end = stage + r'\.(?:norm|post_norms|downsample)'  # 99999: with the group before it
        return dict(
            stem=r'^backbone\.patch_embed',
            blocks=[(stage + r'\.blocks\.(\d+)', None), (end, (99999,))],
        )

    def no_weight_decay(self) -> set[str]:
        """Empty: timm leaves one-dimensional weights out by itself, and all others decay."""
        return set()

    def load_pretrained(self, path: str) -> None:
        """Load a checkpoint of the release or of ours; a classifier that does not fit starts anew.

        Of a detector, a segmentor or a backbone alone, the backbone is loaded. A convolution for
        three channels is adapted to ``in_chans`` (:func:`adapt_input_conv`).

        Raises:
            CheckpointError: The file cannot be read, or the backbone does not fit.
        """
        weights = read_weights(path, self.in_chans)
        load_backbone(self.backbone, weights, path)
        if not any(name.startswith(('neck.conv_head', 'neck.clip_projector')) for name in weights):
            print_log(f'{path} has no classifier; pooling and classifier start anew')
            return
        loaded = {f'backbone.{k}': v for k, v in self.backbone.state_dict().items()}
        others = {k: v for k, v in weights.items() if not k.startswith('backbone.')}
        fitting = fit_state_dict({**loaded, **others}, self, path, heads_may_differ=True)
        self.load_state_dict(fitting, strict=False)


def read_weights(path: str, in_chans: int) -> dict[str, Tensor]:
    """The weights of a file or address in our names, for images of ``in_chans`` channels."""
    weights = convert_official(extract_state_dict(read_checkpoint(path), path))
    return {
        name: adapt_input_conv(in_chans, weight) if name.endswith(_FIRST_CONV) else weight
        for name, weight in weights.items()
    }


def adapt_input_conv(in_chans: int, weight: Tensor) -> Tensor:
    """timm's rule for a convolution (O, 3, h, w) on images of ``in_chans`` channels.

    One channel gets the sum of the weights of the three. More than that are the three in turn, as
    often as needed, times ``3 / in_chans``, so that grey images give what they gave before.
    """
    if in_chans == weight.shape[1] or weight.shape[1] != 3:
        return weight
    if in_chans == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.float().repeat(1, -(-in_chans // 3), 1, 1)[:, :in_chans]
    return (repeated * (3 / in_chans)).to(weight.dtype)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
