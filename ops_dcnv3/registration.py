"""The operators of ``torch.library``.

``ops_dcnv3::forward`` and ``backward`` are declared by the compiled extension, with their autograd
and their kernels; where it is missing they are declared here, so that their names and types are the
same. Fake kernels are here for both.

A backend in Python has two operators of its own, with autograd in Python
(:func:`python_operator`): a name and a device have one kernel for the whole process, so backends
can be called side by side, and a compiled or exported graph says which one it runs.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .geometry import check_call, check_like

_TENSORS = 'Tensor input, Tensor offset, Tensor mask'
_OPTIONS = 'int[8] window, int groups, float offset_scale, bool remove_center, bool mask_is_logits'


def _load_extension() -> str | None:
    """Load the compiled kernels; return why they are missing, or None."""
    spec = importlib.util.find_spec('ops_dcnv3._C')
    if spec is None or spec.origin is None:
        return 'the compiled extension is not installed (it was built without a C++ compiler)'
    # Loading what was built for another torch may crash.
    built = re.search(rb'ops_dcnv3 for torch (\d+\.\d+)', Path(spec.origin).read_bytes())
    if built and built[1].decode() != '.'.join(torch.__version__.split('.')[:2]):
        return (
            f'the compiled extension is for torch {built[1].decode()}, '
            f'but torch {torch.__version__} is installed'
        )
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:
        reason = error.__cause__ or error
        return f'the compiled extension does not load with torch {torch.__version__}: {reason}'
    if not hasattr(torch.ops.ops_dcnv3, 'forward'):
        return 'the compiled extension is older than these sources'
    return None


def _forward_fake(input, offset, mask, *options):
    return input.new_empty(check_call(input, offset, mask, *options))


def _backward_fake(grad_output, input, offset, mask, *options):
    check_like('grad_output', grad_output, input, check_call(input, offset, mask, *options))
    return tuple(tensor.new_empty(tensor.shape) for tensor in (input, offset, mask))


def _define(forward: str, backward: str) -> None:
    torch.library.define(forward, f'({_TENSORS}, {_OPTIONS}) -> Tensor')
    torch.library.define(
        backward, f'(Tensor grad_output, {_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor)'
    )


def _register_fakes(forward: str, backward: str) -> None:
    torch.library.register_fake(forward, _forward_fake)
    torch.library.register_fake(backward, _backward_fake)


EXTENSION_ERROR = _load_extension()
"""Why there are no compiled kernels, or None."""
if EXTENSION_ERROR:
    _define('ops_dcnv3::forward', 'ops_dcnv3::backward')
_register_fakes('ops_dcnv3::forward', 'ops_dcnv3::backward')

HAS_CUDA = hasattr(torch.ops.ops_dcnv3, 'cuda_version')
"""Whether the extension has CUDA kernels."""


def _setup_context(ctx, inputs, output):
    input, offset, mask, *ctx.options = inputs
    ctx.save_for_backward(input, offset, mask)


def _no_double_backward(ctx, *_grads):
    raise RuntimeError(
        'dcnv3 has no second derivative: its backward cannot be differentiated '
        "(create_graph=True). Use backend='reference' where a double backward is needed."
    )


def python_operator(name: str, module: str) -> Callable[..., Tensor]:
    """Define ``ops_dcnv3::NAME_forward`` and ``NAME_backward``; return the call of the first.

    Args:
        name: Of the backend.
        module: Where in this package its functions ``forward`` and ``backward`` are, with the
            arguments of the operators. Imported by the first call.
    """
    forward, backward = f'ops_dcnv3::{name}_forward', f'ops_dcnv3::{name}_backward'
    _define(forward, backward)
    _register_fakes(forward, backward)

    def run_forward(*args):
        return importlib.import_module(module, __package__).forward(*args)

    def run_backward(*args):
        return importlib.import_module(module, __package__).backward(*args)

    torch.library.impl(forward, ('cpu', 'cuda'), run_forward)
    torch.library.impl(backward, ('cpu', 'cuda'), run_backward)
    forward_operator = getattr(torch.ops.ops_dcnv3, f'{name}_forward').default
    backward_operator = getattr(torch.ops.ops_dcnv3, f'{name}_backward').default

    def differentiate(ctx, grad_output: Tensor):
        grads = backward_operator(grad_output, *ctx.saved_tensors, *ctx.options)
        needed = ctx.needs_input_grad[:3]
        return *(grad if need else None for grad, need in zip(grads, needed, strict=True)), *(
            None for _ in ctx.options
        )

    torch.library.register_autograd(forward, differentiate, setup_context=_setup_context)
    torch.library.register_autograd(backward, _no_double_backward)

    def call(input: Tensor, offset: Tensor, mask: Tensor, *options) -> Tensor:
        # PyTorch would drop tangents silently; the compiled operators refuse them in C++.
        if not torch.compiler.is_compiling():
            tensors = input, offset, mask
            if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
                raise RuntimeError(
                    'dcnv3 has no forward-mode derivative (torch.func.jvp, forward_ad): '
                    "use backend='reference' where one is needed."
                )
        return forward_operator(input, offset, mask, *options)

    return call
