"""mmengine's runner with checkpoints that always fit, are read safely and survive a SIGKILL."""

import logging
import os.path as osp
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import CheckpointHook
from mmengine.logging import MMLogger
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS, DefaultScope
from mmengine.runner import BaseLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from ..checkpoint import CheckpointError, fit_state_dict, read_checkpoint
from ..output_file import renamed_when_complete
from .model import reports_model_errors
from .resume import SaveThenRemoveHook

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
    * a mistake in the model's config, or in COCO annotations, is a
      :class:`~internimage_mm.errors.UserError`.
    """

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(_is_for_the_screen)
        return logger

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        with reports_model_errors():
            return super().build_model(model)

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        scope = DefaultScope.get_current_instance()
        if isinstance(dataloader, dict) and scope is not None and scope.scope_name == 'mmdet':
            from ..det.annotations import check_categories

            dataset = check_categories(dataloader['dataset'])
            dataloader = {**dataloader, 'dataset': dataset}
        return Runner.build_dataloader(dataloader, seed, diff_rank_seed)

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        hooks = dict(hooks or {})
        checkpoint = hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
        kind = checkpoint.get('type') if isinstance(checkpoint, dict) else None
        if (HOOKS.get(kind) if isinstance(kind, str) else kind) is CheckpointHook:
            hooks['checkpoint'] = {**checkpoint, 'type': SaveThenRemoveHook}
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
        with renamed_when_complete(osp.join(out_dir, filename)) as unfinished:
            super().save_checkpoint(str(unfinished.parent), unfinished.name, *args, **kwargs)
