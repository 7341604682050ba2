"""Let OpenVINO read an ONNX file with DCNv3: it has ``DeformConv`` under another name.

``openvino.convert_model('model.onnx', extension=deform_conv())`` returns a model of OpenVINO's own
operations. Once saved, it can be read without this package.
"""

from __future__ import annotations

from typing import Any

try:
    from openvino import opset8 as op
    from openvino.frontend.onnx import ConversionExtension
except ImportError as error:
    raise ImportError(
        f'ops_dcnv3.openvino needs openvino ("pip install internimage-mm[deploy]"): {error}'
    ) from error


def deform_conv() -> Any:
    """Return an extension that converts ``DeformConv`` to OpenVINO's operations."""
    return ConversionExtension('DeformConv', _convert)


def _convert(node: Any) -> list[Any]:
    input, weight, offset, bias, mask = (node.get_input(i) for i in range(5))
    pads = node.get_attribute('pads')
    output = op.deformable_convolution(
        input,
        offset,
        weight,
        strides=node.get_attribute('strides'),
        pads_begin=pads[:2],
        pads_end=pads[2:],
        dilations=node.get_attribute('dilations'),
        mask=mask,
        group=node.get_attribute('group'),
        deformable_group=node.get_attribute('offset_group'),
        bilinear_interpolation_pad=True,  # corners outside the image are zero
    )
    if bias.get_node().get_type_name() != 'NullNode':
        output = op.add(output, op.reshape(bias, [1, -1, 1, 1], special_zero=False))
    return output.outputs()
