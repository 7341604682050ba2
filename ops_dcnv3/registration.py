"""The operators of ``torch.library``: ``ops_dcnv3::forward`` and ``backward``, and Triton's.

Schemas and fake kernels are defined here, in Python. The compiled extension adds the CPU kernels
and autograd when it is imported (``backends.py``), and the CUDA extension its kernels.

``triton_forward`` and ``triton_backward`` are the same operators computed by Triton, with autograd
in Python, because they do without the extensions. They have names of their own, because a name and
a device have one kernel for the whole process: with them both can be called side by side, and a
compiled or exported graph says which one it runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .geometry import output_size, pairs

_OPTIONS = 'int[8] window, int groups, float offset_scale, bool remove_center, bool mask_is_logits'


def _forward_fake(input, offset, mask, window, *_options):
    batch, height, width, channels = input.shape
    size = output_size(height, width, *pairs(window))
    return input.new_empty(batch, *size, channels)


def _backward_fake(grad_output, input, offset, mask, *_options):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (input, offset, mask))


def _setup_context(ctx, inputs, output):
    input, offset, mask, *ctx.options = inputs
    ctx.save_for_backward(input, offset, mask)


def _triton_differentiate(ctx, grad_output: Tensor):
    grads = torch.ops.ops_dcnv3.triton_backward(grad_output, *ctx.saved_tensors, *ctx.options)
    needed = ctx.needs_input_grad[:3]
    return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), *(
        None for _ in ctx.options
    )


def _no_double_backward(ctx, *_grads):
    raise RuntimeError(
        'dcnv3 has no second derivative: its backward cannot be differentiated '
        "(create_graph=True). Use backend='reference' where a double backward is needed."
    )


def _define(forward: str, backward: str) -> None:
    torch.library.define(
        forward, f'(Tensor input, Tensor offset, Tensor mask, {_OPTIONS}) -> Tensor'
    )
    torch.library.define(
        backward,
        f'(Tensor grad_output, Tensor input, Tensor offset, Tensor mask, {_OPTIONS})'
        ' -> (Tensor, Tensor, Tensor)',
    )
    torch.library.register_fake(forward, _forward_fake)
    torch.library.register_fake(backward, _backward_fake)


_define('ops_dcnv3::forward', 'ops_dcnv3::backward')
_define('ops_dcnv3::triton_forward', 'ops_dcnv3::triton_backward')
torch.library.register_autograd(
    'ops_dcnv3::triton_forward', _triton_differentiate, setup_context=_setup_context
)
torch.library.register_autograd('ops_dcnv3::triton_backward', _no_double_backward)


# triton is imported by the first call, not with this package: it takes a while.
@torch.library.impl('ops_dcnv3::triton_forward', ('cpu', 'cuda'))
def _triton_forward(*args):
    from . import triton_kernels

    return triton_kernels.forward(*args)


@torch.library.impl('ops_dcnv3::triton_backward', ('cpu', 'cuda'))
def _triton_backward(*args):
    from . import triton_kernels

    return triton_kernels.backward(*args)
