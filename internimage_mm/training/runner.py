"""mmengine's runner with checkpoints that always fit, are read safely and survive a SIGKILL."""

import logging
import os.path as osp
import shutil
from contextlib import ExitStack
from functools import partial
from typing import Any

from mmengine.device import get_device
from mmengine.dist import barrier, is_distributed, is_main_process, master_only
from mmengine.hooks import CheckpointHook
from mmengine.logging import MMLogger
from mmengine.model import BaseTTAModel, convert_sync_batchnorm, is_model_wrapper
from mmengine.registry import HOOKS, LOOPS, DefaultScope
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import nn
from torch.distributed import DistNetworkError
from torch.utils.data import DataLoader

from ..checkpoint import CheckpointError, fit_state_dict, read_checkpoint
from ..checkpoint.reader import TRAINING_STATE
from ..errors import UserError
from ..output_file import renamed_when_complete
from .amp import BFloat16OptimWrapper, keep_boxes_in_float32
from .distributed import join_without_gpu, without_sync_batchnorm
from .interruption import (
    ResumableEpochLoop,
    SaveOnSigtermHook,
    cpu_group,
    names_missing_processes,
    start_worker,
)
from .model import reports_model_errors
from .resume import SaveThenRemoveHook
from .sharding import (
    ShardingHook,
    load_sharded,
    load_weights,
    parameters_without_memory,
    replace_folder,
    save_sharded,
    shard_model,
    whole_weights,
)

# Hundreds of lines before the first iteration. The log file has them, the work dir the config.
_LONG = ('Config:\n', 'Hooks will be executed in the following order:\n')


def _is_for_the_screen(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_LONG)


class InternImageRunner(Runner):
    """The runner of ``tools/train.py`` and ``tools/test.py``. It differs from mmengine's in that

    * checkpoints are read with the safe loader only, official ones are recognised and converted,
      and one that does not fit the model is an error, not a line in the log. With ``load_from`` in
      training the heads may differ (a warning lists them), the backbone may not;
    * a checkpoint is written under another name and renamed when complete, and an outdated one is
      removed after, not before its successor is there: at any moment the newest one is complete;
    * several processes work on machines without GPU; ``shard=True`` in the config divides the
      model among them, and its checkpoints are then folders;
    * after SIGTERM it saves a checkpoint and exits, and it says which processes hang;
    * a mistake in the model's config, or in COCO annotations, is a
      :class:`~internimage_mm.errors.UserError`.
    """

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(_is_for_the_screen)
        return logger

    def setup_env(self, env_cfg: dict) -> None:
        dist_cfg = env_cfg.get('dist_cfg', {})
        try:
            if self.distributed and not is_distributed() and get_device() == 'cpu':
                join_without_gpu(self.launcher, **dist_cfg)
            super().setup_env(env_cfg)
        except DistNetworkError as error:
            raise UserError(
                f'the processes cannot join: {error}. MASTER_PORT=... sets another port'
            ) from error
        self._cpu_group = cpu_group(dist_cfg.get('timeout'))
        self._shard = bool(self.cfg.get('shard'))

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        with ExitStack() as stack:
            if self._shard and not is_main_process():
                stack.enter_context(parameters_without_memory())
            stack.enter_context(reports_model_errors())
            built = super().build_model(model)
        optim_wrapper = self.cfg.get('optim_wrapper') or {}
        if optim_wrapper.get('type') == BFloat16OptimWrapper.__name__:
            keep_boxes_in_float32(built)
        return built

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        if self._shard:
            if get_device() == 'cpu':
                model = without_sync_batchnorm(model)
            elif sync_bn := self.cfg.get('sync_bn'):
                model = convert_sync_batchnorm(model, sync_bn)
            return shard_model(model)
        if not any(x.requires_grad for x in model.parameters()):  # an exported one
            return model.to(get_device())
        if self.distributed and get_device() == 'cpu':
            model = without_sync_batchnorm(model)
            # mmengine would name the GPU of the process.
            model_wrapper_cfg = {
                'broadcast_buffers': False,
                'find_unused_parameters': self.cfg.get('find_unused_parameters', False),
                'device_ids': None,
                **(model_wrapper_cfg or {}),
            }
        return super().wrap_model(model_wrapper_cfg, model)

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        if isinstance(loop, dict):
            kind = loop.get('type', EpochBasedTrainLoop if loop.get('by_epoch') else None)
            if (LOOPS.get(kind) if isinstance(kind, str) else kind) is EpochBasedTrainLoop:
                loop = {**loop, 'type': ResumableEpochLoop}
                loop.pop('by_epoch', None)
        return super().build_train_loop(loop)

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        scope = DefaultScope.get_current_instance()
        if isinstance(dataloader, dict) and scope is not None and scope.scope_name == 'mmdet':
            from ..det.annotations import check_categories

            dataset = check_categories(dataloader['dataset'])
            dataloader = {**dataloader, 'dataset': dataset}
        loader = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        if isinstance(dataloader, dict):
            loader.worker_init_fn = partial(start_worker, loader.worker_init_fn)
        return loader

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        hooks = dict(hooks or {})
        checkpoint = hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
        kind = checkpoint.get('type') if isinstance(checkpoint, dict) else None
        if (HOOKS.get(kind) if isinstance(kind, str) else kind) is CheckpointHook:
            hooks['checkpoint'] = {**checkpoint, 'type': SaveThenRemoveHook}
        super().register_default_hooks(hooks)
        self.register_hook(SaveOnSigtermHook(self._cpu_group))
        if self._shard:
            self._sharding = ShardingHook()
            self.register_hook(self._sharding)

    def train(self) -> nn.Module:
        with names_missing_processes():
            model = super().train()
            if self._shard:  # the trained model as one ordinary file
                meta = dict(epoch=self.epoch, iter=self.iter)
                self.save_checkpoint(self.work_dir, 'final.pth', save_optimizer=False, meta=meta)
                barrier()  # a process that fails on its way out would make torchrun end the others
        return model

    def _init_model_weights(self) -> None:
        if not self._shard:  # else done before it was divided
            super()._init_model_weights()

    def load_checkpoint(
        self, filename: str, map_location: Any = 'cpu', strict: bool = True, revise_keys: Any = ()
    ) -> dict:
        """Load a checkpoint into the model.

        ``strict`` and ``revise_keys`` are those of the base class and without effect: loading is
        always strict, and the layouts are recognised.

        Raises:
            CheckpointError: It cannot be read, or does not fit.
        """
        if self._resume and osp.exists(filename) and self._shard != osp.isdir(filename):
            raise CheckpointError(
                f'{filename} cannot be resumed from: it was saved with'
                f'{"out" if self._shard else ""} --shard. Do the same, or start from its weights: '
                '--cfg-options load_from=...'
            )
        if self._resume and self._shard:
            checkpoint = load_sharded(filename, self.model, self.optim_wrapper.optimizer)
            self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
            return checkpoint
        checkpoint = read_checkpoint(filename, map_location, mmap=not self._resume)
        if self._resume and not {'meta', 'message_hub', 'optimizer'} <= checkpoint.keys():
            raise CheckpointError(
                f'{filename} cannot be resumed from: it has no training state, only '
                f'{", ".join(checkpoint)}. To start from its weights: --cfg-options load_from=...'
            )
        model = self.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        fine_tuning = isinstance(self._train_loop, BaseLoop) and not self._resume
        checkpoint['state_dict'] = fit_state_dict(checkpoint, model, filename, fine_tuning)
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        if self._shard:
            load_weights(model, checkpoint['state_dict'])
        else:
            model.load_state_dict(checkpoint['state_dict'], strict=False)
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint

    def save_checkpoint(
        self, out_dir: str, filename: str, *args: Any, save_optimizer: bool = True, **kwargs: Any
    ) -> None:
        """Save a checkpoint, in one step as seen from outside.

        With ``shard`` and the optimizer, it is a folder, which all processes have to see.
        """
        if not (self._shard and save_optimizer):
            if self._shard:
                self._sharding.weights = whole_weights(self.model)
            self._save_file(out_dir, filename, *args, save_optimizer=save_optimizer, **kwargs)
            return
        folder = osp.join(out_dir, f'{filename}.unfinished')
        if is_main_process():
            shutil.rmtree(folder, ignore_errors=True)
        barrier()
        try:
            save_sharded(folder, self.model, self.optim_wrapper.optimizer)
            self._sharding.weights = {}
            self._save_file(folder, TRAINING_STATE, *args, save_optimizer=False, **kwargs)
        except CheckpointError:  # a full disk, of which this is a part
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if is_main_process():
            replace_folder(folder, osp.join(out_dir, filename))
        barrier()

    @master_only
    def _save_file(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        if '://' in out_dir:  # object stores show an object when it is complete
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        path = osp.join(out_dir, filename)
        try:
            with renamed_when_complete(path) as unfinished:
                super().save_checkpoint(str(unfinished.parent), unfinished.name, *args, **kwargs)
        except OSError as error:
            raise CheckpointError(f'{path} cannot be written: {error}') from error
