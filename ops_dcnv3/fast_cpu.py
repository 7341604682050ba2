"""How linear layers and MLPs run fastest on a CPU: everything about processors is in this file.

The functions here compute what the plain layers compute, up to rounding. One switch turns all of
it off: :func:`set_fast_cpu`, :func:`use_fast_cpu` or ``OPS_DCNV3_FAST_CPU=0``.

Some of what is needed here has no public name in PyTorch. Private names are used in this file
only, and each is tried on import: if one is missing or behaves differently, the plain layers run,
and :func:`explain_fast_cpu` says why.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

_OFF_IN_ENVIRONMENT = os.environ.get('OPS_DCNV3_FAST_CPU') == '0'
# A plain global, because torch.compile can trace and guard it.
_enabled = not _OFF_IN_ENVIRONMENT


def set_fast_cpu(enabled: bool) -> None:
    """Turn the fast CPU paths on or off, for all layers of this process."""
    global _enabled
    _enabled = enabled


@contextlib.contextmanager
def use_fast_cpu(enabled: bool) -> Iterator[None]:
    """Like :func:`set_fast_cpu`, while the context is open."""
    previous = _enabled
    set_fast_cpu(enabled)
    try:
        yield
    finally:
        set_fast_cpu(previous)


def explain_fast_cpu() -> str:
    """Say whether the fast paths are on and, if not, why."""
    if _MISSING:
        return f'fast CPU layers: off, because {_MISSING}'
    if not _enabled:
        source = 'OPS_DCNV3_FAST_CPU=0' if _OFF_IN_ENVIRONMENT else 'set_fast_cpu(False)'
        return f'fast CPU layers: off ({source})'
    for library in (torch.backends.mkldnn, torch.backends.mkl):
        if not library.is_available():
            name = library.__name__.rpartition('.')[2]
            return f'fast CPU layers: on, without convolutions: this PyTorch has no {name}'
    return 'fast CPU layers: on'


# ---- private names of PyTorch -------------------------------------------------------------------

_HOOKS = [f'{kind}_hooks' for kind in ('_forward_pre', '_forward', '_backward_pre', '_backward')]


def _has_hooks(module: nn.Module) -> bool:
    """Whether ``module`` has hooks of any kind, or its ``forward`` was patched."""
    return (
        'forward' in module.__dict__
        or any(getattr(module, hooks) for hooks in _HOOKS)
        or any(getattr(nn.modules.module, f'_global{hooks}') for hooks in _HOOKS)
    )


def _in_transform() -> bool:
    """Whether a transform of torch.func is running (vmap rejects some in-place sums)."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _is_watched() -> bool:
    """Whether operators are observed (to count FLOPs, say) or forward derivatives are computed."""
    return torch._C._len_torch_dispatch_stack() > 0 or forward_ad._current_level >= 0


def _convolve_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``gelu(conv2d(x, weight, bias))``, which saves a pass over memory."""
    # The operator that torch.compile calls.
    run: Any = torch.ops.mkldnn._convolution_pointwise
    return run(x, weight, bias, (0, 0), (1, 1), (1, 1), 1, 'gelu', (), 'none')


def _probe_hooks() -> bool:
    module = nn.Identity()
    before = _has_hooks(module)
    removable = [
        module.register_forward_pre_hook(lambda *_: None),
        module.register_forward_hook(lambda *_: None),
        module.register_full_backward_pre_hook(lambda *_: None),
        module.register_full_backward_hook(lambda *_: None),
    ]
    found = []
    for handle in removable:
        found.append(_has_hooks(module))
        handle.remove()
    with nn.modules.module.register_module_forward_hook(lambda *_: None):
        found.append(_has_hooks(module))
    return all(found) and _has_hooks(module) == before


def _probe_transforms() -> bool:
    inside = []

    def ask(x: Tensor) -> Tensor:
        inside.append(_in_transform())
        return x

    torch.func.vmap(ask)(torch.zeros(1, device='cpu'))
    return inside == [True] and not _in_transform()


def _probe_watchers() -> bool:
    before = _is_watched()
    with TorchDispatchMode():
        mode = _is_watched()
    with forward_ad.dual_level():
        dual = _is_watched()
    return mode and dual and _is_watched() == before


def _probe_gelu() -> bool:
    if not torch.backends.mkldnn.is_available():
        return True  # never called
    x = torch.linspace(-3, 3, 32, device='cpu', dtype=torch.float32).view(1, 2, 4, 4)
    weight = torch.tensor([[1.0, 0.5], [-0.5, 2.0]], device='cpu', dtype=torch.float32)
    bias = torch.tensor([0.25, -1.0], device='cpu', dtype=torch.float32)
    with torch.no_grad():
        output = _convolve_gelu(x, weight[:, :, None, None], bias)
        truth = nn.functional.gelu(nn.functional.conv2d(x, weight[:, :, None, None], bias))
    return torch.allclose(output, truth, rtol=1e-5, atol=1e-5)


def _missing() -> str:
    """Say which private name of PyTorch is gone or has changed; empty if none."""
    probes: dict[str, Callable[[], bool]] = {
        'the hooks of a module': _probe_hooks,
        'the transforms that run': _probe_transforms,
        'the modes that watch operators': _probe_watchers,
        "oneDNN's convolution with GELU": _probe_gelu,
    }
    for what, probe in probes.items():
        try:
            problem = None if probe() else 'behaves otherwise'
        except Exception as error:  # whatever a later version raises
            problem = str(error).partition('\n')[0] or type(error).__name__
        if problem:
            return f'PyTorch {torch.__version__} does not tell about {what} as expected: {problem}'
    return ''


_MISSING = _missing()


# ---- linear layers ------------------------------------------------------------------------------


def _is_on(x: Tensor) -> bool:
    """Whether the fast paths apply to ``x``: on the CPU, without compiler, tracer or transform."""
    return (
        _enabled
        and not _MISSING
        and x.device.type == 'cpu'
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not _in_transform()
    )


def _is_plain_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether calling ``layer`` does nothing but ``linear(x, layer.weight, layer.bias)``.

    Not so if it was replaced or patched (adapters), has hooks, or has quantized, sparse or sharded
    weights.
    """
    return (
        type(layer) is nn.Linear
        and not _has_hooks(layer)
        and layer.bias is not None
        and layer.weight.layout is torch.strided
        and type(layer.weight) in (nn.Parameter, Tensor)
    )


# Fewest pixels for a convolution: with fewer, laying out its weights takes longer than it saves.
_CONVOLUTION_PIXELS = 1000


def _full_precision() -> bool:
    """Whether float32 matrix products are to be computed in float32."""
    try:
        return torch.get_float32_matmul_precision() == 'highest'
    except RuntimeError:  # something was set by the newer fp32_precision
        return False


def _runs_as_convolution(layer: nn.Module, x: Tensor) -> TypeGuard[nn.Linear]:
    """Whether ``layer(x)`` of ``(N, H, W, C)`` is faster as a 1x1 convolution.

    It is where PyTorch runs the convolution with oneDNN and the linear layer with MKL: in float32
    on the CPU, on several threads.
    """
    return (
        _is_on(x)
        and _is_plain_linear(layer)
        and x.dtype == layer.weight.dtype == layer.bias.dtype == torch.float32
        and layer.weight.device == x.device
        and x.shape[0] * x.shape[1] * x.shape[2] >= _CONVOLUTION_PIXELS
        and not torch.is_autocast_enabled('cpu')
        and torch.get_num_threads() > 1
        and _full_precision()
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )


def linear(layer: nn.Module, x: Tensor, act: nn.Module | None = None) -> Tensor:
    """``layer(x)`` of a channels-last map ``(N, H, W, C)``, or ``act(layer(x))``."""
    if not _runs_as_convolution(layer, x):
        output = layer(x)
        return output if act is None else act(output)
    x, weight, bias = x.permute(0, 3, 1, 2), layer.weight[:, :, None, None], layer.bias
    if act is not None and not torch.is_grad_enabled() and _is_exact_gelu(act):
        return _convolve_gelu(x, weight, bias).permute(0, 2, 3, 1)
    if torch.is_grad_enabled():
        # oneDNN would sum the gradient of a bias one by one, with tens of times the error.
        output = nn.functional.conv2d(x, weight)
        output += bias[:, None, None]
    else:
        output = nn.functional.conv2d(x, weight, bias)
    output = output.permute(0, 2, 3, 1)
    return output if act is None else act(output)


def _is_exact_gelu(act: nn.Module) -> bool:
    return (
        type(act) is nn.GELU
        and act.approximate == 'none'
        and not _has_hooks(act)
        and not _is_watched()
    )


# ---- MLPs ---------------------------------------------------------------------------------------

# Bytes of hidden features that an MLP computes at once in inference, per thread and in total.
# Tensors of more than 32 MiB are mapped again by glibc each time, and their page faults take longer
# than a GELU.
_MLP_PART, _LARGEST_MLP_PART = 4 * 2**20, 16 * 2**20


def in_parts(
    run: Callable[[Tensor], Tensor], x: Tensor, hidden_channels: int, layers: Iterable[nn.Module]
) -> Tensor:
    """``run(x)``, an MLP of ``layers`` on each pixel of ``(N, H, W, C)``; in inference in parts.

    This way the hidden features, several times as large as ``x``, are never in memory all at once.
    It is done only for large inputs, and only if no layer was replaced or can see the parts.
    """
    if (
        not _is_on(x)
        or torch.is_grad_enabled()
        or not all(_is_plain_linear(layer) or _is_elementwise(layer) for layer in layers)
    ):
        return run(x)
    hidden_bytes = x[..., 0].numel() * hidden_channels * x.element_size()
    parts = hidden_bytes // min(_MLP_PART * torch.get_num_threads(), _LARGEST_MLP_PART)
    if parts < 2:
        return run(x)
    rows = x.reshape(1, 1, -1, x.shape[-1])
    return torch.cat([run(part) for part in rows.tensor_split(parts, dim=2)], dim=2).view(x.shape)


def _is_elementwise(layer: nn.Module) -> bool:
    return not _has_hooks(layer) and (
        type(layer).__module__ == 'torch.nn.modules.activation'
        or (type(layer) is nn.Dropout and not layer.training)
    )


# ---- layout -------------------------------------------------------------------------------------

# PyTorch transposes a matrix in blocks, on one thread, and copies tensors of more dimensions one
# element at a time, on all threads. The first is faster on few threads.
_MATRIX_THREADS = 4


def channels_first(x: Tensor) -> Tensor:
    """Copy ``(N, H, W, C)`` to ``(N, C, H, W)``."""
    if not _is_on(x) or torch.is_grad_enabled() or torch.get_num_threads() > _MATRIX_THREADS:
        return x.permute(0, 3, 1, 2).contiguous()
    output = x.new_empty(x.shape[0], x.shape[3], x.shape[1] * x.shape[2])
    for matrix, image in zip(output, x, strict=True):
        matrix.copy_(image.flatten(0, 1).t())
    return output.unflatten(2, x.shape[1:3])
