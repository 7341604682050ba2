"""What today's PyTorch needs before the OpenMMLab stack works on it.

Everything here is additive (nothing is patched, no loader is made less safe), does nothing when the
package concerned is missing, and is done once, when ``internimage_mm`` is imported.
"""

import contextlib
import functools
import importlib.util
import pickle
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

# The element types of the arrays and scalars that training logs and data set metainfo hold.
_NUMPY_DTYPES = (
    *('bool', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64'),
    *('float16', 'float32', 'float64', 'str'),
)


@functools.cache
def apply() -> None:
    """Prepare PyTorch for mmengine checkpoints and for a torchvision without compiled operators."""
    allow_mmengine_checkpoints()
    define_torchvision_schemas()


def allow_mmengine_checkpoints() -> None:
    """Allow-list the types of a checkpoint that mmengine saves while training.

    ``torch.load`` defaults to ``weights_only=True`` since PyTorch 2.6 and then refuses the log
    history (``HistoryBuffer``, which holds NumPy arrays) in the ``message_hub`` of every
    checkpoint, so mmengine 0.10.7 can neither resume nor test what it saved. Only types that carry
    numbers and text are listed; object arrays are not.
    """
    multiarray = (np._core if hasattr(np, '_core') else np.core).multiarray
    # Entries are (object, name) pairs: the onedl loader removes the plain entries that it shares
    # with us when it is done. NumPy 1 and 2 pickle the same two functions under different names.
    allowed: list[Callable | tuple[Callable, str]] = [
        (HistoryBuffer, 'mmengine.logging.history_buffer.HistoryBuffer'),
        (_history_statistic, 'builtins.getattr'),
        (np.ndarray, 'numpy.ndarray'),
        (np.dtype, 'numpy.dtype'),
    ]
    for package in ('numpy.core', 'numpy._core'):
        allowed += [
            (multiarray._reconstruct, f'{package}.multiarray._reconstruct'),
            (multiarray.scalar, f'{package}.multiarray.scalar'),
        ]
    for name in _NUMPY_DTYPES:
        dtype_class = type(np.dtype(name))
        allowed.append((dtype_class, f'{dtype_class.__module__}.{dtype_class.__qualname__}'))
    torch.serialization.add_safe_globals(allowed)


def _history_statistic(cls: type, name: str) -> Callable:
    """Stands in for ``getattr``, with which a pickled ``HistoryBuffer`` names its statistics."""
    if cls is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'getattr({cls!r}, {name!r}) in a checkpoint is refused')
    return getattr(cls, name)


def define_torchvision_schemas() -> None:
    """Let ``import torchvision`` succeed where its compiled operators cannot load.

    The package index holds only CUDA builds of torchvision for Linux. Beside a CPU build of PyTorch
    its library does not load, which torchvision tolerates, except that it registers fake kernels
    for ``nms`` whose schema the library should have brought. mmpretrain imports torchvision, so
    without the two schemas classification does not start. The operators themselves stay
    unavailable.
    """
    package = importlib.util.find_spec('torchvision')
    if package is None or 'torchvision' in sys.modules:
        return
    library = PathFinder.find_spec('_C', package.submodule_search_locations)
    if library is not None:
        with contextlib.suppress(OSError):
            torch.ops.load_library(library.origin)
    for name in ('nms', 'qnms'):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(
                f'torchvision::{name}',
                '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor',
            )
