"""The DCNv3 layer of InternImage and the small layers that it shares with the backbone."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .functional import dcnv3

LAYER_NORM_EPS = 1e-6
"""Epsilon of every layer norm of InternImage (PyTorch's default is 1e-5)."""

ACTIVATIONS = {'GELU': nn.GELU, 'ReLU': nn.ReLU, 'SiLU': nn.SiLU}


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
    """Return the activation called ``name``.

    Raises:
        ValueError: Not one of GELU (exact, by erf), ReLU, SiLU.
    """
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
        name: ``'LN'`` (eps 1e-6) or ``'BN'`` (eps 1e-5).
        input_last: Whether the input is channels last, (N, H, W, C), or first, (N, C, H, W).
        output_last: The same for the output.

    Raises:
        ValueError: Unknown ``name``.
    """
    if name not in ('LN', 'BN'):
        raise ValueError(f'norm_layer must be LN or BN, got {name!r}')
    norm_last = name == 'LN'
    layers: list[nn.Module] = []
    if input_last != norm_last:
        layers.append(to_channels_last() if norm_last else to_channels_first())
    layers.append(
        nn.LayerNorm(channels, eps=LAYER_NORM_EPS) if norm_last else nn.BatchNorm2d(channels)
    )
    if output_last != norm_last:
        layers.append(to_channels_last() if output_last else to_channels_first())
    return nn.Sequential(*layers)


# Matrix products of other widths can be slow: with MKL, 108 columns take 1.7 times as long as 112,
# and longer than 72 and 36 one after the other.
_JOINT_MULTIPLE = 16


_HOOKS = [f'{kind}_hooks' for kind in ('_forward_pre', '_forward', '_backward_pre', '_backward')]


def has_hooks(module: nn.Module) -> bool:
    """Whether something is called before or after ``module``, or its ``forward`` was patched."""
    # Private names: there is no public way to ask. The second ones are of hooks on all modules.
    return (
        'forward' in module.__dict__
        or any(getattr(module, hooks) for hooks in _HOOKS)
        or any(getattr(nn.modules.module, f'_global{hooks}') for hooks in _HOOKS)
    )


def is_plain_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether calling ``layer`` is nothing but ``linear(x, layer.weight, layer.bias)``.

    It is not where it was replaced or patched (adapters), has hooks, or quantized, sparse or
    sharded weights.
    """
    return (
        type(layer) is nn.Linear
        and not has_hooks(layer)
        and layer.bias is not None
        and layer.weight.layout is torch.strided
        and not hasattr(layer.weight, '__tensor_flatten__')
    )


def _is_cpu_eager(x: Tensor) -> bool:
    """Whether ``x`` is computed on the CPU, without compiler, tracer or transform (torch.func)."""
    return (
        x.device.type == 'cpu'
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        # Private: there is no public way to ask. vmap refuses to add to a tensor in place what has
        # one more dimension.
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def is_cpu_inference(x: Tensor) -> bool:
    """Whether ``x`` is computed on the CPU, without gradients, compiler or tracer."""
    return not torch.is_grad_enabled() and _is_cpu_eager(x)


# Pixels from which a convolution pays: below, laying out its weights takes longer than it saves.
_CONVOLUTION_PIXELS = 1000


def _full_precision() -> bool:
    """Whether float32 matrix products are to be computed in float32."""
    try:
        return torch.get_float32_matmul_precision() == 'highest'
    except RuntimeError:  # something was set by the newer fp32_precision
        return False


def _runs_as_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether ``linear(x, weight, bias)`` of ``(N, H, W, C)`` is faster as a 1x1 convolution.

    It is with oneDNN, which PyTorch takes for those on several threads, where the linear layer
    would run on MKL: in float32 on the CPU. Measured on AMD Zen 4 and 5 (``docs/op.md``).
    """
    return (
        _is_cpu_eager(x)
        and x.dtype == weight.dtype == bias.dtype == torch.float32
        and weight.device == x.device
        and x.shape[0] * x.shape[1] * x.shape[2] >= _CONVOLUTION_PIXELS
        and not torch.is_autocast_enabled('cpu')
        and torch.get_num_threads() > 1
        and _full_precision()
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )


def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x, weight = x.permute(0, 3, 1, 2), weight[:, :, None, None]
    if torch.is_grad_enabled():
        # oneDNN would sum the gradient of a bias number by number, with tens of times the error.
        output = nn.functional.conv2d(x, weight)
        output += bias[:, None, None]
    else:
        output = nn.functional.conv2d(x, weight, bias)
    return output.permute(0, 2, 3, 1)


# An operator that torch.compile calls: nothing public lets oneDNN compute an activation before it
# writes its results, which is a pass over memory less.
_convolve_and_activate: Any = getattr(torch.ops.mkldnn, '_convolution_pointwise', None)


def _fuses_gelu(act: nn.Module) -> bool:
    return (
        not torch.is_grad_enabled()
        and type(act) is nn.GELU
        and act.approximate == 'none'
        and not has_hooks(act)
        and _convolve_and_activate is not None
        # Private as well. Those who look at operators, to count FLOPs for example, do not know this
        # one, and it would drop the tangents of forward-mode derivatives.
        and torch._C._len_torch_dispatch_stack() == 0
        and forward_ad._current_level < 0
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``nn.functional.linear`` of a channels-last map ``(N, H, W, C)``, the fastest way."""
    run = _convolve if _runs_as_convolution(x, weight, bias) else nn.functional.linear
    return run(x, weight, bias)


def apply_linear(layer: nn.Module, x: Tensor, act: nn.Module | None = None) -> Tensor:
    """``layer(x)`` for ``(N, H, W, C)``, or ``act(layer(x))``, the fastest way.

    A plain linear layer runs as a convolution where that pays, which in inference computes an exact
    GELU too.
    """
    if not (is_plain_linear(layer) and _runs_as_convolution(x, layer.weight, layer.bias)):
        output = layer(x)
    elif act is not None and _fuses_gelu(act):
        weight, x = layer.weight[:, :, None, None], x.permute(0, 3, 1, 2)
        output = _convolve_and_activate(
            x, weight, layer.bias, (0, 0), (1, 1), (1, 1), 1, 'gelu', (), 'none'
        )
        return output.permute(0, 2, 3, 1)
    else:
        output = _convolve(x, layer.weight, layer.bias)
    return output if act is None else act(output)


class DCNv3(nn.Module):
    """Deformable convolution v3 with its projections (InternImage, section 3.1), channels last.

    Argument and parameter names are those of the official layer, so its checkpoints load as they
    are. ``(N, H, W, C)`` becomes ``(N, Ho, Wo, C)``; with stride 1 the size stays.

    Args:
        channels: Channels C of input and output.
        kernel_size: Side of the sampling grid.
        dw_kernel_size: Side of the depth-wise convolution that predicts offsets and masks;
            defaults to ``kernel_size``. Odd.
        stride: Stride of the sampling grid and of the depth-wise convolution.
        pad: Padding of the sampling grid; must keep the size at stride 1:
            ``2 * pad == dilation * (kernel_size - 1)``.
        dilation: Spacing of the sampling grid.
        group: Number of groups; must divide ``channels``.
        offset_scale: Factor on grid and offsets, 2.0 for InternImage-L and XL.
        act_layer: ``'GELU'``, ``'ReLU'`` or ``'SiLU'``.
        norm_layer: ``'LN'`` or ``'BN'``, of the depth-wise branch.
        center_feature_scale: Mix each group with the projected input by a learned weight
            (InternImage-H and G).
        remove_center: Sample without the central point.
        use_dcn_v4_op: Accepted from official configs, where it selects another kernel for the same
            function; has no effect.
        backend: Backend of the op, see :func:`ops_dcnv3.dcnv3`.

    Raises:
        ValueError: A setting does not fit another one.
    """

    def __init__(
        self,
        channels: int = 64,
        kernel_size: int = 3,
        dw_kernel_size: int | None = None,
        stride: int = 1,
        pad: int = 1,
        dilation: int = 1,
        group: int = 4,
        offset_scale: float = 1.0,
        act_layer: str = 'GELU',
        norm_layer: str = 'LN',
        center_feature_scale: bool = False,
        remove_center: bool = False,
        use_dcn_v4_op: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        dw_kernel_size = kernel_size if dw_kernel_size is None else dw_kernel_size
        if group < 1 or channels % group:
            raise ValueError(f'group must divide channels, got group={group}, channels={channels}')
        if dw_kernel_size % 2 == 0:
            raise ValueError(f'dw_kernel_size must be odd, got {dw_kernel_size}')
        if remove_center and kernel_size % 2 == 0:
            raise ValueError(f'remove_center needs an odd kernel_size, got {kernel_size}')
        if 2 * pad != dilation * (kernel_size - 1):
            raise ValueError(
                'pad must keep the size at stride 1, 2 * pad == dilation * (kernel_size - 1), '
                f'got pad={pad}, dilation={dilation}, kernel_size={kernel_size}'
            )
        if center_feature_scale and stride != 1:
            raise ValueError(f'center_feature_scale needs stride 1, got {stride}')
        self.channels = channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.pad = pad
        self.dilation = dilation
        self.group = group
        self.offset_scale = offset_scale
        self.center_feature_scale = center_feature_scale
        self.remove_center = remove_center
        self.backend = backend

        points = kernel_size * kernel_size - int(remove_center)
        self.dw_conv = nn.Sequential(
            nn.Conv2d(
                channels,
                channels,
                dw_kernel_size,
                stride=stride,
                padding=dw_kernel_size // 2,
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
        """Start as a regular grid with equal weights: offset and mask 0, projections Xavier."""
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
            ValueError: ``x`` is not a 4-d tensor with ``channels`` channels last.
        """
        if x.dim() != 4 or x.shape[-1] != self.channels:
            raise ValueError(
                f'expected an input of shape (N, H, W, {self.channels}), got {tuple(x.shape)}'
            )
        query = self.dw_conv(x.permute(0, 3, 1, 2))
        offset, mask = self._offset_and_mask(query)
        if not self.center_feature_scale:
            del query  # its memory serves the next layers
        value = apply_linear(self.input_proj, x)
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
        return apply_linear(self.output_proj, output)

    def _offset_and_mask(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the layers ``offset`` and ``mask``, as one if nothing but their weights matters.

        The op reads the two parts of the joint output where they are, without a copy.
        """
        offset, mask = self.offset, self.mask
        if not (is_plain_linear(offset) and is_plain_linear(mask)):
            return offset(query), mask(query)
        sizes = [offset.weight.shape[0], mask.weight.shape[0]]
        sizes.append(-sum(sizes) % _JOINT_MULTIPLE)
        weights: list[Tensor] = [offset.weight, mask.weight]
        biases: list[Tensor] = [offset.bias, mask.bias]
        if sizes[-1]:
            weights.append(mask.weight.new_zeros(sizes[-1], mask.weight.shape[1]))
            biases.append(mask.bias.new_zeros(sizes[-1]))
        joint = linear(query, torch.cat(weights), torch.cat(biases))
        offset_part, mask_part, _ = joint.split(sizes, -1)
        return offset_part, mask_part

    def extra_repr(self) -> str:
        return (
            f'channels={self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, '
            f'pad={self.pad}, dilation={self.dilation}, group={self.group}, '
            f'offset_scale={self.offset_scale}, remove_center={self.remove_center}'
        )
