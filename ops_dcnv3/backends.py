"""The backends of the op and the choice between them.

A call uses the backend of, in this order: the argument ``backend=``, the context manager
:func:`use_backend`, the environment variable ``OPS_DCNV3_BACKEND`` (read once, at import), and
otherwise the first of :data:`BACKENDS` that can run.

To add a backend, write a file with functions ``forward`` and ``backward``, and an entry in
:data:`BACKENDS` with :func:`python_operator`; ``tests/ops`` then tests it with the others. Both
functions check their arguments with :func:`check_call` and :func:`check_like`. They run below
autograd, which records nothing there, so ``backward`` must compute the three gradients itself.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .reference import dcnv3_reference
from .registration import EXTENSION_ERROR, HAS_CUDA, python_operator
from .self_check import find_fault


class Backend(NamedTuple):
    """One implementation of the op."""

    call: Callable[..., Tensor]
    """Takes the arguments of the operator."""
    devices: tuple[str, ...]
    """The device types it supports; empty for all."""
    description: str
    obstacle: str | None = None
    """Why it cannot run in this installation."""
    automatic: bool = True
    """Whether it may be chosen automatically."""
    self_check: bool = False
    """Whether the first call on a device compares it with the reference backend."""
    deterministic: bool = True
    """Whether its backward runs under ``torch.use_deterministic_algorithms``."""

    def can_run(self, device: torch.device) -> tuple[bool, str]:
        """Return whether it can run on ``device``, and why or why not."""
        kind = device.type
        if self.devices:
            if kind not in self.devices and kind != 'meta':  # the operators give those their shapes
                wanted = ' and '.join(
                    'CPU' if name == 'cpu' else name.upper() for name in self.devices
                )
                return False, f'it computes {wanted} tensors, not {kind} ones'
            if kind == 'cuda' and not torch.cuda.is_available():
                return False, f'no GPU found (torch {torch.__version__} sees none)'
        return (True, self.description) if self.obstacle is None else (False, self.obstacle)


def _rebuild(reason: str, what: str, environment: str = '') -> str:
    return (
        f'{reason}; install {what} and run "{environment}pip install --no-build-isolation '
        '--force-reinstall --no-deps ." in the source folder of internimage-mm'
    )


_NO_CPU = EXTENSION_ERROR and (
    _rebuild(EXTENSION_ERROR, 'a C++20 compiler (g++ or clang++)')
    + f', or install its wheel for torch {torch.__version__}'
)
_NO_CUDA = _NO_CPU
if not (_NO_CPU or HAS_CUDA):
    _NO_CUDA = _rebuild(
        'the compiled extension has no CUDA kernels (it was built without nvcc or with a torch '
        'without CUDA)',
        f'the CUDA toolkit of torch {torch.version.cuda or "with CUDA"}',
        'OPS_DCNV3_CUDA=1 ',
    )
# Not imported here: that takes a while, and only tensors on a GPU need it.
_TRITON_FOUND = importlib.util.find_spec('triton') is not None
_INTERPRETS = os.environ.get('TRITON_INTERPRET', '0').lower() in ('1', 'true', 'on', 'yes')

BACKENDS: dict[str, Backend] = {
    'cpu': Backend(torch.ops.ops_dcnv3.forward.default, ('cpu',), 'compiled C++ kernels', _NO_CPU),
    'cuda': Backend(
        torch.ops.ops_dcnv3.forward.default,
        ('cuda',),
        'compiled CUDA kernels',
        _NO_CUDA,
        self_check=True,
    ),
    'triton': Backend(
        python_operator('triton', '.triton_kernels'),
        ('cuda', 'cpu') if _INTERPRETS else ('cuda',),
        "Triton's interpreter (TRITON_INTERPRET is set), for tests; very slow"
        if _INTERPRETS
        else 'Triton kernels, compiled by the first call',
        None if _TRITON_FOUND else 'triton is not installed ("pip install triton", on Linux)',
        automatic=not _INTERPRETS,
        self_check=not _INTERPRETS,
        deterministic=False,
    ),
    'reference': Backend(dcnv3_reference, (), 'plain PyTorch, any device and dtype; slow'),
}
"""All backends, fastest first."""


def _check_name(name: str | None, source: str) -> None:
    if name is not None and name not in BACKENDS:
        raise ValueError(f'{source} must be one of {", ".join(BACKENDS)}, got {name!r}')


_ENVIRONMENT = os.environ.get('OPS_DCNV3_BACKEND') or None
# A plain global, because torch.compile can trace and guard it (it cannot trace a ContextVar).
_context: str | None = None


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run every :func:`dcnv3` call of this process on backend ``name`` while the context is open.

    Args:
        name: A key of :data:`BACKENDS`; None returns to the automatic choice.

    Raises:
        ValueError: There is no such backend.
    """
    global _context
    _check_name(name, 'backend')
    previous, _context = _context, name
    try:
        yield
    finally:
        _context = previous


_SELF_CHECK = os.environ.get('OPS_DCNV3_SELF_CHECK') != '0'
# What was compared with the reference backend: (backend, device, dtype, deterministic).
_checked: set[tuple[str, torch.device, torch.dtype, bool]] = set()
# Why a backend is not used on devices of this type.
_faults: dict[tuple[str, str], str] = {}


def _can_run(name: str, device: torch.device) -> tuple[bool, str]:
    fault = _faults.get((name, device.type))
    return (False, fault) if fault else BACKENDS[name].can_run(device)


def _passes_self_check(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Compare a backend with the reference, once; warn and remember it if results are wrong."""
    backend = BACKENDS[name]
    if not (backend.self_check and _SELF_CHECK) or device.type not in backend.devices:
        return True
    # A graph may hold no calls but those of the model.
    if torch.compiler.is_compiling() or (
        device.type == 'cuda' and torch.cuda.is_current_stream_capturing()
    ):
        return True
    deterministic = torch.are_deterministic_algorithms_enabled()
    key = (name, device, dtype, deterministic)
    if key in _checked:
        return True
    fault = find_fault(
        backend.call, device, dtype, backward=backend.deterministic or not deterministic
    )
    if fault is None:
        _checked.add(key)
        return True
    _faults[name, device.type] = fault
    warnings.warn(
        f'dcnv3 does not use backend {name!r} on {device}: {fault}. Please report this with the '
        'output of "python -m internimage_mm.env" or ops_dcnv3.explain_backend(). '
        'OPS_DCNV3_SELF_CHECK=0 skips the check.',
        RuntimeWarning,
        stacklevel=5,
    )
    return False


def available_backends(device: torch.device | str = 'cpu') -> dict[str, tuple[bool, str]]:
    """Say for each backend, fastest first, whether it can run on ``device``, and why or why not.

    Returns:
        ``{name: (ok, reason)}``, for example
        ``{'cpu': (True, 'compiled C++ kernels'), 'reference': (True, ...)}``.
    """
    device = torch.device(device)
    return {name: _can_run(name, device) for name in BACKENDS}


def explain_backend(device: torch.device | str = 'cpu', backend: str | None = None) -> str:
    """Say which backend :func:`dcnv3` uses on ``device``, and for each why it can or cannot run."""
    device = torch.device(device)
    name, source = select_backend(device, backend)
    lines = [f'dcnv3 on {device} runs on backend {name!r} ({source})']
    for other, (ok, reason) in available_backends(device).items():
        lines.append(f'  {other}: {"can run" if ok else "cannot run"}: {reason}')
    return '\n'.join(lines)


def select_backend(device: torch.device, backend: str | None) -> tuple[str, str]:
    """Return the backend to use and what decided it.

    Raises:
        ValueError: Unknown backend name.
        RuntimeError: The requested backend cannot run on ``device``.
    """
    for name, source in (
        (backend, 'argument backend='),
        (_context, 'context manager use_backend()'),
        (_ENVIRONMENT, 'environment variable OPS_DCNV3_BACKEND'),
    ):
        if name is not None:
            _check_name(name, source)
            ok, reason = _can_run(name, device)
            if not ok:
                raise RuntimeError(f'backend {name!r} ({source}) cannot run on {device}: {reason}')
            return name, source
    for name, candidate in BACKENDS.items():
        if candidate.automatic and _can_run(name, device)[0]:
            return name, _AUTOMATIC
    raise AssertionError('the reference backend runs everywhere')


_AUTOMATIC = 'the fastest that can run'
_warned = False


def choose_backend(device: torch.device, dtype: torch.dtype, backend: str | None) -> Backend:
    """Choose the backend of a call, without those that fail the self-check on ``device``.

    Warns once if only the slow one is left.
    """
    global _warned
    # The usual case, without the cost of the checks below.
    cpu = BACKENDS['cpu']
    if (
        backend is _context is _ENVIRONMENT is cpu.obstacle is None
        and device.type == 'cpu'
        and not cpu.self_check
    ):
        return cpu
    name, source = select_backend(device, backend)
    while not _passes_self_check(name, device, dtype):
        name, source = select_backend(device, backend)
    if name != 'reference':
        return BACKENDS[name]
    if (
        torch.onnx.is_in_onnx_export()
        and torch.compiler.is_compiling()
        and f'{__package__}.onnx' in sys.modules
    ):
        return BACKENDS['cpu']  # the operator with a translation; only traced, so it need not run
    if source is _AUTOMATIC and not _warned:
        _warned = True
        warnings.warn(
            'dcnv3 falls back on its slow plain PyTorch backend.\n' + explain_backend(device),
            RuntimeWarning,
            stacklevel=4,
        )
    return BACKENDS[name]
