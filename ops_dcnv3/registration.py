"""The operators ``ops_dcnv3::forward`` and ``ops_dcnv3::backward`` of ``torch.library``.

Schema, fake kernels and autograd are defined here, in Python, so that they exist without the
compiled extension. The extension adds the CPU kernels when it is imported (``backends.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .geometry import output_size

_OPTIONS = (
    'SymInt[2] kernel_size, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, '
    'SymInt groups, float offset_scale, bool remove_center, bool mask_is_logits'
)

torch.library.define(
    'ops_dcnv3::forward', f'(Tensor input, Tensor offset, Tensor mask, {_OPTIONS}) -> Tensor'
)
torch.library.define(
    'ops_dcnv3::backward',
    f'(Tensor grad_output, Tensor input, Tensor offset, Tensor mask, {_OPTIONS})'
    ' -> (Tensor, Tensor, Tensor)',
)


@torch.library.register_fake('ops_dcnv3::forward')
def _forward_fake(input, offset, mask, kernel_size, stride, padding, dilation, *_options):
    batch, height, width, channels = input.shape
    size = output_size(height, width, kernel_size, stride, padding, dilation)
    return input.new_empty(batch, *size, channels)


@torch.library.register_fake('ops_dcnv3::backward')
def _backward_fake(grad_output, input, offset, mask, *_options):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (input, offset, mask))


def _setup_context(ctx, inputs, output):
    input, offset, mask, *ctx.options = inputs
    ctx.save_for_backward(input, offset, mask)


def _backward(ctx, grad_output: Tensor):
    grads = torch.ops.ops_dcnv3.backward(grad_output, *ctx.saved_tensors, *ctx.options)
    needed = ctx.needs_input_grad[:3]
    return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), *(
        None for _ in ctx.options
    )


def _no_double_backward(ctx, *_grads):
    raise RuntimeError(
        'dcnv3 has no second derivative: its backward cannot be differentiated '
        "(create_graph=True). Use backend='reference' where a double backward is needed."
    )


torch.library.register_autograd('ops_dcnv3::forward', _backward, setup_context=_setup_context)
torch.library.register_autograd('ops_dcnv3::backward', _no_double_backward)
