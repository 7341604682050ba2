"""Several processes, on GPUs or without any."""

from __future__ import annotations

import logging
import os
import subprocess
from datetime import timedelta

import torch.distributed
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from torch import nn

# Where a launcher says how many processes there are, which one this is, and which on its machine.
_WHERE = {
    'pytorch': ('WORLD_SIZE', 'RANK', 'LOCAL_RANK'),
    'slurm': ('SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}


def join_without_gpu(launcher: str, timeout: float | None = None, **_: object) -> None:
    """Join the processes that a launcher started on machines without GPU, by gloo.

    mmengine joins those that have a GPU each, and binds each of them to it.

    Args:
        launcher: ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        timeout: Seconds that a process waits for another one. Default: 30 minutes.
    """
    for name, source in zip(_WHERE['pytorch'], _WHERE[launcher], strict=True):
        os.environ[name] = os.environ[source]
    os.environ.setdefault('MASTER_PORT', '29500')
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        hosts = ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']]
        os.environ['MASTER_ADDR'] = subprocess.check_output(hosts, text=True).split()[0]
    torch.distributed.init_process_group(
        'gloo', timeout=None if timeout is None else timedelta(seconds=timeout)
    )


def without_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Batch norm in place of every SyncBN, which PyTorch has for GPUs only. Warns once if any."""
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        print_log(
            f'SyncBN needs a GPU: on {get_device()}, batch norm takes its place, and each '
            'process has the statistics of its own images',
            logger='current',
            level=logging.WARNING,
        )
    return revert_sync_batchnorm(model)
