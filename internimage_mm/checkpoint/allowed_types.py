"""The types besides PyTorch's own that checkpoints may hold when we or mmengine read them.

``torch.load`` defaults to ``weights_only=True`` since PyTorch 2.6 and then refuses the log history
(``HistoryBuffer``, which holds NumPy arrays) in the ``message_hub`` of every checkpoint that
mmengine saves, so that mmengine 0.10.7 alone can neither resume nor test. Only types that carry
numbers and text are listed; object arrays are not.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from ..engine import HistoryBuffer


def _history_statistic(cls: type, name: str) -> Callable:
    """Stands in for ``getattr``, with which a pickled ``HistoryBuffer`` names its statistics."""
    if cls is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'getattr({cls!r}, {name!r}) in a checkpoint is refused')
    return getattr(cls, name)


# The element types of the arrays and scalars that training logs and data set metainfo hold.
_DTYPES = [
    type(np.dtype(name))
    for name in (
        *('bool', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64'),
        *('float16', 'float32', 'float64', 'str'),
    )
]
_MULTIARRAY = (np._core if hasattr(np, '_core') else np.core).multiarray

# Pairs of an object and its name, because the onedl loader removes the plain entries that it shares
# with us when it is done.
ALLOWED: list[Callable | tuple[Callable, str]] = [
    # The config in official classification checkpoints is a yacs node, a dict with attributes. It
    # comes out as an OrderedDict, and yacs need not be installed.
    (OrderedDict, 'yacs.config.CfgNode'),
    (HistoryBuffer, 'mmengine.logging.history_buffer.HistoryBuffer'),
    (_history_statistic, 'builtins.getattr'),
    (np.ndarray, 'numpy.ndarray'),
    (np.dtype, 'numpy.dtype'),
    *((dtype, f'{dtype.__module__}.{dtype.__qualname__}') for dtype in _DTYPES),
    # NumPy 1 and 2 pickle the same two functions under different names.
    *(
        (getattr(_MULTIARRAY, function), f'{package}.multiarray.{function}')
        for package in ('numpy.core', 'numpy._core')
        for function in ('_reconstruct', 'scalar')
    ),
]
