"""InternImage (arXiv:2211.05778) as a backbone for mmdet, mmseg and mmpretrain."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from internimage_mm.checkpoint import load_backbone_checkpoint
from ops_dcnv3.modules import (
    DCNv3,
    apply_linear,
    build_activation,
    build_norm,
    has_hooks,
    is_cpu_inference,
    is_plain_linear,
)

from .presets import architecture

NUM_LEVELS = 4

_CORE_OPS = {'DCNv3': None, 'DCNv3_pytorch': 'reference'}
"""Backend of the op for each value of the official argument ``core_op``."""


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
    """Two 3x3 convolutions of stride 2: (N, 3, H, W) to (N, H/4, W/4, C)."""

    def __init__(self, channels: int, act_layer: str, norm_layer: str) -> None:
        super().__init__()
        hidden = channels // 2
        self.conv1 = nn.Conv2d(3, hidden, 3, stride=2, padding=1)
        self.norm1 = build_norm(hidden, norm_layer, input_last=False, output_last=False)
        self.act = build_activation(act_layer)
        self.conv2 = nn.Conv2d(hidden, channels, 3, stride=2, padding=1)
        self.norm2 = build_norm(channels, norm_layer, input_last=False)

    def forward(self, x: Tensor) -> Tensor:
        # The convolutions keep the layout, and the norms would have to copy the other one.
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.act(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(x))


class Downsample(nn.Module):
    """Convolution 3x3 of stride 2 that doubles the channels, channels last."""

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
        self.fc1 = nn.Linear(channels, hidden)
        self.act = build_activation(act_layer)
        self.fc2 = nn.Linear(hidden, channels)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(apply_linear(self.fc1, x, self.act))
        return self.drop(apply_linear(self.fc2, hidden))


# Bytes of hidden features that an MLP computes at once in inference on the CPU, for each thread and
# in all. Tensors of more than 32 MiB are mapped anew by glibc each time, and their page faults take
# longer than a GELU.
_MLP_PART, _LARGEST_MLP_PART = 4 * 2**20, 16 * 2**20


class Block(nn.Module):
    """DCNv3 and MLP, each on a residual branch, (N, H, W, C) to (N, H, W, C).

    Where the norm of a branch stands differs by model: before it (T), after it (S to XL, G:
    ``post_norm``), or both (H: ``res_post_norm``). With ``layer_scale`` the second norm of
    ``res_post_norm`` is not applied, though its parameters exist; both as in the official code.
    """

    def __init__(
        self,
        channels: int,
        group: int,
        *,
        backend: str | None,
        mlp_ratio: float,
        drop_rate: float,
        drop_path_rate: float,
        act_layer: str,
        norm_layer: str,
        post_norm: bool,
        res_post_norm: bool,
        layer_scale: float | None,
        offset_scale: float,
        dw_kernel_size: int | None,
        center_feature_scale: bool,
        remove_center: bool,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.post_norm = post_norm
        self.res_post_norm = res_post_norm and not post_norm and layer_scale is None
        self.with_cp = with_cp
        self.norm1 = build_norm(channels, 'LN')
        self.dcn = DCNv3(
            channels,
            kernel_size=3,
            dw_kernel_size=dw_kernel_size,
            group=group,
            offset_scale=offset_scale,
            act_layer=act_layer,
            norm_layer=norm_layer,
            center_feature_scale=center_feature_scale,
            remove_center=remove_center,
            backend=backend,
        )
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = build_norm(channels, 'LN')
        self.mlp = MLP(channels, int(channels * mlp_ratio), act_layer, drop_rate)
        if res_post_norm:
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
        mlp = (self.mlp, self.norm2, after2, self.gamma2)
        x, parts = self._mlp_parts(x)
        if not parts:
            return self._residual(x, *mlp)
        for part in parts:
            self._residual(part, *mlp, in_place=True)  # of x, which nobody else has seen
        return x

    def _mlp_parts(self, x: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Return ``x`` and its pixels, cut into (1, 1, n, C), if that pays and nobody can see it.

        So the hidden features of the MLP, which are larger by ``mlp_ratio``, never exist as a whole
        in inference on the CPU.
        """
        if not (is_cpu_inference(x) and self._mlp_is_plain()):
            return x, ()
        x = x.contiguous()
        rows = x.view(1, 1, -1, x.shape[-1])
        hidden_bytes = rows.shape[2] * self.mlp.fc1.out_features * x.element_size()
        part = min(_MLP_PART * torch.get_num_threads(), _LARGEST_MLP_PART)
        if hidden_bytes < 2 * part:
            return x, ()
        return x, rows.tensor_split(hidden_bytes // part, dim=2)

    def _mlp_is_plain(self) -> bool:
        """Whether nothing between the residual sums was hooked or replaced, or drops samples."""
        mlp, branch = self.mlp, [self.mlp, self.norm2, self.drop_path]
        if self.res_post_norm:
            branch.append(self.res_post_norm2)
        return (
            not self.training
            and type(mlp) is MLP
            and is_plain_linear(mlp.fc1)
            and is_plain_linear(mlp.fc2)
            and type(mlp.act) in (nn.GELU, nn.ReLU, nn.SiLU)
            and all(type(norm) is nn.LayerNorm for layer in branch[1:] for norm in layer.children())
            and not any(has_hooks(module) for layer in branch for module in layer.modules())
        )

    def _residual(
        self, x: Tensor, layer, norm, norm_after, gamma: Tensor | None, *, in_place: bool = False
    ) -> Tensor:
        branch = norm(layer(x)) if self.post_norm else layer(norm(x))
        if norm_after is not None:
            branch = norm_after(branch)
        if gamma is None:
            branch = self.drop_path(branch)
            return x.add_(branch) if in_place else x + branch
        # Drop path has one factor per sample, so it may act on the scale: then scale, drop path and
        # sum are one pass over memory.
        scale = self.drop_path(gamma.expand(x.shape[0], 1, 1, -1))
        return x.addcmul_(branch, scale) if in_place else torch.addcmul(x, branch, scale)


# PyTorch transposes a matrix in blocks, on one thread, and copies tensors of more dimensions number
# by number, on all threads, of which two take three times as long as the one.
_MATRIX_THREADS = 4


def _contiguous_channels_first(x: Tensor) -> Tensor:
    """Copy (N, H, W, C) to (N, C, H, W)."""
    if not is_cpu_inference(x) or torch.get_num_threads() > _MATRIX_THREADS:
        return x.permute(0, 3, 1, 2).contiguous()
    batch, height, width, channels = x.shape
    output = x.new_empty(batch, channels, height * width)
    for matrix, image in zip(output, x, strict=True):
        matrix.copy_(image.flatten(0, 1).t())
    return output.view(batch, channels, height, width)


class Level(nn.Module):
    """Blocks of one resolution with the norms between and after them, and the downsampling."""

    def __init__(
        self,
        channels: int,
        group: int,
        drop_path_rates: Sequence[float],
        *,
        end_norm: bool,
        post_norm_block_ids: Sequence[int],
        downsample: bool,
        norm_layer: str,
        **block_settings,
    ) -> None:
        super().__init__()
        self.post_norm_block_ids = list(post_norm_block_ids)
        self.blocks = nn.ModuleList(
            Block(channels, group, drop_path_rate=rate, norm_layer=norm_layer, **block_settings)
            for rate in drop_path_rates
        )
        self.norm = build_norm(channels, 'LN') if end_norm else None
        if post_norm_block_ids:
            self.post_norms = nn.ModuleList(build_norm(channels, 'LN') for _ in post_norm_block_ids)
        self.downsample = Downsample(channels, norm_layer) if downsample else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input of the next level and the feature of this one, both (N, H, W, C)."""
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.post_norm_block_ids:
                x = self.post_norms[self.post_norm_block_ids.index(index)](x)
        if self.norm is not None:
            x = self.norm(x)
        return (x if self.downsample is None else self.downsample(x)), x


@MODELS.register_module()
class InternImage(BaseModule):
    """InternImage backbone: (N, 3, H, W) to a tuple of (N, C * 2**i, H / 2**(i+2), W / 2**(i+2)).

    Takes the arguments of the official detection and segmentation backbone under their names, so
    an official ``backbone=dict(...)`` can be pasted in, and ``arch`` as a preset for most of them.
    State-dict keys are the official ones. Any other keyword than these raises.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, ``'large'``, ``'xlarge'``, ``'huge'``,
            ``'giant'`` or t, s, b, l, xl, h, g. Sets channels, depths, groups, layer_scale,
            offset_scale, post_norm and, for huge and giant, dw_kernel_size, res_post_norm,
            level2_post_norm(_block_ids) and center_feature_scale. Single arguments override it.
        init_cfg: ``dict(type='Pretrained', checkpoint=PATH_OR_URL)`` reads official files of every
            layout and raises when weights of the backbone are missing.
        core_op (str): ``'DCNv3'`` (default) takes the fastest backend of the op,
            ``'DCNv3_pytorch'`` the plain PyTorch one.
        channels (int): Channels C of the first level, doubled at each further one. Default 64.
        depths (list[int]): Blocks of the four levels. Default [3, 4, 18, 5].
        groups (list[int]): Groups of the op in the four levels. Default [3, 6, 12, 24].
        mlp_ratio (float): Hidden over outer channels of the MLP. Default 4.
        drop_rate (float): Dropout after the stem and in the MLP. Default 0.
        drop_path_rate (float): Stochastic depth. Default 0.2.
        drop_path_type (str): ``'linear'`` (default), from 0 in the first block to the rate in the
            last one, or ``'uniform'``.
        act_layer (str): ``'GELU'`` (default), ``'ReLU'`` or ``'SiLU'``.
        norm_layer (str): ``'LN'`` (default) or ``'BN'`` in stem, downsampling and depth-wise
            branch; all other norms are layer norms.
        layer_scale (float | None): Initial factor of the residual branches. Default None: none.
        offset_scale (float): Factor on sampling grid and offsets. Default 1.0.
        post_norm (bool): Norm after instead of before the layer of a branch. Default False.
        res_post_norm (bool): Norm before and after it. Default False.
        dw_kernel_size (int | None): Kernel of the depth-wise branch. Default None: 3.
        level2_post_norm (bool): Norms on the residual stream of the third level. Default False.
        level2_post_norm_block_ids (list[int] | None): After which blocks they stand.
        center_feature_scale (bool): Mix the op's output with its input. Default False.
        remove_center (bool): Sample without the central point. Default False.
        use_dcn_v4_op (bool): Accepted; selects another kernel for the same function in the official
            code and has no effect here.
        with_cp (bool): Recompute blocks in the backward pass to save memory. Default False.
        out_indices (int | Sequence[int]): Levels to return, in level order; negative ones count
            from the end. Default (0, 1, 2, 3).
        frozen_stages (int): Number of levels kept frozen, -1 or 0 for none (default -1). The stem
            is never frozen, as in the official code.
        norm_eval (bool): Keep batch norms in evaluation mode. Default False.

    Raises:
        TypeError: Unknown argument.
        ValueError: Unknown ``arch`` or settings that do not fit one another.
    """

    DEFAULTS = dict(
        core_op='DCNv3',
        channels=64,
        depths=[3, 4, 18, 5],
        groups=[3, 6, 12, 24],
        mlp_ratio=4.0,
        drop_rate=0.0,
        drop_path_rate=0.2,
        drop_path_type='linear',
        act_layer='GELU',
        norm_layer='LN',
        layer_scale=None,
        offset_scale=1.0,
        post_norm=False,
        res_post_norm=False,
        dw_kernel_size=None,
        level2_post_norm=False,
        level2_post_norm_block_ids=None,
        center_feature_scale=False,
        remove_center=False,
        use_dcn_v4_op=False,
        with_cp=False,
        out_indices=(0, 1, 2, 3),
        frozen_stages=-1,
        norm_eval=False,
    )

    def __init__(
        self, arch: str | None = None, *, init_cfg: dict | None = None, **settings
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        unknown = sorted(set(settings) - set(self.DEFAULTS))
        if unknown:
            raise TypeError(
                f'InternImage got unknown argument(s) {", ".join(unknown)}; '
                f'known are arch, init_cfg, {", ".join(self.DEFAULTS)}'
            )
        preset = architecture(arch) if arch is not None else {}
        options = {**self.DEFAULTS, **preset, **settings}
        _check_options(options)

        self.channels: int = options['channels']
        self.depths: list[int] = list(options['depths'])
        self.groups: list[int] = list(options['groups'])
        self.out_indices = _level_indices(options['out_indices'])
        self.frozen_stages: int = options['frozen_stages']
        self.norm_eval: bool = options['norm_eval']
        post_norm_ids = options['level2_post_norm_block_ids'] or ()

        self.patch_embed = Stem(self.channels, options['act_layer'], options['norm_layer'])
        self.pos_drop = nn.Dropout(options['drop_rate'])
        rates = _drop_path_rates(
            options['drop_path_rate'], options['drop_path_type'], sum(self.depths)
        )
        block_settings = {
            key: options[key]
            for key in (
                'mlp_ratio',
                'drop_rate',
                'act_layer',
                'post_norm',
                'res_post_norm',
                'layer_scale',
                'offset_scale',
                'dw_kernel_size',
                'center_feature_scale',
                'remove_center',
                'with_cp',
            )
        }
        self.levels = nn.ModuleList()
        for i, depth in enumerate(self.depths):
            first = sum(self.depths[:i])
            self.levels.append(
                Level(
                    self.channels * 2**i,
                    self.groups[i],
                    rates[first : first + depth],
                    end_norm=not options['post_norm'] or options['center_feature_scale'],
                    post_norm_block_ids=(
                        post_norm_ids if options['level2_post_norm'] and i == 2 else ()
                    ),
                    downsample=i < NUM_LEVELS - 1,
                    norm_layer=options['norm_layer'],
                    backend=_CORE_OPS[options['core_op']],
                    **block_settings,
                )
            )
        self.apply(_init_module)
        self._freeze()

    @property
    def out_channels(self) -> list[int]:
        """Channels of the returned features."""
        return [self.channels * 2**i for i in self.out_indices]

    def init_weights(self) -> None:
        """Load ``init_cfg['checkpoint']`` if there is one.

        Without a checkpoint the weights stay as the constructor made them: linear layers truncated
        normal (std 0.02), offsets and masks zero. (The official code overwrites that zero start.)

        Raises:
            ValueError: The checkpoint does not hold every weight of this backbone.
        """
        if isinstance(self.init_cfg, dict) and 'checkpoint' in self.init_cfg:
            load_backbone_checkpoint(
                self, self.init_cfg['checkpoint'], prefix=self.init_cfg.get('prefix')
            )
            self._is_init = True
        else:
            super().init_weights()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images (N, 3, H, W) to one NCHW feature for each of ``out_indices``."""
        x = self.pos_drop(self.patch_embed(x))
        features = []
        for i, level in enumerate(self.levels):
            x, feature = level(x)
            if i in self.out_indices:
                features.append(_contiguous_channels_first(feature))
        return tuple(features)

    def train(self, mode: bool = True) -> InternImage:
        super().train(mode)
        self._freeze()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
                    module.eval()
        return self

    def _freeze(self) -> None:
        for level in self.levels[: max(self.frozen_stages, 0)]:
            level.eval()
            level.requires_grad_(False)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Layer of a parameter for mmpretrain's layer-decay constructor.

        The rule is that of the official classification optimizer: blocks count from the first to
        the last one, the stem belongs to the first block, downsampling and end norm of a level to
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
            level = int(parts[1])
            if parts[2] == 'blocks':
                return sum(self.depths[:level]) + int(parts[3]), num_layers
            if parts[2] in ('downsample', 'norm') and level < NUM_LEVELS - 1:
                return sum(self.depths[: level + 1]), num_layers
        return num_layers - 1, num_layers


def _check_options(options: dict) -> None:
    """Raise ValueError for values that no InternImage can have."""
    channels, depths, groups = options['channels'], options['depths'], options['groups']
    for name in ('depths', 'groups'):
        if len(options[name]) != NUM_LEVELS:
            raise ValueError(f'{name} must have {NUM_LEVELS} entries, got {options[name]}')
    if min(depths) < 1:
        raise ValueError(f'depths must be positive, got {depths}')
    if channels < 2 or channels % 2:
        raise ValueError(f'channels must be a positive even number, got {channels}')
    for i, group in enumerate(groups):
        if group < 1 or (channels * 2**i) % group:
            raise ValueError(
                f'groups must divide the channels of their level: level {i} has '
                f'{channels * 2**i} channels and {group} groups (channels={channels}, '
                f'groups={list(groups)})'
            )
    if options['core_op'] not in _CORE_OPS:
        raise ValueError(
            f'core_op must be one of {", ".join(_CORE_OPS)}, got {options["core_op"]!r}'
        )
    if options['drop_path_type'] not in ('linear', 'uniform'):
        raise ValueError(
            f'drop_path_type must be linear or uniform, got {options["drop_path_type"]!r}'
        )
    if not 0 <= options['drop_path_rate'] < 1:  # at 1, DropPath divides by zero
        raise ValueError(f'drop_path_rate must be in [0, 1), got {options["drop_path_rate"]}')
    if not -1 <= options['frozen_stages'] <= NUM_LEVELS:
        raise ValueError(
            f'frozen_stages must be between -1 and {NUM_LEVELS}, got {options["frozen_stages"]}'
        )
    if options['level2_post_norm']:
        ids = options['level2_post_norm_block_ids']
        if not ids or len(set(ids)) != len(ids) or not all(0 <= i < depths[2] for i in ids):
            raise ValueError(
                'level2_post_norm needs level2_post_norm_block_ids, different block indices of '
                f'the {depths[2]} blocks of level 2, got {ids}'
            )


def _level_indices(out_indices: int | Sequence[int]) -> tuple[int, ...]:
    indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    levels = sorted(i + NUM_LEVELS if i < 0 else i for i in indices)
    if not levels or len(set(levels)) != len(levels) or levels[0] < 0 or levels[-1] >= NUM_LEVELS:
        raise ValueError(
            f'out_indices must be different levels from 0 to {NUM_LEVELS - 1}, got {out_indices}'
        )
    return tuple(levels)


def _drop_path_rates(rate: float, kind: str, total: int) -> list[float]:
    if kind == 'uniform':
        return [rate] * total
    return [rate * i / max(total - 1, 1) for i in range(total)]


def _init_module(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, DCNv3):  # visited after its linear layers
        module.reset_parameters()
