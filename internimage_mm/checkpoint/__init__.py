"""Reading, recognising and loading checkpoints, official ones included.

* :mod:`.reader`: any file or address to the object it holds, with PyTorch's safe loader only.
* :mod:`.layouts`: that object to a flat state dict in the names of our models.
* :mod:`.loading`: does the state dict fit the model, and a clear error where it does not.
"""

from .layouts import convert_official, extract_state_dict
from .loading import check_state_dict, fit_state_dict, load_backbone_checkpoint
from .reader import CheckpointError, CheckpointNotFoundError, read_checkpoint

__all__ = [
    'CheckpointError',
    'CheckpointNotFoundError',
    'check_state_dict',
    'convert_official',
    'extract_state_dict',
    'fit_state_dict',
    'load_backbone_checkpoint',
    'read_checkpoint',
]
