"""Reading, recognising and loading checkpoints, official ones included.

* :mod:`.reader`: any file or address to the object it holds, with PyTorch's safe loader only.
* :mod:`.layouts`: that object to a flat state dict.
* :mod:`.names`, :mod:`.convert`: official names to those of our models, and back.
* :mod:`.file_conversion`: the same on disk.
* :mod:`.loading`: does the state dict fit the model, and a clear error where it does not.
* :mod:`.stock_loading`: the same for mmengine's own loading functions and the inferencers.
"""

from .convert import convert_official, convert_to_official
from .file_conversion import convert_file
from .layouts import extract_state_dict
from .loading import (
    fit_state_dict,
    initialize_strictly,
    load_backbone,
    named_checkpoints,
)
from .reader import CheckpointError, CheckpointNotFoundError, read_checkpoint
from .stock_loading import register_loaders, watch_models_with

__all__ = [
    'CheckpointError',
    'CheckpointNotFoundError',
    'convert_file',
    'convert_official',
    'convert_to_official',
    'extract_state_dict',
    'fit_state_dict',
    'initialize_strictly',
    'load_backbone',
    'named_checkpoints',
    'read_checkpoint',
    'register_loaders',
    'watch_models_with',
]
