"""What the models take from mmengine, and stand-ins where it cannot be imported.

Without mmengine nothing is registered, ``init_weights`` keeps the weights of the constructor, and
messages go to the logger ``internimage_mm`` of the standard library.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ['MMENGINE_ERROR', 'MODELS', 'BaseModule', 'HistoryBuffer', 'print_log']

MMENGINE_ERROR: Exception | None = None
"""Why mmengine cannot be imported; None if it can."""

try:
    import mmengine.runner  # noqa: F401  the rest of the package needs it
    from mmengine.logging import HistoryBuffer, print_log
    from mmengine.model import BaseModule
    from mmengine.registry import MODELS
except Exception as error:  # a broken installation may raise anything
    MMENGINE_ERROR = error

    class HistoryBuffer:  # type: ignore[no-redef]
        """The log history in checkpoints, which nothing reads without mmengine."""

        min = max = mean = current = None

    class BaseModule(nn.Module):  # type: ignore[no-redef]
        """A module that keeps its ``init_cfg``, and the weights that its constructor made."""

        def __init__(self, init_cfg: Any = None) -> None:
            super().__init__()
            self.init_cfg = init_cfg
            self.is_init = False

        def init_weights(self) -> None:
            self.is_init = True

    class MODELS:  # type: ignore[no-redef]
        """A registry that registers nothing."""

        @staticmethod
        def register_module() -> Callable[[type], type]:
            return lambda cls: cls

    def print_log(message: str, logger: Any = None, level: int = logging.INFO) -> None:
        logging.getLogger('internimage_mm').log(level, message)
