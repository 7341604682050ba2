"""Trains and evaluates a small InternImage detector and segmentor on generated data.

The steps are the commands that a user would type: make_mini_dataset.py, test.py, train.py, test.py.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from mmcv.ops import get_compiling_cuda_version
from rich.console import Console
from rich.table import Table

from internimage_mm.commands import UserError, load_config, reports_user_errors
from internimage_mm.training import InternImageRunner

MINI_DATASETS = ('all', '--out', 'data')
TOOLS = Path(__file__).resolve().parent
CONFIGS = TOOLS.parent / 'configs' / 'quickstart'


class Task(NamedTuple):
    name: str
    config: Path
    metrics: dict[str, tuple[str, float, float]]  # key: title, factor to a fraction, at least


TASKS = (
    Task(
        'detection',
        CONFIGS / 'mask-rcnn_internimage-nano_mini-coco.py',
        {
            'coco/bbox_mAP': ('Mask R-CNN, mini COCO val: box AP', 1.0, 0.50),
            'coco/segm_mAP': ('Mask R-CNN, mini COCO val: mask AP', 1.0, 0.45),
        },
    ),
    Task(
        'segmentation',
        CONFIGS / 'upernet_internimage-nano_mini-ade20k.py',
        {'mIoU': ('UPerNet, mini ADE20K val: mIoU', 0.01, 0.75)},
    ),
)


def run_tool(name: str, *arguments: object) -> None:
    command = [sys.executable, str(TOOLS / name), *map(str, arguments)]
    print(f'\n$ python tools/{name} {" ".join(command[2:])}', flush=True)
    if (code := subprocess.run(command).returncode) != 0:
        raise UserError(f'tools/{name} ended with exit code {code}; its output above says why')


def save_untrained(config: Path, path: Path) -> None:
    """Write a model with random weights as a checkpoint."""
    cfg = load_config(str(config), work_dir=str(path.parent))
    cfg.log_level = 'WARNING'
    runner = InternImageRunner.from_cfg(cfg)
    torch.save({'state_dict': runner.model.state_dict(), 'meta': {}}, path)


def evaluate(task: Task, checkpoint: Path, work_dir: Path, *options: object) -> dict[str, float]:
    """Run tools/test.py and return the metrics that it wrote."""
    run_tool('test.py', task.config, checkpoint, '--work-dir', work_dir, *options)
    (report,) = work_dir.glob('*/*.json')
    return json.loads(report.read_text())


@reports_user_errors
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'))
    args = parser.parse_args(argv)
    started = time.monotonic()
    if torch.cuda.is_available() and get_compiling_cuda_version() == 'not available':
        print('mmcv has no CUDA operators, which detectors need: the demo runs on the CPU')
        os.environ['CUDA_VISIBLE_DEVICES'] = ''

    run_tool('make_mini_dataset.py', *MINI_DATASETS)
    table = Table('model, data: metric', 'before training', 'after', 'expected at least')
    pictures, missed = [], []
    for task in TASKS:
        folder = args.work_dir / task.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        untrained = folder / 'untrained.pth'
        save_untrained(task.config, untrained)
        before = evaluate(task, untrained, folder / 'test_before')
        run_tool('train.py', task.config, '--work-dir', folder / 'train')
        trained = Path((folder / 'train' / 'last_checkpoint').read_text())
        pictures.append(folder / 'pictures')
        after = evaluate(task, trained, folder / 'test_after', '--show-dir', pictures[-1])
        for key, (title, factor, least) in task.metrics.items():
            values = before[key] * factor, after[key] * factor
            table.add_row(title, *(f'{value:.3f}' for value in values), f'{least:.2f}')
            if not values[1] >= least:
                missed.append(f'{title} is {values[1]:.3f}, expected at least {least:.2f}')

    Console(width=100).print('\n', table)
    print(f'{(time.monotonic() - started) / 60:.1f} minutes on {torch.get_num_threads()} threads')
    if missed:
        raise UserError('; '.join(missed))
    print(f'pictures, ground truth left and prediction right: {", ".join(map(str, pictures))}')


if __name__ == '__main__':
    main()
