"""Checkpoints of a training from which it can always be resumed."""

import logging
import zipfile
from collections import deque
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..checkpoint import CheckpointError


class SaveThenRemoveHook(CheckpointHook):
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
            path = self.file_backend.join_path(self.out_dir, outdated)
            if is_main_process() and self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif is_main_process() and self.file_backend.isdir(path):  # of a sharded training
                self.file_backend.rmtree(path)
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))


def latest_checkpoint(work_dir: str) -> str | None:
    """The newest complete checkpoint of a training. None is loaded.

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
    candidates = {path for path in candidates if path.exists()}
    incomplete = []
    for path in sorted(candidates, key=lambda p: p.stat().st_mtime_ns, reverse=True):
        # PyTorch writes a zip file, whose table of contents comes last. The folder of a sharded
        # training gets its name when it is complete.
        if path.is_dir() or zipfile.is_zipfile(path):
            return str(path)
        print_log(f'{path} is truncated; trying the one before it', level=logging.WARNING)
        incomplete.append(path)
    if incomplete:
        raise CheckpointError(
            f'{work_dir} has no complete checkpoint to resume from: {incomplete[0]} is truncated'
        )
    return None
