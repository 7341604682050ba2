"""The backends of the op and the choice between them.

A backend is a pair: ``can_run(device) -> (ok, reason)`` and the call itself. The choice is, in this
order: the argument ``backend=``, the context manager :func:`use_backend`, the environment variable
``OPS_DCNV3_BACKEND`` (read once, at import), and else the first of :data:`BACKENDS` that can run.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import registration  # noqa: F401  defines torch.ops.ops_dcnv3
from .reference import dcnv3_reference


class Backend(NamedTuple):
    """One implementation: its predicate, and its call with the arguments of the operator."""

    can_run: Callable[[torch.device], tuple[bool, str]]
    call: Callable[..., Tensor]


def _load_extension(name: str, what: str, compiler: str) -> str | None:
    """Import compiled kernels; return why they are missing, or None."""
    try:
        importlib.import_module(f'ops_dcnv3.{name}')
    except ModuleNotFoundError:
        return f'the {what} is not installed (it was built without {compiler})'
    except (ImportError, OSError) as error:  # built for another torch, or of other sources
        return f'the {what} does not load beside torch {torch.__version__}: {error}'
    return None


def _autograd_error() -> str | None:
    """Return what is wrong if the operator has no derivative: its gradients would be None."""
    # torch has no public way to ask; an extension of an older source has no autograd.
    if torch._C._dispatch_has_kernel_for_dispatch_key('ops_dcnv3::forward', 'Autograd'):
        return None
    return 'the compiled extension is older than these sources'


_EXTENSION_ERROR = (
    _load_extension('_C', 'compiled extension', 'a C++ compiler') or _autograd_error()
)
_CUDA_ERROR = _load_extension('_C_cuda', 'CUDA extension', 'nvcc or with a torch without CUDA')
_REBUILD = (
    'install a C++20 compiler (g++ or clang++) and run '
    '"pip install --no-build-isolation --force-reinstall --no-deps ." in the source folder of '
    'internimage-mm'
)


def _cpu_can_run(device: torch.device) -> tuple[bool, str]:
    if device.type not in ('cpu', 'meta'):  # on meta tensors the operator gives shapes
        return False, f'it computes CPU tensors, not {device.type} ones'
    if _EXTENSION_ERROR:
        return False, f'{_EXTENSION_ERROR}; {_REBUILD}'
    return True, 'compiled C++ kernels'


def _no_gpu(device: torch.device) -> str | None:
    """Say so if ``device`` is a GPU and there is none; else return None."""
    if device.type == 'cuda' and not torch.cuda.is_available():
        return f'no GPU found (torch {torch.__version__} sees none)'
    return None


def _cuda_can_run(device: torch.device) -> tuple[bool, str]:
    if device.type not in ('cuda', 'meta'):
        return False, f'it computes CUDA tensors, not {device.type} ones'
    if missing := _no_gpu(device):
        return False, missing
    if _EXTENSION_ERROR:  # it has the autograd of these kernels too
        return False, f'{_EXTENSION_ERROR}; {_REBUILD}'
    if _CUDA_ERROR:
        return False, (
            f'{_CUDA_ERROR}; install the CUDA toolkit of torch {torch.version.cuda or "with CUDA"} '
            'and run "OPS_DCNV3_CUDA=1 pip install --no-build-isolation --force-reinstall '
            '--no-deps ." in the source folder of internimage-mm'
        )
    return True, 'compiled CUDA kernels'


# Not imported here: it takes a while, and only tensors on a GPU need it.
_TRITON_FOUND = importlib.util.find_spec('triton') is not None
_TRITON_INTERPRETS = os.environ.get('TRITON_INTERPRET', '0').lower() in ('1', 'true', 'on', 'yes')


def _triton_can_run(device: torch.device) -> tuple[bool, str]:
    if device.type == 'cpu' and not _TRITON_INTERPRETS:
        return False, 'it computes CUDA tensors (CPU ones in its interpreter, TRITON_INTERPRET=1)'
    if device.type not in ('cuda', 'cpu', 'meta'):
        return False, f'it computes CUDA tensors, not {device.type} ones'
    if missing := _no_gpu(device):
        return False, missing
    if not _TRITON_FOUND:
        return False, 'triton is not installed ("pip install triton", on Linux)'
    if _TRITON_INTERPRETS:
        return True, "Triton's interpreter (TRITON_INTERPRET is set), for tests; very slow"
    return True, 'Triton kernels, compiled by the first call'


def _reference_can_run(device: torch.device) -> tuple[bool, str]:
    return True, 'plain PyTorch, any device and dtype; slow'


BACKENDS: dict[str, Backend] = {
    'cpu': Backend(_cpu_can_run, torch.ops.ops_dcnv3.forward.default),
    'cuda': Backend(_cuda_can_run, torch.ops.ops_dcnv3.forward.default),
    'triton': Backend(_triton_can_run, torch.ops.ops_dcnv3.triton_forward.default),
    'reference': Backend(_reference_can_run, dcnv3_reference),
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
        name: ``'cpu'``, ``'cuda'``, ``'triton'`` or ``'reference'``; None returns to the automatic
            choice.

    Raises:
        ValueError: No such backend.
    """
    global _context
    _check_name(name, 'backend')
    previous, _context = _context, name
    try:
        yield
    finally:
        _context = previous


def available_backends(device: torch.device | str = 'cpu') -> dict[str, tuple[bool, str]]:
    """Tell for each backend, fastest first, whether it can compute tensors on ``device`` and why.

    Returns:
        ``{name: (ok, reason)}``, for example
        ``{'cpu': (True, 'compiled C++ kernels'), 'reference': (True, ...)}``.
    """
    device = torch.device(device)
    return {name: backend.can_run(device) for name, backend in BACKENDS.items()}


def explain_backend(device: torch.device | str = 'cpu', backend: str | None = None) -> str:
    """Say which backend :func:`dcnv3` takes on ``device``, and what keeps the others from it."""
    device = torch.device(device)
    name, source = select_backend(device, backend)
    lines = [f'dcnv3 on {device} runs on backend {name!r} ({source})']
    for other, (ok, reason) in available_backends(device).items():
        lines.append(f'  {other}: {"can run" if ok else "cannot run"}: {reason}')
    return '\n'.join(lines)


def select_backend(device: torch.device, backend: str | None) -> tuple[str, str]:
    """Return the backend to run and what decided it.

    Raises:
        ValueError: Unknown backend name.
        RuntimeError: The backend asked for cannot run on ``device``.
    """
    for name, source in (
        (backend, 'argument backend='),
        (_context, 'context manager use_backend()'),
        (_ENVIRONMENT, 'environment variable OPS_DCNV3_BACKEND'),
    ):
        if name is not None:
            _check_name(name, source)
            ok, reason = BACKENDS[name].can_run(device)
            if not ok:
                raise RuntimeError(f'backend {name!r} ({source}) cannot run on {device}: {reason}')
            return name, source
    for name, candidate in BACKENDS.items():
        if name == 'triton' and device.type != 'cuda':
            continue  # the interpreter is slower than all others
        if candidate.can_run(device)[0]:
            return name, 'the fastest that can run'
    raise AssertionError('the reference backend runs everywhere')


_CPU = torch.device('cpu')
_warned = False


def choose_backend(device: torch.device, backend: str | None) -> Backend:
    """Return the backend for tensors on ``device``; warn once where only the slow one is left.

    Raises:
        ValueError: Unknown backend name.
        RuntimeError: The backend asked for cannot run on ``device``.
    """
    global _warned
    # The usual case, without the time of all questions.
    if backend is _context is _ENVIRONMENT is _EXTENSION_ERROR is None and device == _CPU:
        return BACKENDS['cpu']
    name, source = select_backend(device, backend)
    if name == 'reference' and source == 'the fastest that can run' and not _warned:
        _warned = True
        warnings.warn(
            'dcnv3 falls back on its slow plain PyTorch backend.\n' + explain_backend(device),
            RuntimeWarning,
            stacklevel=4,
        )
    return BACKENDS[name]
