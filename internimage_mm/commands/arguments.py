"""Arguments that several tools have."""

import argparse
import os
from typing import Any

from mmengine.config import DictAction

from ..errors import UserError

# Where a launcher notes which process this is.
_RANK = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}


class ConfigOptions(DictAction):
    """The action of ``--cfg-options``; a malformed setting is an error of usage, no traceback."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except (ValueError, AssertionError, SyntaxError) as error:
            parser.error(f'{option_string} takes KEY=VALUE pairs, got {" ".join(values)} ({error})')


def add_config_options(parser: argparse.ArgumentParser, example: str) -> None:
    """Add ``--cfg-options``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        metavar='KEY=VALUE',
        help=f'settings that override the config: {example}',
    )


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add ``--launcher`` and what the launchers add."""
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run are started',
    )
    # torch.distributed.launch passes the second form since PyTorch 2.0.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def check_launcher(args: argparse.Namespace) -> None:
    """Note the local rank for mmengine.

    Raises:
        UserError: The launcher has not started this process.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    rank = _RANK.get(args.launcher)
    if rank is not None and rank not in os.environ:
        raise UserError(
            f'--launcher {args.launcher}: it has not started this process, there is no {rank} in '
            'the environment; bash tools/dist_train.sh CONFIG 2 starts two with torchrun'
        )
