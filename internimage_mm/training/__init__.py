"""The runner of the tools, and the checkpoints that it writes."""

from .model import build_model
from .resume import latest_checkpoint
from .runner import InternImageRunner

__all__ = ['InternImageRunner', 'build_model', 'latest_checkpoint']
