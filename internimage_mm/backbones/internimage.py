"""InternImage (arXiv:2211.05778) as a backbone for mmdet, mmseg and mmpretrain."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from internimage_mm.checkpoint import (
    initialize_strictly,
    load_backbone,
    named_checkpoints,
    watch_models_with,
)
from internimage_mm.engine import MODELS, BaseModule
from ops_dcnv3 import fast_cpu
from ops_dcnv3.modules import DCNv3, build_activation, build_norm

from .settings import CORE_OPS, NUM_STAGES, Settings, UnlessArch, integers, unless_arch


class DropPath(nn.Module):
    """Stochastic depth per sample (arXiv:1603.09382): zero or ``x / (1 - rate)`` in training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1 - self.rate
        shape = (x.shape[0],) + (1,) * (x.dim() - 1)
        return x * (x.new_empty(shape).bernoulli_(keep) / keep)

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'


class Stem(nn.Module):
    """Two 3x3 convolutions of stride 2: (N, in_channels, H, W) to (N, H/4, W/4, C)."""

    def __init__(self, in_channels: int, channels: int, act_layer: str, norm_layer: str) -> None:
        super().__init__()
        hidden = channels // 2
        self.conv1 = nn.Conv2d(in_channels, hidden, 3, stride=2, padding=1)
        self.norm1 = build_norm(hidden, norm_layer, input_last=False, output_last=False)
        self.act = build_activation(act_layer)
        self.conv2 = nn.Conv2d(hidden, channels, 3, stride=2, padding=1)
        self.norm2 = build_norm(channels, norm_layer, input_last=False)

    def forward(self, x: Tensor) -> Tensor:
        # The convolutions keep this layout; the norms would have to copy channels-first features.
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.act(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(x))


class Downsample(nn.Module):
    """3x3 convolution of stride 2 that doubles the channels, channels last."""

    def __init__(self, channels: int, norm_layer: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.norm = build_norm(2 * channels, norm_layer, input_last=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2)))


class MLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, channels: int, hidden: int, act_layer: str, drop_rate: float) -> None:
        super().__init__()
        self.hidden_channels = hidden
        self.fc1 = nn.Linear(channels, hidden)
        self.act = build_activation(act_layer)
        self.fc2 = nn.Linear(hidden, channels)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        return fast_cpu.in_parts(self._forward, x, self.hidden_channels, self.children())

    def _forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(fast_cpu.linear(self.fc1, x, self.act))
        return self.drop(fast_cpu.linear(self.fc2, hidden))


class Block(nn.Module):
    """DCNv3 and MLP, each on a residual branch, (N, H, W, C) to (N, H, W, C).

    The place of a branch's norm depends on the model: before the layer (T), after it (S to XL, G:
    ``post_norm``), or both (H: ``res_post_norm``). With ``layer_scale`` the second norm of
    ``res_post_norm`` is not applied, though its parameters exist; both as in the official code.
    """

    def __init__(self, settings: Settings, stage: int, drop_path_rate: float) -> None:
        super().__init__()
        channels, layer_scale = settings.stage_channels(stage), settings.layer_scale
        self.post_norm = settings.post_norm
        self.res_post_norm = (
            settings.res_post_norm and not settings.post_norm and layer_scale is None
        )
        self.with_cp = settings.with_cp
        self.norm1 = build_norm(channels, 'LN')
        self.dcn = DCNv3(
            channels,
            kernel_size=3,
            dw_kernel_size=settings.dw_kernel_size,
            group=settings.groups[stage],
            offset_scale=settings.offset_scale,
            act_layer=settings.act_layer,
            norm_layer=settings.norm_layer,
            center_feature_scale=settings.center_feature_scale,
            remove_center=settings.remove_center,
            backend=CORE_OPS[settings.core_op],
        )
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = build_norm(channels, 'LN')
        hidden = int(channels * settings.mlp_ratio)
        self.mlp = MLP(channels, hidden, settings.act_layer, settings.drop_rate)
        if settings.res_post_norm:
            self.res_post_norm1 = build_norm(channels, 'LN')
            self.res_post_norm2 = build_norm(channels, 'LN')
        if layer_scale is None:
            self.gamma1 = self.gamma2 = None
        else:
            self.gamma1 = nn.Parameter(torch.full((channels,), float(layer_scale)))
            self.gamma2 = nn.Parameter(torch.full((channels,), float(layer_scale)))

    def forward(self, x: Tensor) -> Tensor:
        if self.with_cp and x.requires_grad:
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        after1 = self.res_post_norm1 if self.res_post_norm else None
        after2 = self.res_post_norm2 if self.res_post_norm else None
        x = self._residual(x, self.dcn, self.norm1, after1, self.gamma1)
        return self._residual(x, self.mlp, self.norm2, after2, self.gamma2)

    def _residual(self, x: Tensor, layer, norm, norm_after, gamma: Tensor | None) -> Tensor:
        branch = norm(layer(x)) if self.post_norm else layer(norm(x))
        if norm_after is not None:
            branch = norm_after(branch)
        if gamma is None:
            return x + self.drop_path(branch)
        # x + drop_path(gamma * branch) in one pass: drop path has one factor per sample, so it may
        # act on the scale.
        return torch.addcmul(x, branch, self.drop_path(gamma.expand(x.shape[0], 1, 1, -1)))


class Stage(nn.Module):
    """The blocks of one resolution, the norms between and after them, and the downsampling."""

    def __init__(self, settings: Settings, stage: int) -> None:
        super().__init__()
        channels = settings.stage_channels(stage)
        ids = (
            settings.level2_post_norm_block_ids if settings.level2_post_norm and stage == 2 else ()
        )
        self.post_norm_block_ids = list(ids or ())
        self.blocks = nn.ModuleList(
            Block(settings, stage, rate) for rate in settings.drop_path_rates(stage)
        )
        has_end_norm = not settings.post_norm or settings.center_feature_scale
        self.norm = build_norm(channels, 'LN') if has_end_norm else None
        if self.post_norm_block_ids:
            self.post_norms = nn.ModuleList(
                build_norm(channels, 'LN') for _ in self.post_norm_block_ids
            )
        last = stage == NUM_STAGES - 1
        self.downsample = None if last else Downsample(channels, settings.norm_layer)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input of the next stage and the feature of this one, both (N, H, W, C)."""
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.post_norm_block_ids:
                x = self.post_norms[self.post_norm_block_ids.index(index)](x)
        if self.norm is not None:
            x = self.norm(x)
        return (x if self.downsample is None else self.downsample(x)), x


@MODELS.register_module()
class InternImage(BaseModule):
    """InternImage backbone.

    Takes images (N, 3, H, W), returns a tuple with ``(N, C * 2**i, H / 2**(i+2), W / 2**(i+2))``
    for each stage i of ``out_indices``.

    Takes the arguments of the official detection and segmentation backbone under the same names,
    so an official ``backbone=dict(...)`` can be pasted in. ``arch`` is a preset for most of them.
    State-dict keys are the official ones. Any other argument raises a TypeError.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, ``'large'``, ``'xlarge'``, ``'huge'``,
            ``'giant'`` or t, s, b, l, xl, h, g. Replaces the defaults that are written as
            ``unless_arch(...)`` with those of the released size; other arguments override it.
        core_op: ``'DCNv3'`` uses the fastest backend of the op, ``'DCNv3_pytorch'`` the plain
            PyTorch one.
        in_channels: Channels of the images.
        channels: Channels C of the first stage; each further stage doubles them.
        depths: Number of blocks in the four stages.
        groups: Groups of the op in the four stages.
        mlp_ratio: Ratio of hidden to outer channels in the MLP.
        drop_rate: Dropout after the stem and in the MLP.
        drop_path_rate: Stochastic depth.
        drop_path_type: ``'linear'``, from 0 in the first block to the rate in the last one, or
            ``'uniform'``.
        act_layer: A key of ``ops_dcnv3.modules.ACTIVATIONS``; the official one is the exact GELU.
        norm_layer: ``'LN'`` or ``'BN'`` in stem, downsampling and depth-wise branch; all other
            norms are layer norms.
        layer_scale: Initial value of a learned factor on the residual branches; None: no factor.
        offset_scale: Factor on sampling grid and offsets.
        post_norm: Norm after the layer of a residual branch instead of before it.
        res_post_norm: Norms before and after it.
        dw_kernel_size: Kernel size of the depth-wise branch; None: 3.
        level2_post_norm: Additional norms on the residual stream of the third stage.
        level2_post_norm_block_ids: The blocks that they follow.
        center_feature_scale: Mix the op's output with its input.
        remove_center: Sample without the central point.
        use_dcn_v4_op: Accepted; in the official code it selects another kernel for the same
            function, here it has no effect.
        with_cp: Recompute blocks in the backward pass to save memory.
        out_indices: Stages to return, always in ascending order; negative ones count from the end.
        frozen_stages: -1: nothing is frozen; 0: the stem; n: the stem and the first n stages, as in
            mmdet. (The official code never freezes the stem.)
        norm_eval: Keep batch norms in evaluation mode.
        init_cfg: ``dict(type='Pretrained', checkpoint=PATH_OR_URL)`` reads official files of every
            layout and raises when weights of the backbone are missing.
        pretrained: That checkpoint as a string, as in configs before mmengine.

    Raises:
        TypeError: Unknown argument, ``pretrained`` is not a string, or a number is not an int.
        ValueError: Unknown ``arch``, settings that do not fit together, or both ``init_cfg`` and
            ``pretrained``.
    """

    def __init__(
        self,
        arch: str | None = None,
        *,
        core_op: str = 'DCNv3',
        in_channels: int = 3,
        channels: int = unless_arch(64),
        depths: Sequence[int] = unless_arch([3, 4, 18, 5]),
        groups: Sequence[int] = unless_arch([3, 6, 12, 24]),
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        drop_path_type: str = 'linear',
        act_layer: str = unless_arch('GELU'),
        norm_layer: str = unless_arch('LN'),
        layer_scale: float | None = unless_arch(None),
        offset_scale: float = unless_arch(1.0),
        post_norm: bool = unless_arch(False),
        res_post_norm: bool = unless_arch(False),
        dw_kernel_size: int | None = unless_arch(None),
        level2_post_norm: bool = unless_arch(False),
        level2_post_norm_block_ids: Sequence[int] | None = unless_arch(None),
        center_feature_scale: bool = unless_arch(False),
        remove_center: bool = False,
        use_dcn_v4_op: bool = False,
        with_cp: bool = False,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        init_cfg: dict | list[dict] | None = None,
        pretrained: str | None = None,
    ) -> None:
        super().__init__(init_cfg=pretrained_init_cfg(init_cfg, pretrained))
        watch_models_with(self)
        settings = Settings.with_arch(
            arch,
            core_op=core_op,
            channels=channels,
            depths=depths,
            groups=groups,
            mlp_ratio=mlp_ratio,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            drop_path_type=drop_path_type,
            act_layer=act_layer,
            norm_layer=norm_layer,
            layer_scale=layer_scale,
            offset_scale=offset_scale,
            post_norm=post_norm,
            res_post_norm=res_post_norm,
            dw_kernel_size=dw_kernel_size,
            level2_post_norm=level2_post_norm,
            level2_post_norm_block_ids=level2_post_norm_block_ids,
            center_feature_scale=center_feature_scale,
            remove_center=remove_center,
            with_cp=with_cp,
        )
        if not -1 <= frozen_stages <= NUM_STAGES:
            raise ValueError(
                f'frozen_stages must be between -1 and {NUM_STAGES}, got {frozen_stages}'
            )
        self.channels = settings.channels
        self.depths = list(settings.depths)
        self.groups = list(settings.groups)
        self.out_indices = _stage_indices(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval

        self.patch_embed = Stem(
            in_channels, settings.channels, settings.act_layer, settings.norm_layer
        )
        self.pos_drop = nn.Dropout(drop_rate)
        self.levels = nn.ModuleList(Stage(settings, i) for i in range(NUM_STAGES))
        self.apply(_init_module)
        self._freeze()

    DEFAULTS = {
        name: parameter.default.value
        if isinstance(parameter.default, UnlessArch)
        else parameter.default
        for name, parameter in inspect.signature(__init__).parameters.items()
        if name not in ('self', 'arch', 'init_cfg', 'pretrained')
    }
    """Settings of a backbone that is built without arguments."""

    @property
    def out_channels(self) -> list[int]:
        """Channels of the returned features."""
        return [self.channels * 2**i for i in self.out_indices]

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says; without it the constructor's weights stay.

        These are truncated normal (std 0.02) in linear layers, and zero in the offset and mask
        layers. (The official code overwrites these zeros.)

        Raises:
            CheckpointError: A checkpoint does not hold every weight of this backbone.
        """
        if self.is_init or not named_checkpoints(self.init_cfg):
            super().init_weights()
        else:
            initialize_strictly(self, partial(load_backbone, self))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images (N, in_channels, H, W) to one NCHW feature for each of ``out_indices``."""
        return tuple(self.features(x, self.out_indices))

    def features(
        self, x: Tensor, stages: Collection[int], last: int = NUM_STAGES - 1
    ) -> list[Tensor]:
        """The NCHW features of ``stages``, in ascending order; no stage after ``last`` is run."""
        x = self.pos_drop(self.patch_embed(x))
        features = []
        for i, stage in enumerate(self.levels):
            if i > last:
                break
            x, feature = stage(x)
            if i in stages:
                features.append(fast_cpu.channels_first(feature))
        return features

    def train(self, mode: bool = True) -> InternImage:
        super().train(mode)
        self._freeze()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
                    module.eval()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        for module in (self.patch_embed, *self.levels[: self.frozen_stages]):
            if module is not None:
                module.eval()
                module.requires_grad_(False)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Layer of a parameter for mmpretrain's layer-decay constructor.

        The rule is that of the official classification optimizer: blocks count from the first to
        the last one, the stem belongs to the first block, downsampling and end norm of a stage to
        the first block of the next one, and everything else to the last block.

        Returns:
            The layer, from 0, and the number of layers.
        """
        num_layers = sum(self.depths)
        parts = param_name.removeprefix(prefix).split('.')
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        if parts[0] == 'patch_embed':
            return 0, num_layers
        if parts[0] == 'levels':
            stage = int(parts[1])
            if parts[2] == 'blocks':
                return sum(self.depths[:stage]) + int(parts[3]), num_layers
            if parts[2] in ('downsample', 'norm') and stage < NUM_STAGES - 1:
                return sum(self.depths[: stage + 1]), num_layers
        return num_layers - 1, num_layers


def pretrained_init_cfg(
    init_cfg: dict | list[dict] | None, pretrained: str | None
) -> dict | list[dict] | None:
    """Return ``init_cfg``, or the one that the older argument ``pretrained`` stands for.

    Raises:
        TypeError: ``pretrained`` is neither a string nor None.
        ValueError: Both are given.
    """
    if pretrained is None:
        return init_cfg
    if not isinstance(pretrained, str):
        raise TypeError(f'pretrained must be a path or URL or None, got {pretrained!r}')
    if init_cfg is not None:
        raise ValueError(
            f'give init_cfg or pretrained, not both; got init_cfg={init_cfg} and '
            f'pretrained={pretrained!r}'
        )
    return dict(type='Pretrained', checkpoint=pretrained)


def _stage_indices(out_indices: int | Sequence[int]) -> tuple[int, ...]:
    indices = [out_indices] if isinstance(out_indices, int) else out_indices
    stages = sorted(i + NUM_STAGES if i < 0 else i for i in integers('out_indices', indices))
    if not stages or len(set(stages)) != len(stages) or stages[0] < 0 or stages[-1] >= NUM_STAGES:
        raise ValueError(
            f'out_indices must be different stages from 0 to {NUM_STAGES - 1}, got {out_indices}'
        )
    return tuple(stages)


def _init_module(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, DCNv3):  # visited after its linear layers
        module.reset_parameters()
