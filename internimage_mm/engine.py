"""mmengine's runner with checkpoints that always fit, are read safely and survive a SIGKILL."""

import logging
import os
import os.path as osp
from collections import deque
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process, master_only
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from torch import nn

from .checkpoint import CheckpointError, fit_state_dict, read_checkpoint
from .cli import reports_model_errors

# One name for all: what a killed process leaves behind is overwritten by the next save.
_UNFINISHED = 'unfinished_checkpoint.tmp'


class InternImageRunner(Runner):
    """The runner of ``tools/train.py`` and ``tools/test.py``. It differs from mmengine's in that

    * checkpoints are read with the safe loader only, official ones are recognised and converted,
      and one that does not fit the model is an error, not a line in the log. With ``load_from`` in
      training the heads may differ (a warning lists them), the backbone may not;
    * a checkpoint is written under another name and renamed when complete, and an outdated one is
      removed after, not before its successor is there: at any moment the newest one is complete;
    * a mistake in the model's config is a :class:`~internimage_mm.cli.UserError`.
    """

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        with reports_model_errors():
            return super().build_model(model)

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        hooks = dict(hooks or {})
        checkpoint = dict(hooks.get('checkpoint') or dict(type='CheckpointHook', interval=1))
        if checkpoint['type'] == 'CheckpointHook':
            checkpoint['type'] = _SaveThenRemoveHook
        hooks['checkpoint'] = checkpoint
        super().register_default_hooks(hooks)

    def load_checkpoint(
        self, filename: str, map_location: Any = 'cpu', strict: bool = True, revise_keys: Any = ()
    ) -> dict:
        """Load a checkpoint into the model.

        ``strict`` and ``revise_keys`` are those of the base class and without effect: loading is
        always strict, and the layouts are recognised.

        Raises:
            CheckpointError: It cannot be read, or does not fit.
        """
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
        model.load_state_dict(checkpoint['state_dict'], strict=False)
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint

    @master_only
    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Save a checkpoint, in one step as seen from outside."""
        if '://' in out_dir:  # object stores show an object when it is complete
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        super().save_checkpoint(out_dir, _UNFINISHED, *args, **kwargs)
        os.replace(osp.join(out_dir, _UNFINISHED), osp.join(out_dir, filename))


class _SaveThenRemoveHook(CheckpointHook):
    """mmengine removes the outdated checkpoint first: with ``max_keep_ckpts=1`` there is then none
    while the next one is being written."""

    max_keep_ckpts: int
    keep_ckpt_ids: deque[int]

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        keep = self.max_keep_ckpts
        if keep <= 0:
            super()._save_checkpoint_with_step(runner, step, meta)
            return
        # The new checkpoint lists one more than are to be kept. If the process dies before the
        # outdated one is removed, the hook does so when the training is resumed.
        self.max_keep_ckpts, self.keep_ckpt_ids = keep + 1, deque(self.keep_ckpt_ids)
        try:
            super()._save_checkpoint_with_step(runner, step, meta)
        finally:
            self.max_keep_ckpts = keep
        while len(self.keep_ckpt_ids) > keep:
            outdated = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            if is_main_process():
                self._remove(self.file_backend.join_path(self.out_dir, outdated))
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # DeepSpeed's
            self.file_backend.rmtree(path)


def latest_checkpoint(work_dir: str) -> str | None:
    """The newest checkpoint of a training that can be read to its end.

    Args:
        work_dir: The folder of the training.

    Returns:
        Its path; None if the training has not saved any.

    Raises:
        CheckpointError: There are checkpoints, but none is complete.
    """
    folders = {Path(work_dir)}
    candidates = set()
    pointer = Path(work_dir, 'last_checkpoint')  # names a file elsewhere if the hook has an out_dir
    if pointer.is_file() and (target := pointer.read_text().strip()):
        candidates.add(Path(target))
        folders.add(Path(target).parent)
    for folder in folders:
        candidates.update(folder.glob('epoch_*.pth'), folder.glob('iter_*.pth'))
    candidates = {path for path in candidates if path.is_file()}
    errors = []
    for path in sorted(candidates, key=lambda p: p.stat().st_mtime_ns, reverse=True):
        try:
            read_checkpoint(str(path))
        except CheckpointError as error:
            print_log(f'{error}; trying the one before it', level=logging.WARNING)
            errors.append(str(error))
        else:
            return str(path)
    if errors:
        raise CheckpointError(f'{work_dir} has no complete checkpoint to resume from: {errors[0]}')
    return None
