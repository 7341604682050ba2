"""DCNv3 in plain PyTorch: the definition of right for every other backend.

Runs on any device and dtype and is differentiable by autograd. It follows the formulas of
``docs/op.md`` one by one and is written to be read, not to be fast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .geometry import kernel_points, num_points, output_size, pairs


def positions(
    offset: Tensor,
    out_size: tuple[int, int],
    window: Sequence[int],
    offset_scale: float,
    remove_center: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield x and y of the points p = 0..K-1, (N, Ho * Wo, groups) each, in pixels of the input.

    Args:
        offset: (N, Ho * Wo, groups, K, 2).
        out_size: Ho and Wo.
        window: As of :func:`dcnv3_reference`.
        offset_scale: Factor on grid and offsets.
        remove_center: Whether the central point is left out.
    """
    kernel_size, stride, padding, dilation = pairs(window)
    half_h = dilation[0] * (kernel_size[0] - 1) // 2
    half_w = dilation[1] * (kernel_size[1] - 1) // 2
    center_y = torch.arange(out_size[0], device=offset.device, dtype=offset.dtype) * stride[0]
    center_x = torch.arange(out_size[1], device=offset.device, dtype=offset.dtype) * stride[1]
    center_y = (center_y - padding[0] + half_h).repeat_interleave(out_size[1])[:, None]
    center_x = (center_x - padding[1] + half_w).repeat(out_size[0])[:, None]
    for p, (i, j) in enumerate(kernel_points(kernel_size, remove_center)):
        yield (
            center_x + offset_scale * (i * dilation[1] - half_w + offset[..., p, 0]),
            center_y + offset_scale * (j * dilation[0] - half_h + offset[..., p, 1]),
        )


def dcnv3_reference(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    window: Sequence[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
    mask_is_logits: bool,
) -> Tensor:
    """Compute DCNv3; arguments and result as :func:`ops_dcnv3.dcnv3`.

    ``window`` holds kernel_size, stride, padding and dilation, each as height and width.

    Halves are computed in float32 and rounded once, at the end.
    """
    batch, height, width, channels = input.shape
    kernel_size, stride, padding, dilation = pairs(window)
    out_h, out_w = output_size(height, width, kernel_size, stride, padding, dilation)
    points = num_points(kernel_size, remove_center)
    compute_dtype = torch.promote_types(input.dtype, torch.float32)
    device = input.device

    # One row of channels for each image, pixel and group, and a row of zeros for all that is
    # outside: a NaN in the image must not reach points that do not sample it.
    rows = input.to(compute_dtype).reshape(-1, channels // groups)
    outside = rows.shape[0]
    rows = torch.cat([rows, rows.new_zeros(1, channels // groups)])
    first_row = torch.arange(batch, device=device)[:, None, None] * (height * width * groups)
    first_row = first_row + torch.arange(groups, device=device)
    offset = offset.to(compute_dtype).reshape(batch, out_h * out_w, groups, points, 2)
    mask = mask.to(compute_dtype).reshape(batch, out_h * out_w, groups, points)
    if mask_is_logits:
        mask = mask.softmax(-1)

    output = rows.new_zeros(batch, out_h * out_w, groups, channels // groups)
    sampled = positions(offset, (out_h, out_w), window, offset_scale, remove_center)
    for p, (x, y) in enumerate(sampled):
        # A comparison with NaN is false: a NaN offset samples nothing, like one far outside.
        samples = (x > -1) & (x < width) & (y > -1) & (y < height)
        x = torch.where(samples, x, 0)
        y = torch.where(samples, y, 0)
        left, top = x.detach().floor(), y.detach().floor()
        fraction_x, fraction_y = x - left, y - top
        for row, weight_y in ((top, 1 - fraction_y), (top + 1, fraction_y)):
            for column, weight_x in ((left, 1 - fraction_x), (left + 1, fraction_x)):
                inside = samples & (row >= 0) & (row < height) & (column >= 0) & (column < width)
                pixel = row.long() * width + column.long()
                index = torch.where(inside, first_row + pixel * groups, outside)
                values = rows.index_select(0, index.flatten()).view_as(output)
                weight = torch.where(inside, mask[..., p] * weight_y * weight_x, 0)
                output = output.addcmul(weight[..., None], values)
    return output.reshape(batch, out_h, out_w, channels).to(input.dtype)
