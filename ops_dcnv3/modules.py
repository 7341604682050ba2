"""The DCNv3 layer of InternImage, and small layers that it shares with the backbone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import fast_cpu
from .functional import dcnv3
from .geometry import IntPair, num_points, pair

IntOrPair = int | IntPair

LAYER_NORM_EPS = 1e-6
"""Epsilon of every layer norm of InternImage (PyTorch's default is 1e-5)."""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    'GELU': nn.GELU,  # exact, by erf
    'ReLU': nn.ReLU,
    'SiLU': nn.SiLU,
}
"""Choices for ``act_layer``, in the layer and the backbone."""

NORMS: dict[str, tuple[Callable[[int], nn.Module], bool]] = {
    'LN': (partial(nn.LayerNorm, eps=LAYER_NORM_EPS), True),
    'BN': (nn.BatchNorm2d, False),
}
"""Choices for ``norm_layer``: how to build it, and whether it takes channels last."""


class Permute(nn.Module):
    """``tensor.permute(dims)`` as a layer."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)

    def extra_repr(self) -> str:
        return ', '.join(map(str, self.dims))


def to_channels_last() -> Permute:
    return Permute(0, 2, 3, 1)


def to_channels_first() -> Permute:
    return Permute(0, 3, 1, 2)


def build_activation(name: str) -> nn.Module:
    """Build the activation ``name`` of :data:`ACTIVATIONS`; raise ValueError if there is none."""
    if name not in ACTIVATIONS:
        raise ValueError(f'act_layer must be one of {", ".join(ACTIVATIONS)}, got {name!r}')
    return ACTIVATIONS[name]()


def build_norm(
    channels: int, name: str, *, input_last: bool = True, output_last: bool = True
) -> nn.Sequential:
    """Return a norm over channels that also changes the layout, as a Sequential.

    The position of the norm in the Sequential is part of the official state-dict keys
    (``norm1.0`` or ``norm1.1``): a layout change that the norm needs comes before it.

    Args:
        channels: Number of channels.
        name: A key of :data:`NORMS`.
        input_last: Whether the input is channels last, (N, H, W, C), or first, (N, C, H, W).
        output_last: The same for the output.

    Raises:
        ValueError: Unknown ``name``.
    """
    if name not in NORMS:
        raise ValueError(f'norm_layer must be one of {", ".join(NORMS)}, got {name!r}')
    build, norm_last = NORMS[name]
    layers: list[nn.Module] = []
    if input_last != norm_last:
        layers.append(to_channels_last() if norm_last else to_channels_first())
    layers.append(build(channels))
    if output_last != norm_last:
        layers.append(to_channels_last() if output_last else to_channels_first())
    return nn.Sequential(*layers)


def _either(**argument: Any) -> tuple[str, Any]:
    """Of an argument with two names, return the one that was used and its value."""
    (name, value), (alias, other) = argument.items()
    if value is not None and other is not None and value != other:
        raise ValueError(f'{name} and {alias} are one argument, got {value} and {other}')
    return (alias, other) if value is None else (name, value)


class DCNv3(nn.Module):
    """Deformable convolution v3 with its projections (InternImage, section 3.1), channels last.

    Argument and parameter names are those of the official layer, so its checkpoints load as they
    are. ``(N, H, W, C)`` becomes ``(N, Ho, Wo, C)``; stride 1 keeps the size.

    Args:
        channels: Channels C of input and output.
        kernel_size: Size of the sampling grid, an int or an (h, w) pair, like all sizes here.
        dw_kernel_size: Size of the depth-wise convolution that predicts offsets and masks. Must
            be odd; defaults to ``kernel_size``.
        stride: Stride of the sampling grid and of the depth-wise convolution.
        pad: Padding of the sampling grid. It must keep the size at stride 1, as the default
            ``dilation * (kernel_size - 1) / 2`` does.
        dilation: Spacing of the sampling grid.
        group: Number of groups; must divide ``channels``. Default 4.
        offset_scale: Factor on grid and offsets, 2.0 for InternImage-L and XL.
        act_layer: A key of :data:`ACTIVATIONS`.
        norm_layer: A key of :data:`NORMS`, for the depth-wise branch.
        center_feature_scale: Mix each group with the projected input by a learned weight
            (InternImage-H and G).
        remove_center: Sample without the central point.
        use_dcn_v4_op: Accepted for official configs, where it selects another kernel for the same
            function; has no effect.
        backend: Backend of the op, see :func:`ops_dcnv3.dcnv3`.
        padding: The same as ``pad``, under the name that PyTorch and the op use.
        groups: The same as ``group``.

    Raises:
        TypeError: A size is neither an int nor a pair of ints.
        ValueError: A setting is invalid, or does not fit another one.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: IntOrPair = 3,
        dw_kernel_size: IntOrPair | None = None,
        stride: IntOrPair = 1,
        pad: IntOrPair | None = None,
        dilation: IntOrPair = 1,
        group: int | None = None,
        offset_scale: float = 1.0,
        act_layer: str = 'GELU',
        norm_layer: str = 'LN',
        center_feature_scale: bool = False,
        remove_center: bool = False,
        use_dcn_v4_op: bool = False,
        backend: str | None = None,
        *,
        padding: IntOrPair | None = None,
        groups: int | None = None,
    ) -> None:
        super().__init__()
        pad_name, pad = _either(pad=pad, padding=padding)
        group_name, group = _either(group=group, groups=groups)
        group = 4 if group is None else group
        if group < 1 or channels % group:
            raise ValueError(
                f'{group_name} must divide channels, got {group_name}={group}, channels={channels}'
            )
        self.channels = channels
        self.kernel_size = pair('kernel_size', kernel_size, minimum=1)
        self.stride = pair('stride', stride, minimum=1)
        self.dilation = pair('dilation', dilation, minimum=1)
        dw_kernel_size = kernel_size if dw_kernel_size is None else dw_kernel_size
        dw_kernel = pair('dw_kernel_size', dw_kernel_size, minimum=1)
        if dw_kernel[0] % 2 == 0 or dw_kernel[1] % 2 == 0:
            raise ValueError(f'dw_kernel_size must be odd, got {dw_kernel_size}')
        if remove_center and (self.kernel_size[0] % 2 == 0 or self.kernel_size[1] % 2 == 0):
            raise ValueError(f'remove_center needs an odd kernel_size, got {kernel_size}')
        # Twice the padding that keeps the size at stride 1.
        height, width = (d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))
        if height % 2 or width % 2:
            raise ValueError(
                'no padding keeps the size at stride 1: dilation * (kernel_size - 1) must be even, '
                f'got dilation={dilation}, kernel_size={kernel_size}'
            )
        self.pad = (height // 2, width // 2)
        if pad is not None and pair(pad_name, pad, minimum=0) != self.pad:
            raise ValueError(
                f'{pad_name} must be {self.pad}, which keeps the size at stride 1, for '
                f'kernel_size={kernel_size} and dilation={dilation}, got {pad}; leave it out'
            )
        if center_feature_scale and self.stride != (1, 1):
            raise ValueError(f'center_feature_scale needs stride 1, got {stride}')
        self.group = group
        self.offset_scale = offset_scale
        self.center_feature_scale = center_feature_scale
        self.remove_center = remove_center
        self.backend = backend

        points = num_points(self.kernel_size, remove_center)
        self.dw_conv = nn.Sequential(
            nn.Conv2d(
                channels,
                channels,
                dw_kernel,
                stride=self.stride,
                padding=(dw_kernel[0] // 2, dw_kernel[1] // 2),
                groups=channels,
            ),
            build_norm(channels, norm_layer, input_last=False),
            build_activation(act_layer),
        )
        self.offset = nn.Linear(channels, group * points * 2)
        self.mask = nn.Linear(channels, group * points)
        self.input_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        if center_feature_scale:
            self.center_feature_scale_proj_weight = nn.Parameter(torch.empty(group, channels))
            self.center_feature_scale_proj_bias = nn.Parameter(torch.empty(group))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with a regular grid and equal weights: offset and mask 0, projections Xavier."""
        zeros = [*self.offset.parameters(), *self.mask.parameters()]
        zeros += [self.input_proj.bias, self.output_proj.bias]
        if self.center_feature_scale:
            zeros += [self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias]
        for parameter in zeros:
            nn.init.zeros_(parameter)
        nn.init.xavier_uniform_(self.input_proj.weight)
        nn.init.xavier_uniform_(self.output_proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, H, W, C)`` to ``(N, Ho, Wo, C)``.

        Raises:
            TypeError: ``x`` is not a floating-point tensor.
            ValueError: Its shape is not ``(N, H, W, channels)``.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f'expected a floating-point tensor, got {found}')
        if x.dim() != 4 or x.shape[-1] != self.channels:
            raise ValueError(
                f'expected an input of shape (N, H, W, {self.channels}), got {tuple(x.shape)}'
            )
        query = self.dw_conv(x.permute(0, 3, 1, 2))
        offset, mask = fast_cpu.linear(self.offset, query), fast_cpu.linear(self.mask, query)
        value = fast_cpu.linear(self.input_proj, x)
        output = dcnv3(
            value,
            offset,
            mask,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.pad,
            dilation=self.dilation,
            groups=self.group,
            offset_scale=self.offset_scale,
            remove_center=self.remove_center,
            mask_is_logits=True,
            backend=self.backend,
        )
        if self.center_feature_scale:
            scale = nn.functional.linear(
                query, self.center_feature_scale_proj_weight, self.center_feature_scale_proj_bias
            ).sigmoid()
            scale = scale.repeat_interleave(self.channels // self.group, dim=-1)
            output = output * (1 - scale) + value * scale
        return fast_cpu.linear(self.output_proj, output)

    def extra_repr(self) -> str:
        return (
            f'channels={self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, '
            f'pad={self.pad}, dilation={self.dilation}, group={self.group}, '
            f'offset_scale={self.offset_scale}, remove_center={self.remove_center}'
        )
