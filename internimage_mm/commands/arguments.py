"""Arguments that several tools have."""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from mmengine.config import DictAction

from ..errors import UserError
from ..output_file import check_output

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


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, which :func:`chosen_device` reads."""
    parser.add_argument(
        '--device', help='e.g. cpu or cuda:0 (default: the first GPU if there is one)'
    )


def chosen_device(args: argparse.Namespace) -> str:
    """The device of ``--device``; by default the first GPU, else the CPU.

    Raises:
        UserError: PyTorch has no such device.
    """
    device = args.device or ('cuda:0' if torch.cuda.is_available() else 'cpu')
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise UserError(f'--device {device}: {str(error).splitlines()[0]}') from error
    return device


def check_figure(path: str, source: str | None = None) -> None:
    """Raise a :class:`UserError` if matplotlib cannot write a picture under this name.

    Args:
        path: The picture.
        source: As of :func:`check_output`.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    if Path(path).suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        raise UserError(f'--out {path} is not the name of an image file, such as out.png')
    check_output(path, source)


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
