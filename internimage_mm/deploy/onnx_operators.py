"""The operators of :mod:`.det` in ONNX, for PyTorch's exporter; importing this registers them."""

from collections.abc import Sequence
from typing import Any

from onnxscript import opset18
from onnxscript.function_libs.torch_lib.registration import torch_op
from onnxscript.function_libs.torch_lib.tensor_typing import TTensor

op: Any = opset18  # its types know no Python constants


@torch_op('internimage_mm::nms', trace_only=True)
def nms(boxes, scores, threshold: float, max_boxes: int):
    selected = op.NonMaxSuppression(
        op.Unsqueeze(boxes, [0]), op.Unsqueeze(scores, [0, 1]), [max_boxes], [threshold], [0.0]
    )
    index = op.Gather(selected, 2, axis=1)
    padded = op.Pad(index, [0, max_boxes], op.Constant(value_int=-1))
    return op.Slice(padded, [0], [max_boxes])


@torch_op('internimage_mm::roi_align', trace_only=True)
def roi_align(
    maps: Sequence[TTensor], boxes, levels, scales: Sequence[float], size: int, samples: int
):
    features, order = [], []
    for level, (x, scale) in enumerate(zip(maps, scales, strict=True)):
        here = op.Reshape(op.NonZero(op.Equal(levels, level)), [-1])
        order.append(here)
        features.append(
            op.RoiAlign(
                x,
                op.Gather(boxes, here),
                op.Mul(here, 0),  # of image 0
                coordinate_transformation_mode='half_pixel',
                mode='avg',
                output_height=size,
                output_width=size,
                sampling_ratio=samples,
                spatial_scale=scale,
            )
        )
    # Back into the order of the boxes.
    places = op.ScatterElements(
        op.Mul(levels, 0),
        op.Concat(*order, axis=0),
        op.Range(0, op.Gather(op.Shape(levels), 0), 1),
        axis=0,
    )
    return op.Gather(op.Concat(*features, axis=0), places)
