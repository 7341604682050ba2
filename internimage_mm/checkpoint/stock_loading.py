"""Official checkpoints in the stock functions: inferencers, ``init_model``, mmengine's runner.

``DetInferencer``, ``init_detector``, ``MMSegInferencer``, ``init_model``, ``get_model`` and the
runner load a checkpoint through mmengine, which does not know the official names and does not mind
what is missing: the model would work with a random head. Two things, both process-wide, change that
for models whose ``backbone`` is one of ours, and for no other:

* :func:`register_loaders`, when the package is imported: mmengine's loaders of files and addresses
  are registered again (``CheckpointLoader.register_scheme``), as functions that call the former
  ones and note in the ``_metadata`` of the weights where they come from. They are needed before a
  model is built, because inferencers read the checkpoint first. For all models, they also read the
  config in official classification files, mmengine's training state and ``.safetensors``, and say
  in one line why a file cannot be read;
* :func:`watch_models_with`, when the first of our backbones is built: PyTorch calls a function of
  ours for each module that is given to another (``register_module_module_registration_hook``). A
  model that is given one of our backbones gets a hook before its ``load_state_dict``, which
  converts official names and, if the weights come from such a loader, checks that they fit. A
  backbone cannot do that alone: the heads' names are converted too, and it does not see them. The
  function stays, because PyTorch fails if it is removed while it runs, and nothing tells later.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from .allowed_types import ALLOWED
from .convert import convert
from .layouts import extract_state_dict
from .loading import fit_backbone, fit_state_dict, named_checkpoints
from .reader import check_names, read_checkpoint

_SOURCE = 'internimage_mm.source'
_backbones: set[type[nn.Module]] = set()


@functools.cache
def register_loaders() -> None:
    """Make mmengine note where weights come from."""
    from mmengine.runner.checkpoint import CheckpointLoader, load_from_http, load_from_local

    CheckpointLoader.register_scheme('', _noting_source(load_from_local), force=True)
    CheckpointLoader.register_scheme(
        ('http://', 'https://'), _noting_source(load_from_http), force=True
    )


def watch_models_with(backbone: nn.Module) -> None:
    """Let this backbone, and every model with one of its class, read official checkpoints.

    A model built from now on as the parent of such a backbone (attribute ``backbone``)

    * takes official names in ``load_state_dict``, from a file or not;
    * raises :class:`CheckpointError` when mmengine loads a file or an address into it that does not
      fit. In training, that is once ``init_weights`` of the backbone was called, only the backbone
      has to fit, and a warning lists what else does not.
    """
    if not _backbones:
        register_module_module_registration_hook(_watch)
    _backbones.add(type(backbone))
    backbone.register_load_state_dict_pre_hook(_before_backbone)


def _noting_source(load: Callable) -> Callable:
    @functools.wraps(load)  # mmengine logs the name
    def load_and_note(filename: str, map_location: Any = None, **kwargs: Any) -> dict:
        if str(filename).endswith('.safetensors'):
            checkpoint = read_checkpoint(filename, map_location)
        else:
            try:
                with torch.serialization.safe_globals(ALLOWED):
                    checkpoint = load(filename, map_location, **kwargs)
            except Exception:  # ours says in one line what is wrong
                checkpoint = read_checkpoint(filename, map_location)
        check_names(checkpoint, filename)
        if 'state_dict' not in checkpoint:
            return _with_source(checkpoint, filename)
        check_names(checkpoint['state_dict'], filename)
        return {**checkpoint, 'state_dict': _with_source(checkpoint['state_dict'], filename)}

    return load_and_note


def _with_source(state_dict: dict, source: str) -> OrderedDict:
    noted = OrderedDict(state_dict)
    metadata = dict(getattr(state_dict, '_metadata', {}))
    metadata[''] = {**metadata.get('', {}), _SOURCE: source}
    noted._metadata = metadata  # type: ignore[attr-defined]
    return noted


def _watch(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    if (
        name == 'backbone'
        and isinstance(child, tuple(_backbones))
        # Libraries set the backbone again when they replace its batch norms.
        and not getattr(parent, 'reads_official_checkpoints', False)
    ):
        parent.reads_official_checkpoints = True  # type: ignore[assignment]
        parent.register_load_state_dict_pre_hook(_before_load)


def _before_backbone(
    backbone: nn.Module, state_dict: dict, prefix: str, local_metadata: dict, *_: Any
) -> None:
    source = local_metadata.get(_SOURCE)
    if source is not None and not prefix:  # mmengine loads a file into the backbone itself
        weights = fit_backbone(extract_state_dict(state_dict, source), backbone, source)
        state_dict.clear()
        state_dict.update(weights)


def _before_load(
    model: nn.Module, state_dict: dict, prefix: str, local_metadata: dict, *_: Any
) -> None:
    if prefix:  # part of a larger model: a student, an average
        return
    backbone_is_init = getattr(model.backbone, 'is_init', False)
    source = local_metadata.get(_SOURCE)
    if source is None and backbone_is_init and not getattr(model, 'is_init', True):
        # mmengine is initialising the model. With a prefix in init_cfg it drops the note.
        source = next(
            (cfg['checkpoint'] for cfg in named_checkpoints(getattr(model, 'init_cfg', None))), None
        )
    if source is not None:
        weights = fit_state_dict(state_dict, model, source, heads_may_differ=backbone_is_init)
    else:
        conversion = convert(extract_state_dict(state_dict), 'ours')
        if not (conversion.rows or conversion.merged):
            return
        weights = conversion.state_dict
    state_dict.clear()
    state_dict.update(weights)
