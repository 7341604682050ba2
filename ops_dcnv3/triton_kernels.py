"""DCNv3 in Triton: kernels for GPUs on machines without a CUDA toolkit.

Importing this file imports triton. Where ``TRITON_INTERPRET=1`` is set at that moment, the kernels
run in Triton's interpreter, on CPU tensors as well; the tests use that.

A *row* is one output pixel and one group, so the output is a matrix of rows by the channels of a
group. A program computes ``BLOCK_R`` consecutive rows: positions, weights and the mask once for
each row and point, the four corners for ``BLOCK_C`` channels at a time. See ``docs/kernels.md``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .geometry import check_call, check_like, num_points, pairs

_COMPUTE_DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.float32,
    torch.float16: tl.float32,
}
# Pixel numbers within an image are int32 and may run past the last one by a block.
_MAX_PIXELS = 2**31 - 2**12
# Sizes that change with the image; a specialised kernel for each would be compiled again.
_DYNAMIC = [
    'rows',
    'height',
    'width',
    'out_width',
    'out_area',
    *(f'{name}_{dim}' for name in ('offset', 'mask') for dim in ('image', 'line', 'pixel')),
]


@triton.jit
def _locate(
    offset, mask, rows, out_width, out_area, offset_image, offset_line, offset_pixel, mask_image,
    mask_line, mask_pixel, GROUPS: tl.constexpr, K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Return of the program's rows: pointers to offset and mask, row, image, line, ..., valid."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    within = tl.arange(0, BLOCK_R)
    row = first + within
    # Only scalars are divided in 64 bits.
    first_pixel = first // GROUPS
    within = (first % GROUPS).to(tl.int32) + within
    pixel = (first_pixel % out_area).to(tl.int32) + within // GROUPS
    image = first_pixel // out_area + pixel // out_area
    pixel = pixel % out_area
    group, line, column = within % GROUPS, pixel // out_width, pixel % out_width
    offset += image * offset_image + line.to(tl.int64) * offset_line
    offset += column.to(tl.int64) * offset_pixel + group * (2 * K)
    mask += image * mask_image + line.to(tl.int64) * mask_line
    mask += column.to(tl.int64) * mask_pixel + group * K
    return offset, mask, row, image, line, column, group, row < rows


@triton.jit
def _softmax_terms(logits, valid, K: tl.constexpr, BLOCK_K: tl.constexpr, COMPUTE: tl.constexpr):
    """Return the logits (BLOCK_R, BLOCK_K), padded with -inf, their largest and 1 / sum of exp."""
    k = tl.arange(0, BLOCK_K)
    values = tl.load(logits[:, None] + k[None, :], valid[:, None] & (k < K)[None, :], other=0.0)
    values = tl.where((k < K)[None, :], values.to(COMPUTE), -float('inf'))
    largest = tl.max(values, axis=1)
    return values, largest, 1.0 / tl.sum(tl.exp(values - largest[:, None]), axis=1)


@triton.jit
def _sample(
    offset, mask, p, line, column, height, width, valid, LINES: tl.constexpr,
    COLUMNS: tl.constexpr, KERNEL_H: tl.constexpr, REMOVED: tl.constexpr,
    OFFSET_SCALE: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Return for point p of each row: mask, it counts, top, left (int32), the fractions (y, x).

    LINES and COLUMNS hold stride, start, dilation and half the extent of the kernel.
    """
    cell = p
    if REMOVED >= 0:
        cell = p + (p >= REMOVED)
    offset_x = tl.load(offset + 2 * p, valid, other=0.0).to(COMPUTE)
    offset_y = tl.load(offset + 2 * p + 1, valid, other=0.0).to(COMPUTE)
    cell_x = cell // KERNEL_H * COLUMNS[2] - COLUMNS[3]
    cell_y = cell % KERNEL_H * LINES[2] - LINES[3]
    x = (column * COLUMNS[0] + COLUMNS[1]).to(COMPUTE) + OFFSET_SCALE * (cell_x + offset_x)
    y = (line * LINES[0] + LINES[1]).to(COMPUTE) + OFFSET_SCALE * (cell_y + offset_y)
    # Comparisons with NaN are false; what passes fits into int32.
    counts = valid & (x > -1) & (x < width) & (y > -1) & (y < height)
    x = tl.where(counts, x, 0.0)
    y = tl.where(counts, y, 0.0)
    left = tl.floor(x)
    top = tl.floor(y)
    weight = tl.load(mask + p, valid, other=0.0).to(COMPUTE)
    return weight, counts, top.to(tl.int32), left.to(tl.int32), y - top, x - left


@triton.jit
def _corner(corner: tl.constexpr, counts, top, left, y, x, height, width):
    """Return whether a corner is in the image, its pixel, and its shares (y, x) of the point."""
    corner_y = top + corner // 2
    corner_x = left + corner % 2
    inside = counts & (corner_y >= 0) & (corner_y < height)
    inside = inside & (corner_x >= 0) & (corner_x < width)
    share_y = y if corner // 2 else 1 - y
    share_x = x if corner % 2 else 1 - x
    return inside, corner_y * width + corner_x, share_y, share_x


@triton.jit(do_not_specialize=_DYNAMIC)
def _forward_kernel(
    input, offset, mask, output,
    rows, height, width, out_width, out_area, offset_image, offset_line, offset_pixel, mask_image,
    mask_line, mask_pixel, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, K: tl.constexpr,
    LINES: tl.constexpr, COLUMNS: tl.constexpr, KERNEL_H: tl.constexpr, REMOVED: tl.constexpr,
    OFFSET_SCALE: tl.constexpr, LOGITS: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    offset, mask, row, image, line, column, group, valid = _locate(
        offset, mask, rows, out_width, out_area, offset_image, offset_line, offset_pixel,
        mask_image, mask_line, mask_pixel, GROUPS, K, BLOCK_R,
    )  # fmt: skip
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    present = (channel < CHANNELS)[None, :]
    first_pixel = image * height * width
    if LOGITS:
        _, largest, scale = _softmax_terms(mask, valid, K, BLOCK_K, COMPUTE)
    total = tl.zeros((BLOCK_R, BLOCK_C), COMPUTE)
    for p in tl.range(0, K, loop_unroll_factor=3):
        weight, counts, top, left, y, x = _sample(
            offset, mask, p, line, column, height, width, valid, LINES, COLUMNS, KERNEL_H, REMOVED,
            OFFSET_SCALE, COMPUTE,
        )  # fmt: skip
        if LOGITS:
            weight = tl.exp(weight - largest) * scale
        for corner in tl.static_range(4):
            inside, pixel, share_y, share_x = _corner(
                corner, counts, top, left, y, x, height, width
            )
            index = ((first_pixel + pixel) * GROUPS + group)[:, None] * CHANNELS + channel[None, :]
            values = tl.load(input + index, inside[:, None] & present, other=0.0)
            share = tl.where(inside, weight * share_y * share_x, 0.0)
            total += share[:, None] * values.to(COMPUTE)
    tl.store(
        output + row[:, None] * CHANNELS + channel[None, :],
        total.to(output.dtype.element_ty),
        valid[:, None] & present,
    )


@triton.jit(do_not_specialize=_DYNAMIC)
def _backward_kernel(
    grad_output, input, offset, mask, grad_input, grad_offset, grad_mask,
    rows, height, width, out_width, out_area, offset_image, offset_line, offset_pixel, mask_image,
    mask_line, mask_pixel, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, K: tl.constexpr,
    LINES: tl.constexpr, COLUMNS: tl.constexpr, KERNEL_H: tl.constexpr, REMOVED: tl.constexpr,
    OFFSET_SCALE: tl.constexpr, LOGITS: tl.constexpr, COMPUTE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    offset, mask, row, image, line, column, group, valid = _locate(
        offset, mask, rows, out_width, out_area, offset_image, offset_line, offset_pixel,
        mask_image, mask_line, mask_pixel, GROUPS, K, BLOCK_R,
    )  # fmt: skip
    first_pixel = image * height * width
    k = tl.arange(0, BLOCK_K)
    if LOGITS:
        logits, largest, scale = _softmax_terms(mask, valid, K, BLOCK_K, COMPUTE)
    # The gradients of all points of a row are collected here, so that memory is written in lines.
    of_mask = tl.zeros((BLOCK_R, BLOCK_K), COMPUTE)
    of_x = tl.zeros((BLOCK_R, BLOCK_K), COMPUTE)
    of_y = tl.zeros((BLOCK_R, BLOCK_K), COMPUTE)
    for p in tl.range(0, K):
        weight, counts, top, left, y, x = _sample(
            offset, mask, p, line, column, height, width, valid, LINES, COLUMNS, KERNEL_H, REMOVED,
            OFFSET_SCALE, COMPUTE,
        )  # fmt: skip
        if LOGITS:
            weight = tl.exp(weight - largest) * scale
        point_mask = tl.zeros((BLOCK_R,), COMPUTE)
        point_x = tl.zeros((BLOCK_R,), COMPUTE)
        point_y = tl.zeros((BLOCK_R,), COMPUTE)
        for block in tl.range(0, CHANNELS, BLOCK_C):
            channel = block + tl.arange(0, BLOCK_C)
            present = (channel < CHANNELS)[None, :]
            gradient = tl.load(
                grad_output + row[:, None] * CHANNELS + channel[None, :],
                valid[:, None] & present,
                other=0.0,
            ).to(COMPUTE)
            for corner in tl.static_range(4):
                inside, pixel, share_y, share_x = _corner(
                    corner, counts, top, left, y, x, height, width
                )
                index = ((first_pixel + pixel) * GROUPS + group)[:, None] * CHANNELS
                index += channel[None, :]
                use = inside[:, None] & present
                values = tl.load(input + index, use, other=0.0).to(COMPUTE)
                dot = tl.where(inside, tl.sum(values * gradient, axis=1), 0.0)
                point_mask += dot * share_y * share_x
                point_x += (dot if corner % 2 else -dot) * share_y
                point_y += (dot if corner // 2 else -dot) * share_x
                tl.atomic_add(
                    grad_input + index,
                    (weight * share_y * share_x)[:, None] * gradient,
                    use,
                    sem='relaxed',
                )
        here = (k == p)[None, :]
        slope = tl.where(counts, weight, 0.0) * OFFSET_SCALE
        of_mask = tl.where(here, point_mask[:, None], of_mask)
        of_x = tl.where(here, (slope * point_x)[:, None], of_x)
        of_y = tl.where(here, (slope * point_y)[:, None], of_y)
    if LOGITS:
        probability = tl.exp(logits - largest[:, None]) * scale[:, None]
        mean = tl.sum(tl.where((k < K)[None, :], probability * of_mask, 0.0), axis=1)
        of_mask = probability * (of_mask - mean[:, None])
    tl.store(
        grad_mask + row[:, None] * K + k[None, :],
        of_mask.to(grad_mask.dtype.element_ty),
        valid[:, None] & (k < K)[None, :],
    )
    pair = tl.arange(0, 2 * BLOCK_K)
    tl.store(
        grad_offset + row[:, None] * (2 * K) + pair[None, :],
        tl.interleave(of_x, of_y).to(grad_offset.dtype.element_ty),
        valid[:, None] & (pair < 2 * K)[None, :],
    )


INTERPRETED = not isinstance(_forward_kernel, triton.JITFunction)
"""Whether the kernels run in Triton's interpreter."""

# The interpreter's time goes by programs and operations, not by elements, so it gets few programs.
_INTERPRETED_ROWS = 1024


def _dense_last(tensor: Tensor) -> Tensor:
    """The tensor if its last dimension is dense, which is all that the kernels ask, or a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _arguments(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    window: Sequence[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
    mask_is_logits: bool,
) -> tuple[tuple[int, int, int, int], dict]:
    """Check sizes; return the output's shape and what both kernels take besides the tensors."""
    if input.device.type == 'cpu' and not INTERPRETED:
        raise RuntimeError(
            'Triton kernels run on GPUs, got CPU tensors; set TRITON_INTERPRET=1 before Python '
            "starts to run them in Triton's interpreter"
        )
    shape = check_call(
        input,
        offset,
        mask,
        window,
        groups,
        offset_scale,
        remove_center,
        mask_is_logits,
    )
    batch, out_h, out_w, channels = shape
    height, width = input.shape[1:3]
    kernel_size, stride, padding, dilation = pairs(window)
    if max(height * width, out_h * out_w) > _MAX_PIXELS:
        raise ValueError(
            f'dcnv3: an image must have at most {_MAX_PIXELS} pixels, got {height}x{width} '
            f'and an output of {out_h}x{out_w}'
        )
    half_h = dilation[0] * (kernel_size[0] - 1) // 2
    half_w = dilation[1] * (kernel_size[1] - 1) // 2
    strides = zip(_DYNAMIC[5:], (*offset.stride()[:3], *mask.stride()[:3]), strict=True)
    arguments = dict(
        rows=batch * out_h * out_w * groups,
        height=height,
        width=width,
        out_width=out_w,
        out_area=out_h * out_w,
        **dict(strides),
        GROUPS=groups,
        CHANNELS=channels // groups,
        K=num_points(kernel_size, remove_center),
        LINES=(stride[0], half_h - padding[0], dilation[0], half_h),
        COLUMNS=(stride[1], half_w - padding[1], dilation[1], half_w),
        KERNEL_H=kernel_size[0],
        REMOVED=kernel_size[1] // 2 * kernel_size[0] + kernel_size[0] // 2 if remove_center else -1,
        # A constant, because Triton would pass a number as float32 whatever the tensors are.
        OFFSET_SCALE=float(offset_scale),
        LOGITS=bool(mask_is_logits),
        COMPUTE=_COMPUTE_DTYPES[input.dtype],
    )
    return shape, arguments


def _blocks(arguments: dict) -> dict[str, int]:
    """Block sizes and number of warps of a program.

    One warp with 256 elements in hand, 16 bytes of half-precision channels for each thread: rows
    then stay within a warp, and the compiler passes positions on by shuffles. With more warps it
    takes shared memory and barriers, 42 of them in the forward for K = 9 (in triton 3.6 for sm_90).
    """
    channels = min(triton.next_power_of_2(arguments['CHANNELS']), 64)
    points = triton.next_power_of_2(arguments['K'])
    rows = max(1, min(32, 256 // channels, 1024 // points))
    if INTERPRETED:
        rows = max(rows, min(_INTERPRETED_ROWS, triton.next_power_of_2(arguments['rows'])))
    return dict(BLOCK_R=rows, BLOCK_C=channels, BLOCK_K=points, num_warps=1)


def forward(input: Tensor, offset: Tensor, mask: Tensor, *options) -> Tensor:
    """Compute ``ops_dcnv3::triton_forward``; arguments as :func:`dcnv3_reference` takes them.

    Raises:
        TypeError, ValueError: Sizes, dtypes or devices do not fit.
        RuntimeError: CPU tensors without the interpreter, or a failed launch.
    """
    input, offset, mask = input.contiguous(), _dense_last(offset), _dense_last(mask)
    shape, arguments = _arguments(input, offset, mask, *options)
    output = input.new_empty(shape)
    if output.numel():
        blocks = _blocks(arguments)
        grid = (
            triton.cdiv(arguments['rows'], blocks['BLOCK_R']),
            triton.cdiv(arguments['CHANNELS'], blocks['BLOCK_C']),
        )
        with torch.cuda.device_of(input):
            _forward_kernel[grid](input, offset, mask, output, **arguments, **blocks)
    return output


def backward(
    grad_output: Tensor, input: Tensor, offset: Tensor, mask: Tensor, *options
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``ops_dcnv3::triton_backward``: the gradients of input, offset and mask.

    The input gradient is added up by atomics, in float32 for halves. Their order is not fixed on a
    GPU, so under ``torch.use_deterministic_algorithms(True)`` this raises as PyTorch's own
    operators do.

    Raises:
        TypeError, ValueError: Sizes, dtypes or devices do not fit.
        RuntimeError: CPU tensors without the interpreter, deterministic algorithms are asked for,
            or a failed launch.
    """
    grad_output, input = grad_output.contiguous(), input.contiguous()
    offset, mask = _dense_last(offset), _dense_last(mask)
    shape, arguments = _arguments(input, offset, mask, *options)
    check_like('grad_output', grad_output, input, shape)
    # On the CPU the interpreter runs programs one after the other.
    if input.device.type != 'cpu' and torch.are_deterministic_algorithms_enabled():
        problem = (
            "the backward of dcnv3 on backend 'triton' does not have a deterministic implementation"
        )
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(f"{problem}; backend='reference' has one")
        warnings.warn(problem, stacklevel=2)
    grad_input = torch.zeros(
        input.shape,
        dtype=torch.promote_types(input.dtype, torch.float32),
        device=input.device,
    )
    if not grad_output.numel():
        return (
            grad_input.to(input.dtype),
            offset.new_zeros(offset.shape),
            mask.new_zeros(mask.shape),
        )
    grad_offset, grad_mask = offset.new_empty(offset.shape), mask.new_empty(mask.shape)
    blocks = _blocks(arguments)
    grid = (triton.cdiv(arguments['rows'], blocks['BLOCK_R']),)
    with torch.cuda.device_of(input):
        _backward_kernel[grid](
            grad_output,
            input,
            offset,
            mask,
            grad_input,
            grad_offset,
            grad_mask,
            **arguments,
            **blocks,
        )
    return grad_input.to(input.dtype), grad_offset, grad_mask
