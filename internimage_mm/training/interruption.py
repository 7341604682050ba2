"""Ends a training in order: after SIGTERM, and when another process has died or hangs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import barrier, is_distributed
from mmengine.hooks import Hook
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..errors import UserError

_BATCHES_DONE = 'batches_done'


class SaveOnSigtermHook(Hook):
    """After SIGTERM, which schedulers send before they kill, saves a checkpoint and exits.

    All processes do so after the same iteration. They agree on it through ``group``, on the CPU.
    """

    priority = 'LOWEST'  # after the regular checkpoint

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self._pid = os.getpid()
        self._received = False

    def before_train(self, runner: Runner) -> None:
        signal.signal(signal.SIGTERM, self._receive)

    def after_train(self, runner: Runner) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        received = torch.tensor(int(self._received))
        if self.group is not None:
            dist.all_reduce(received, dist.ReduceOp.MAX, group=self.group)
        if not received:
            return
        # As many batches of the epoch are left out when it is resumed.
        runner.message_hub.update_info(_BATCHES_DONE, (batch_idx + 1, len(runner.train_dataloader)))
        name = f'iter_{runner.iter + 1}.pth'
        runner.save_checkpoint(runner.work_dir, name, by_epoch=False)
        barrier()  # a process that exits early makes torchrun end the others
        runner.logger.info(f'SIGTERM: saved {name}; --resume goes on from it')
        sys.exit(128 + signal.SIGTERM)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a data worker, which has inherited this function
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self._received = True


def start_worker(initialize: Callable[[int], None] | None, worker: int) -> None:
    """Starts a data worker in a process group of its own.

    ``torchrun``, ``timeout`` and others send SIGTERM to the whole group of the training, which
    could not save without its workers. They end with it.
    """
    if hasattr(os, 'setpgrp'):
        os.setpgrp()
    if initialize is not None:
        initialize(worker)


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's loop over epochs, which can be resumed in the middle of one.

    The batches that were done are read again and left out, as mmengine's loop over iterations does.
    """

    def run_epoch(self) -> None:
        done, length = self.runner.message_hub.pop_info(_BATCHES_DONE, (0, 0))
        self._left_out = done if length == len(self.dataloader) else 0
        super().run_epoch()

    def run_iter(self, idx: int, data_batch: Any) -> None:
        if idx >= self._left_out:
            super().run_iter(idx, data_batch)


@contextmanager
def names_missing_processes() -> Iterator[None]:
    """Say which processes hang or have died when communication with them fails."""
    # A group of its own: one in which an operation has failed takes no other.
    group = cpu_group()
    try:
        yield
    except RuntimeError as error:
        if group is None or not _is_of_communication(error):
            raise
        try:
            dist.monitored_barrier(group, timedelta(seconds=10), wait_all_ranks=True)
        except RuntimeError as missing:
            raise UserError(
                f'process {dist.get_rank()} waited in vain for another one: {missing}. Its own log '
                'says why if it has failed; --resume goes on from the last checkpoint'
            ) from error
        raise


def _is_of_communication(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or 'gloo' in str(error).lower()


def cpu_group(timeout: float | None = None) -> dist.ProcessGroup | None:
    """All processes as a group that communicates on the CPU; None if there is one only."""
    if not is_distributed():
        return None
    limit = None if timeout is None else timedelta(seconds=timeout)
    return dist.new_group(backend='gloo', timeout=limit)
