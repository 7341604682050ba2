"""Shapes of a DCNv3 call: integer pairs, number of points, output size, and their check."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

IntPair = tuple[int, int]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""What the op computes."""


def pair(name: str, value, *, minimum: int) -> IntPair:
    """Return ``value`` as an ``(h, w)`` pair of ints.

    Args:
        name: Argument name for the error message.
        value: An int or a sequence of two ints.
        minimum: Smallest value allowed.

    Raises:
        TypeError: ``value`` is neither an int nor two ints.
        ValueError: An entry is below ``minimum``.
    """
    if type(value) is int and value >= minimum:  # the usual case, without the time of all checks
        return value, value
    entries = (value, value) if isinstance(value, int) else value
    if (
        isinstance(value, bool)
        or not isinstance(entries, (tuple, list))
        or len(entries) != 2
        or not all(isinstance(entry, int) and not isinstance(entry, bool) for entry in entries)
    ):
        raise TypeError(f'{name} must be an int or an (h, w) pair of ints, got {value!r}')
    if min(entries) < minimum:
        raise ValueError(f'{name} must be at least {minimum}, got {value!r}')
    return entries[0], entries[1]


def pairs(window: Sequence[int]) -> tuple[IntPair, IntPair, IntPair, IntPair]:
    """Return kernel_size, stride, padding and dilation from the one list the operators take.

    Raises:
        ValueError: Not eight numbers.
    """
    if len(window) != 8:
        raise ValueError(
            'dcnv3: window must be kernel_size, stride, padding and dilation, (h, w) each, '
            f'got {window!r}'
        )
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w = window
    return (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)


def num_points(kernel_size: IntPair, remove_center: bool) -> int:
    """Number of sampling points K per group and output pixel."""
    return kernel_size[0] * kernel_size[1] - int(remove_center)


def output_size(
    height: int,
    width: int,
    kernel_size: IntPair,
    stride: IntPair,
    padding: IntPair,
    dilation: IntPair,
) -> IntPair:
    """Output height and width of the op; zero or negative where the padded input is too small."""
    out_h = (height + 2 * padding[0] - (dilation[0] * (kernel_size[0] - 1) + 1)) // stride[0] + 1
    out_w = (width + 2 * padding[1] - (dilation[1] * (kernel_size[1] - 1) + 1)) // stride[1] + 1
    return out_h, out_w


def kernel_points(kernel_size: IntPair, remove_center: bool) -> list[IntPair]:
    """Kernel cells ``(i, j)`` (column, row) in the order of the points p = 0..K-1.

    The order is x-major: the column index is the outer one, as in the official CUDA kernel. With
    ``remove_center`` the cell ``(kw // 2, kh // 2)`` is left out and later points move up by one.
    """
    kernel_h, kernel_w = kernel_size
    cells = [(i, j) for i in range(kernel_w) for j in range(kernel_h)]
    if remove_center:
        cells.remove((kernel_w // 2, kernel_h // 2))
    return cells


def check_call(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    window: Sequence[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
    mask_is_logits: bool,
) -> tuple[int, int, int, int]:
    """Check the arguments of an operator, whose sizes may be symbolic; return the output's shape.

    The public function tells users what is wrong; these checks are for direct calls.

    Raises:
        TypeError: A dtype is not supported, or the tensors differ in it.
        ValueError: A shape, device or option does not fit.
    """
    if input.dtype not in DTYPES:
        raise TypeError(
            f'dcnv3: input must be float32, float64, bfloat16 or float16, got {input.dtype}'
        )
    if input.dim() != 4:
        raise ValueError(f'dcnv3: input must have 4 dimensions, got {tuple(input.shape)}')
    kernel_size, stride, padding, dilation = pairs(window)
    points = num_points(kernel_size, remove_center)
    torch._check_value(
        min(*kernel_size, *stride, *dilation) >= 1 and min(padding) >= 0 and points >= 1,
        lambda: (
            'dcnv3: kernel_size, stride and dilation must be positive, padding not negative, '
            f'got {window}'
        ),
    )
    batch, height, width, channels = input.shape
    torch._check_value(
        groups >= 1 and channels % groups == 0,
        lambda: f'dcnv3: groups must divide {channels} channels, got {groups}',
    )
    out_h, out_w = output_size(height, width, kernel_size, stride, padding, dilation)
    for size in (out_h, out_w):
        torch._check_value(
            size >= 1, lambda: 'dcnv3: the kernel does not fit into the padded input'
        )
    pixels = (batch, out_h, out_w)
    check_like('offset', offset, input, (*pixels, groups * points * 2))
    check_like('mask', mask, input, (*pixels, groups * points))
    return *pixels, channels


def check_like(name: str, tensor: Tensor, input: Tensor, shape: Sequence[int]) -> None:
    """Raise unless a tensor has this shape, which may be symbolic, and dtype and device of input.

    Raises:
        TypeError: Another dtype.
        ValueError: Another shape or device.
    """
    if tensor.dtype != input.dtype:
        raise TypeError(
            f'dcnv3: {name} must have the dtype of input, {input.dtype}, got {tensor.dtype}'
        )
    if tensor.device != input.device:
        raise ValueError(
            f'dcnv3: {name} must be on the device of input, {input.device}, got {tensor.device}'
        )
    message = f'dcnv3: {name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}'
    torch._check_value(tensor.dim() == len(shape), lambda: message)
    for actual, expected in zip(tensor.shape, shape, strict=True):
        torch._check_value(actual == expected, lambda: message)
