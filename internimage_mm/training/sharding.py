"""Parameters, gradients and optimizer state divided among the processes (PyTorch's FSDP2)."""

from __future__ import annotations

import os
import os.path as osp
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.runner import Runner
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.optim import Optimizer

from ..backbones.internimage import Block, Stage
from ..checkpoint import CheckpointError, named_checkpoints, read_checkpoint
from ..checkpoint.reader import TRAINING_STATE
from ..errors import UserError

# Modules whose parameters are used in their forward() only. Those of other heads, which have more
# methods, are gathered with what remains of the model.
_CALLED_AS_A_WHOLE = ('neck', 'bbox_head', 'mask_head')


def check_sharding(cfg: Config) -> None:
    """Raise a :class:`UserError` if a config cannot be trained with ``shard``."""
    if cfg.get('launcher', 'none') == 'none':
        raise UserError(
            '--shard divides the model among several processes: bash tools/dist_train.sh CONFIG 8 '
            '--shard'
        )
    for hook in cfg.get('custom_hooks') or ():
        if 'EMA' in str(hook):
            raise UserError(
                f'--shard cannot average the weights (custom_hooks has {hook}): train without '
                '--shard, or add --cfg-options custom_hooks=[]'
            )
    if cfg.get('find_unused_parameters'):
        raise UserError(
            'find_unused_parameters is a setting of training without --shard, which needs none: '
            'add --cfg-options find_unused_parameters=False'
        )


@contextmanager
def parameters_without_memory() -> Iterator[None]:
    """Models that are built within have parameters of shape and type only (device ``meta``).

    Buffers have their values.
    """
    handle = register_module_parameter_registration_hook(_registered_without_memory)
    try:
        yield
    finally:
        handle.remove()


def _registered_without_memory(module: nn.Module, name: str, param: nn.Parameter) -> Any:
    return _to_meta(param)


def _to_meta(param: nn.Parameter) -> nn.Parameter:
    return param if param.is_meta else nn.Parameter(param.detach().to('meta'), param.requires_grad)


def shard_model(model: BaseModule) -> nn.Module:
    """Initialise a model and divide its parameters among all processes, in place.

    The main process has the whole model in the memory of the CPU until it is divided, no other
    process has.

    Args:
        model: Built as usual in the main process, and within :func:`parameters_without_memory` in
            the others.

    Returns:
        The model, on its device.
    """
    weights: dict[str, Any] = {}
    if is_main_process():
        model.init_weights()
        weights = model.state_dict()
        without_memory = {param: _to_meta(param) for param in model.parameters()}
        for module in model.modules():
            for name, param in list(module.named_parameters(recurse=False)):
                setattr(module, name, without_memory[param])
    else:
        # The main process does so in init_weights(), and waits for the others at each download.
        for entry in named_checkpoints(getattr(model.backbone, 'init_cfg', None)):
            read_checkpoint(entry['checkpoint'], mmap=True)
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(get_device()))
    mesh = init_device_mesh(get_device(), (torch.distributed.get_world_size(),))
    for name, module in reversed(list(model.named_modules())):  # parts before wholes
        if is_unit(name, module):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    with _without_warnings_of_torch():
        set_model_state_dict(model, weights, options=options)
    return model.to(get_device())


def is_unit(name: str, module: nn.Module) -> bool:
    *_, parent, last = ('', *name.split('.'))
    called = parent if last.isdigit() else last  # one head of several
    return isinstance(module, (Block, Stage)) or (
        isinstance(module, BaseModule)
        and (called in _CALLED_AS_A_WHOLE or parent == 'layers')
        and name != 'bbox_head'  # of a detector with one stage
    )


def load_weights(model: nn.Module, weights: dict[str, Any]) -> None:
    """Let each process take its part of whole tensors, which may lie in a file."""
    set_model_state_dict(
        model, weights, options=StateDictOptions(full_state_dict=True, strict=False)
    )


def whole_weights(model: nn.Module) -> dict[str, Any]:
    """The weights in the main process, on the CPU; an empty dict in the others."""
    return get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )


def save_sharded(folder: str, model: nn.Module, optimizer: Optimizer) -> None:
    """Write weights and optimizer state, each process its part.

    Raises:
        CheckpointError: It cannot be written.
    """
    weights, state = get_state_dict(model, optimizer)
    try:
        dcp.save({'state_dict': weights, 'optimizer': state}, checkpoint_id=folder)
    except (dcp.CheckpointException, OSError) as error:
        raise CheckpointError(f'{folder} cannot be written: {_reason(error)}') from error


def load_sharded(folder: str, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Read them back; the number of processes may be another one.

    Returns:
        The rest of the training state.

    Raises:
        CheckpointError: A file is missing or damaged, or the model is another one.
    """
    training_state = read_checkpoint(osp.join(folder, TRAINING_STATE))
    weights, state = get_state_dict(model, optimizer)
    try:
        saved = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
        if stepped := any(name.startswith('optimizer.state.') for name in saved):
            dcp.load({'state_dict': weights, 'optimizer': state}, checkpoint_id=folder)
        else:  # gradients were accumulated, and no step was made yet
            groups = {'param_groups': state['param_groups']}
            dcp.load({'state_dict': weights, 'optimizer': groups}, checkpoint_id=folder)
    except (dcp.CheckpointException, RuntimeError, OSError) as error:
        raise CheckpointError(f'{folder} cannot be resumed from: {_reason(error)}') from error
    with _without_warnings_of_torch():
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    if not stepped:
        optimizer.state.clear()
    return training_state


@contextmanager
def _without_warnings_of_torch() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', category=UserWarning, module='torch.distributed')
        yield


def _reason(error: BaseException) -> str:
    failures = getattr(error, 'failures', {})  # by process, each with its traceback
    first = next((failure[0] for failure in failures.values()), error)
    return (str(first) or type(first).__name__).strip().splitlines()[0]


def replace_folder(complete: str, target: str) -> None:
    """Give a complete folder its name. What had it before is removed after."""
    outdated = f'{complete}.outdated'
    shutil.rmtree(outdated, ignore_errors=True)
    if osp.lexists(target):
        os.replace(target, outdated)
    os.replace(complete, target)
    shutil.rmtree(outdated, ignore_errors=True)


class ShardingHook(Hook):
    """Gathers all parameters once for a validation, and puts whole weights into ordinary files.

    Images differ in the number of crops and of found objects, hence processes in the number of
    calls of a part; but a part is gathered by all processes at once.
    """

    priority = 'VERY_HIGH'  # other hooks see the whole weights

    def __init__(self) -> None:
        self.weights: dict[str, Any] = {}

    def before_val(self, runner: Runner) -> None:
        for module in _parts(runner.model):
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()

    def after_val(self, runner: Runner) -> None:
        for module in _parts(runner.model):
            module.reshard()
            if module is not runner.model:
                module.set_reshard_after_forward(True, recurse=False)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint['state_dict'], self.weights = self.weights, {}


def _parts(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
