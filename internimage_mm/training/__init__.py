"""The runner of the tools, and the checkpoints that it writes."""

from .amp import enable_amp
from .compilation import CompileBlocksHook
from .model import build_model
from .resume import latest_checkpoint
from .runner import InternImageRunner
from .sharding import check_sharding

__all__ = [
    'CompileBlocksHook',
    'InternImageRunner',
    'build_model',
    'check_sharding',
    'enable_amp',
    'latest_checkpoint',
]
