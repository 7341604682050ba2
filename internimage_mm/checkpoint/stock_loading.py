"""Official checkpoints in the stock functions: inferencers, ``init_model``, mmengine's runner.

``DetInferencer``, ``init_detector``, ``MMSegInferencer``, ``init_model``, ``get_model`` and the
runner load a checkpoint through mmengine, which does not know the official names and does not mind
what is missing: the model would work with a random head. Two public hooks change that for models
whose ``backbone`` is one of ours, and for no other:

* mmengine's loaders for files and addresses (``CheckpointLoader.register_scheme``) note in the
  ``_metadata`` of the weights where they come from. Besides, they read the config in official
  classification files and ``.safetensors``;
* a model that is given one of our backbones (``register_module_module_registration_hook`` of
  PyTorch) gets a hook before its ``load_state_dict``, which converts official names and, if the
  weights come from such a loader, checks that they fit.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from .convert import convert
from .layouts import extract_state_dict
from .loading import fit_state_dict
from .reader import ALLOWED, read_checkpoint

_SOURCE = 'internimage_mm.source'
_backbones: set[type[nn.Module]] = set()


def support_stock_loading(*backbones: type[nn.Module]) -> None:
    """Let every model with one of these backbones read official checkpoints in stock functions.

    A model built from now on as the parent of such a backbone (attribute ``backbone``)

    * takes official names in ``load_state_dict``, from a file or not;
    * raises :class:`CheckpointError` when mmengine loads a file or an address into it that does not
      fit. In training, that is once ``init_weights`` was called, only the backbone has to fit, and
      a warning lists what else does not.

    Args:
        *backbones: Classes of backbones.
    """
    if not _backbones:
        register_module_module_registration_hook(_watch)
        for prefix in ('', 'http://', 'https://'):
            load = CheckpointLoader._schemes[prefix]
            CheckpointLoader.register_scheme(prefix, _noting_source(load), force=True)
    _backbones.update(backbones)


def _noting_source(load: Callable) -> Callable:
    def load_and_note(filename: str, *args: Any, **kwargs: Any) -> Any:
        if str(filename).endswith('.safetensors'):
            checkpoint = read_checkpoint(filename)
        else:
            with torch.serialization.safe_globals(ALLOWED):
                checkpoint = load(filename, *args, **kwargs)
        if not isinstance(checkpoint, dict):
            return checkpoint
        if 'state_dict' not in checkpoint:
            return _with_source(checkpoint, filename)
        return {**checkpoint, 'state_dict': _with_source(checkpoint['state_dict'], filename)}

    load_and_note.__name__ = load.__name__  # mmengine logs it
    return load_and_note


def _with_source(state_dict: dict, source: str) -> OrderedDict:
    noted = OrderedDict(state_dict)
    metadata = dict(getattr(state_dict, '_metadata', {}))
    metadata[''] = {**metadata.get('', {}), _SOURCE: source}
    noted._metadata = metadata  # type: ignore[attr-defined]
    return noted


def _watch(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    if name == 'backbone' and isinstance(child, tuple(_backbones)):
        hooks = parent._load_state_dict_pre_hooks.values()
        if not any(getattr(hook, 'hook', None) is _before_load for hook in hooks):
            parent.register_load_state_dict_pre_hook(_before_load)


def _before_load(
    model: nn.Module, state_dict: dict, prefix: str, local_metadata: dict, *_: Any
) -> None:
    if prefix:  # part of a larger model: a student, an average
        return
    source = local_metadata.get(_SOURCE)
    if source is not None:
        in_training = getattr(model, 'is_init', False) or hasattr(model, '_params_init_info')
        weights = fit_state_dict(state_dict, model, source, heads_may_differ=in_training)
    else:
        conversion = convert(extract_state_dict(state_dict), 'ours')
        if not (conversion.renamed or conversion.merged):
            return
        weights = conversion.state_dict
    state_dict.clear()
    state_dict.update(weights)
