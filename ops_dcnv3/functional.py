"""The public function of the op: argument checks and the choice of a backend."""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import choose_backend
from .geometry import DTYPES, num_points, output_size, pair
from .reference import positions

# Determined once, because torch.compile of torch 2.6 cannot trace the call.
_AUTOCAST_DEVICES = tuple(
    kind
    for kind in ('cpu', 'cuda', 'mps', 'xpu', 'hpu', 'xla', 'mtia')
    if torch.amp.is_autocast_available(kind)
)


def dcnv3(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    *,
    kernel_size: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    groups: int,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    mask_is_logits: bool = False,
    im2col_step: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Deformable convolution v3 (InternImage, arXiv:2211.05778, equation 2), channels last.

    Each output pixel and group is a weighted sum of K = kh * kw bilinear samples of the input. The
    points are ordered column by column (x-major), offsets are (x, y) pairs in input pixels, and
    ``offset_scale`` multiplies the regular grid and the offsets alike, exactly as in the official
    CUDA kernel; ``docs/op.md`` has the formulas. A point at ``(x, y)`` counts if ``-1 < x < W`` and
    ``-1 < y < H``; corners outside the image are zero. NaN and infinite offsets sample nothing.

    Differentiable with respect to ``input``, ``offset`` and ``mask``. Computes in float64 for
    float64 tensors and in float32 for all others.

    Args:
        input: ``(N, H, W, C)``, float32, float64, bfloat16 or float16. N may be 0.
        offset: ``(N, Ho, Wo, groups * K * 2)``: group, then point, then (x, y).
        mask: ``(N, Ho, Wo, groups * K)``: group, then point. ``offset`` and ``mask`` may be slices
            of one larger tensor along their last dimension; they are not copied.
        kernel_size: Int or ``(h, w)``, like the next three.
        stride: Step of the output grid in input pixels.
        padding: Moves the grid and sets the output size; outside, the image is always zero.
        dilation: Spacing of the regular grid in input pixels.
        groups: Number of groups; must divide C.
        offset_scale: Factor on grid and offsets about the kernel's centre.
        remove_center: Leave out the central point, so K = kh * kw - 1. Odd kernels only.
        mask_is_logits: First apply a softmax over the K points of a group to ``mask``.
        im2col_step: Accepted for compatibility with the official function; has no effect.
        backend: A name of :func:`ops_dcnv3.available_backends`; by default the fastest that can
            run.

    Returns:
        ``(N, Ho, Wo, C)`` in the dtype of ``input``, where
        ``Ho = (H + 2 * pad - dilation * (kh - 1) - 1) // stride + 1`` and Wo likewise.

    Raises:
        TypeError: An argument has the wrong type, or the tensors differ in dtype.
        ValueError: A shape, device or option does not fit.
        RuntimeError: The requested backend cannot run here.
    """
    kernel = pair('kernel_size', kernel_size, minimum=1)
    steps = pair('stride', stride, minimum=1)
    pads = pair('padding', padding, minimum=0)
    dilations = pair('dilation', dilation, minimum=1)
    if remove_center and (kernel[0] % 2 == 0 or kernel[1] % 2 == 0):
        raise ValueError(f'remove_center needs an odd kernel_size, got {kernel_size!r}')
    # Not math.isfinite, which torch.compile cannot trace with dynamic shapes.
    if not isinstance(offset_scale, (int, float)) or not abs(offset_scale) < float('inf'):
        raise ValueError(f'offset_scale must be a finite number, got {offset_scale!r}')
    offset, mask = _check_tensors(input, offset, mask)
    batch, height, width, channels = input.shape
    if not isinstance(groups, int) or isinstance(groups, bool):
        raise TypeError(f'groups must be an int, got {groups!r}')
    if groups < 1 or channels % groups:
        raise ValueError(f'groups must divide the {channels} channels of input, got {groups}')
    out_h, out_w = output_size(height, width, kernel, steps, pads, dilations)
    if out_h < 1 or out_w < 1:
        raise ValueError(
            f'the kernel does not fit: input of {height}x{width} pixels with padding {pads}, '
            f'kernel_size {kernel} and dilation {dilations} gives an output of {out_h}x{out_w}'
        )
    points = num_points(kernel, remove_center)
    if points < 1:
        raise ValueError(f'remove_center leaves no point of kernel_size {kernel_size!r}')
    for name, tensor, size in (('offset', offset, 2), ('mask', mask, 1)):
        expected = (batch, out_h, out_w, groups * points * size)
        if tensor.shape != expected:
            raise ValueError(
                f'{name} must have shape {expected} (N, Ho, Wo, groups * K{" * 2" * (size - 1)}) '
                f'for K = {points} points and {groups} groups, got {tuple(tensor.shape)}'
            )
    return choose_backend(input.device, input.dtype, backend).call(
        input,
        offset,
        mask,
        (*kernel, *steps, *pads, *dilations),
        groups,
        float(offset_scale),
        bool(remove_center),
        bool(mask_is_logits),
    )


def sampling_points(
    offset: Tensor,
    *,
    kernel_size: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    groups: int,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> Tensor:
    """Where :func:`dcnv3` samples its input: ``docs/op.md``, "Positions". Differentiable.

    Args:
        offset: ``(N, Ho, Wo, groups * K * 2)``, as the op takes it. All others as of the op.

    Returns:
        ``(N, Ho, Wo, groups, K, 2)``: (x, y) in pixels of the input, pixel centres at integers, in
        float64 for float64 offsets and in float32 for all others.

    Raises:
        ValueError: ``offset`` does not have this shape.
    """
    kernel = pair('kernel_size', kernel_size, minimum=1)
    points = num_points(kernel, remove_center)
    if offset.dim() != 4 or offset.shape[3] != groups * points * 2:
        raise ValueError(
            f'offset must have shape (N, Ho, Wo, {groups * points * 2}) for {points} points and '
            f'{groups} groups, got {tuple(offset.shape)}'
        )
    batch, out_h, out_w, _ = offset.shape
    window = (
        *kernel,
        *pair('stride', stride, minimum=1),
        *pair('padding', padding, minimum=0),
        *pair('dilation', dilation, minimum=1),
    )
    offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
    offset = offset.reshape(batch, out_h * out_w, groups, points, 2)
    sampled = positions(offset, (out_h, out_w), window, float(offset_scale), remove_center)
    result = torch.stack([torch.stack(point, -1) for point in sampled], -2)
    return result.view(batch, out_h, out_w, groups, points, 2)


def _check_tensors(input: Tensor, offset: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return offset and mask, cast to the dtype of input if autocast made them differ."""
    for name, tensor in (('input', input), ('offset', offset), ('mask', mask)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f'{name} must be a torch.Tensor, got {type(tensor).__name__}')
    dtype, device = input.dtype, input.device
    if input.dim() != 4:
        raise ValueError(f'input must have 4 dimensions (N, H, W, C), got {tuple(input.shape)}')
    if dtype not in DTYPES:
        raise TypeError(f'input must be float32, float64, bfloat16 or float16, got {dtype}')
    if (
        (offset.dtype is not dtype or mask.dtype is not dtype)
        and device.type in _AUTOCAST_DEVICES
        and torch.is_autocast_enabled(device.type)
    ):
        offset, mask = offset.to(dtype), mask.to(dtype)
    for name, tensor in (('offset', offset), ('mask', mask)):
        if tensor.dtype is not dtype:
            raise TypeError(f'{name} must have the dtype of input, {dtype}, got {tensor.dtype}')
        if tensor.device != device:
            raise ValueError(
                f'{name} must be on the device of input, {device}, got {tensor.device}'
            )
    return offset, mask
