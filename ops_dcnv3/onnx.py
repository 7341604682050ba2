"""DCNv3 in standard ONNX operators: after importing this, ``torch.onnx.export`` can export it.

The op becomes ``DeformConv``, which computes the same with the points in another order. For
runtimes without it, :func:`use_operator` selects ``GridSample``. The translation is registered in
onnxscript's table, which PyTorch's exporter reads (``dynamo=True``); :data:`TRANSLATIONS` can be
passed as its argument ``custom_translation_table`` instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .geometry import kernel_points, pairs

try:
    from onnxscript import evaluator, ir, opset18, opset19
    from onnxscript.function_libs.torch_lib.registration import torch_op
    from onnxscript.function_libs.torch_lib.tensor_typing import TFloat
except ImportError as error:
    raise ImportError(
        f'ops_dcnv3.onnx needs onnx and onnxscript ("pip install internimage-mm[deploy]"): {error}'
    ) from error

OPERATORS = {'DeformConv': 19, 'GridSample': 16}
"""The ONNX operators to choose from, with the opset that each needs."""

_NAMES = ('ops_dcnv3::forward', 'ops_dcnv3::triton_forward')
_operator = 'DeformConv'
_OTHER = 'GridSample (ops_dcnv3.onnx.use_operator, --grid-sample of tools/export.py)'
op: Any = opset18  # its type hints do not allow Python constants


@contextlib.contextmanager
def use_operator(name: str) -> Iterator[None]:
    """Translate the op to ``name`` while the context is open: ``DeformConv`` or ``GridSample``.

    Raises:
        ValueError: There is no such operator.
    """
    global _operator
    if name not in OPERATORS:
        raise ValueError(f'name must be one of {", ".join(OPERATORS)}, got {name!r}')
    previous, _operator = _operator, name
    try:
        yield
    finally:
        _operator = previous


def check_opset(version: int) -> None:
    """Raise ValueError if ONNX opset ``version`` does not have the selected operator."""
    if version < OPERATORS[_operator]:
        other = f'; {_OTHER} needs {OPERATORS["GridSample"]}'
        raise ValueError(
            f'{_operator} needs ONNX opset {OPERATORS[_operator]} or later, got {version}'
            f'{other if _operator == "DeformConv" else ""}'
        )


def check_onnxruntime() -> None:
    """Raise RuntimeError if the installed onnxruntime cannot run the selected operator."""
    import onnxruntime

    version = onnxruntime.__version__
    if _operator == 'DeformConv' and tuple(map(int, version.split('.')[:2])) < (1, 25):
        raise RuntimeError(
            f'onnxruntime {version} has no DeformConv: install 1.25 or later, or export with '
            f'{_OTHER}'
        )


@torch_op(_NAMES, trace_only=True)
def dcnv3(
    input: TFloat,
    offset: TFloat,
    mask: TFloat,
    window: Sequence[int],
    groups: int,
    offset_scale: float,
    remove_center: bool,
    mask_is_logits: bool,
):
    """Translate a call of this package's operators. Computes in float32 for every dtype.

    Raises:
        ValueError: The opset does not have the selected operator.
    """
    # Older exporters work in opset 18 and convert the result.
    if torch.__version__ >= '2.8':  # compared as a version
        exporter: Any = evaluator.default()
        check_opset(exporter.opset.version)
    dtype, channels = input.dtype, input.shape[3]  # type: ignore[index]
    if dtype != ir.DataType.FLOAT:
        input, offset, mask = (op.Cast(x, to=ir.DataType.FLOAT) for x in (input, offset, mask))
    if mask_is_logits:
        points = len(kernel_points(pairs(window)[0], remove_center))
        mask = op.Softmax(op.Reshape(mask, [0, 0, 0, groups, points]), axis=-1)
        mask = op.Reshape(mask, [0, 0, 0, groups * points])
    translate = {'DeformConv': _deform_conv, 'GridSample': _grid_sample}[_operator]
    output = translate(
        input, offset, mask, pairs(window), channels, groups, offset_scale, remove_center
    )
    return output if dtype == ir.DataType.FLOAT else op.Cast(output, to=dtype)


TRANSLATIONS = {
    torch.ops.ops_dcnv3.forward.default: dcnv3,
    torch.ops.ops_dcnv3.triton_forward.default: dcnv3,
}
"""For ``torch.onnx.export(..., custom_translation_table=TRANSLATIONS)``."""


def _refuse(*args):
    raise RuntimeError('DCNv3 is exported by torch.onnx.export(..., dynamo=True) only')


for _name in _NAMES:
    torch.onnx.register_custom_op_symbolic(_name, _refuse, 9)


def _deform_conv(input, offset, mask, window, channels, groups, offset_scale, remove_center):
    """Every channel is a convolution group with weights of 1, and points are (y, x), row by row."""
    kernel, stride, padding, dilation = window
    points = kernel_points(kernel, remove_center)
    cells = [(i, j) for j in range(kernel[0]) for i in range(kernel[1])]
    # Any point can stand in for a removed centre, with a weight of 0.
    order = [points.index(cell) if cell in points else 0 for cell in cells]
    order = [group * len(points) + p for group in range(groups) for p in order]
    weight = [[[float((i, j) in points) for i in range(kernel[1])] for j in range(kernel[0])]]
    offset = op.Transpose(offset, perm=[0, 3, 1, 2])
    offset = op.Gather(offset, [2 * p + xy for p in order for xy in (1, 0)], axis=1)
    if offset_scale != 1:
        # DeformConv adds the grid to s * (grid + offset) - grid.
        grid = [xy for cell in cells for xy in reversed(_from_center(cell, kernel, dilation))]
        shift = [[[(offset_scale - 1) * xy]] for xy in grid * groups]
        offset = op.Add(op.Mul(offset, offset_scale), _constant(shift))
    output = opset19.DeformConv(
        op.Transpose(input, perm=[0, 3, 1, 2]),
        _constant([weight] * channels),
        offset,
        _constant([0.0] * channels),  # TensorRT 10.1 reads no node with the bias left out
        op.Gather(op.Transpose(mask, perm=[0, 3, 1, 2]), order, axis=1),
        kernel_shape=kernel,
        strides=stride,
        pads=padding * 2,
        dilations=dilation,
        group=channels,
        offset_group=groups,
    )
    return op.Transpose(output, perm=[0, 2, 3, 1])


def _grid_sample(input, offset, mask, window, channels, groups, offset_scale, remove_center):
    """Sample K points for P output pixels, as ``(N*G, Cg, K, P)``, and add them up.

    GridSample counts positions from -1 to 1, the edges of the image: 2 * (x + 0.5) / W - 1.
    """
    kernel, stride, padding, dilation = window
    cells = kernel_points(kernel, remove_center)
    first = [d * (k - 1) // 2 - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    grid = [_from_center(cell, kernel, dilation) for cell in cells]
    grid = [[[offset_scale * x + first[1], offset_scale * y + first[0]]] for x, y in grid]
    out_size = op.Shape(offset, start=0, end=3)
    width = op.Gather(out_size, 2)
    offset = op.Reshape(offset, [0, -1, groups * len(cells), 2])
    pixels = op.Range(0, op.Gather(op.Shape(offset), 1), 1)
    pixels = [op.Unsqueeze(part, [1]) for part in (op.Mod(pixels, width), op.Div(pixels, width))]
    pixels = op.Cast(op.Concat(*pixels, axis=1), to=ir.DataType.FLOAT)  # (P, 2), x and y
    pixels = op.Mul(pixels, [float(stride[1]), float(stride[0])])
    size = op.Cast(op.Gather(op.Shape(input), [2, 1]), to=ir.DataType.FLOAT)  # W, H
    # Without the offsets, in (K, P, 2).
    grid = op.Div(op.Mul(op.Add(op.Add(_constant(grid), pixels), 0.5), 2.0), size)
    grid = op.Sub(grid, 1.0)
    offset = op.Reshape(op.Transpose(offset, perm=[0, 2, 1, 3]), [-1, len(cells), 0, 0])
    samples = op.GridSample(
        op.Reshape(op.Transpose(input, perm=[0, 3, 1, 2]), [-1, channels // groups, 0, 0]),
        op.Add(op.Mul(offset, op.Div(2.0 * offset_scale, size)), grid),
        mode='bilinear',
        padding_mode='zeros',
        align_corners=0,
    )
    mask = op.Reshape(mask, [0, 1, -1, groups * len(cells)])
    mask = op.Reshape(op.Transpose(mask, perm=[0, 1, 3, 2]), [-1, 1, len(cells), 0])
    output = op.ReduceSum(op.Mul(samples, mask), [2], keepdims=0)
    output = op.Transpose(op.Reshape(output, [-1, channels, 0]), perm=[0, 2, 1])
    return op.Reshape(output, op.Concat(out_size, op.Constant(value_ints=[channels]), axis=0))


def _from_center(cell, kernel, dilation):
    """Where a cell (column, row) of the kernel is, in pixels from its centre, as (x, y)."""
    i, j = cell
    return (
        i * dilation[1] - dilation[1] * (kernel[1] - 1) // 2,
        j * dilation[0] - dilation[0] * (kernel[0] - 1) // 2,
    )


def _constant(values):
    return op.Constant(value=ir.tensor(values, dtype=ir.DataType.FLOAT))
