"""Says whether a training fits into the memory of GPUs, before it starts and on any machine."""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from internimage_mm.commands import UserError, add_config_options, load_config, reports_user_errors
from internimage_mm.training.memory import StepMemory, measure_step

GIB = 2**30
# The context of CUDA, NCCL's buffers, and what the allocator cannot use.
RESERVED = 2 * GIB
IMAGE = {'mmdet': (800, 1344)}
# --amp, with_cp: from the least on.
SETTINGS = ((False, False), (True, False), (False, True), (True, True))
Step = Callable[[bool, bool], StepMemory]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config',
        nargs='+',
        help='config file; with several, or several numbers for --gpus or --memory, a Markdown '
        'table is printed of the least setting for each',
    )
    parser.add_argument(
        '--gpus', type=int, nargs='+', default=[8], help='number of GPUs (default: 8)'
    )
    parser.add_argument(
        '--memory', type=float, nargs='+', default=[80], help='GiB of each (default: 80)'
    )
    parser.add_argument('--batch', type=int, help='images per GPU (default: of the config)')
    parser.add_argument(
        '--image',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='height and width (default: 800 1344 for detectors, else those of the config)',
    )
    add_config_options(parser, 'model.backbone.arch=small')
    args = parser.parse_args(argv)
    for name, values in (('gpus', args.gpus), ('memory', args.memory), ('batch', [args.batch])):
        for value in values:
            if value is not None and value <= 0:
                parser.error(f'--{name} must be positive, got {value}')
    return args


def image_size(cfg) -> tuple[int, int]:
    if size := IMAGE.get(cfg.get('default_scope')):
        return size
    if size := cfg.model.get('data_preprocessor', {}).get('size'):
        return tuple(size)
    for step in cfg.train_dataloader.dataset.pipeline:
        if step['type'] == 'RandomResizedCrop':
            scale = step['scale']
            return (scale, scale) if isinstance(scale, int) else tuple(scale)
    raise UserError(f'{cfg.filename} does not say how large an image is: add --image H W')


@reports_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if len(args.config) * len(args.gpus) * len(args.memory) > 1:
        print_table(args)
    else:
        print_plan(args)


def planned(args: argparse.Namespace, config: str) -> tuple[Config, int, str, Step]:
    """The config, its images per GPU, a text with their size, and what measures a step."""
    cfg = load_config(config, args.cfg_options)
    batch = args.batch or cfg.train_dataloader.batch_size
    height, width = args.image or image_size(cfg)

    @functools.cache
    def step(amp: bool, recompute: bool) -> StepMemory:
        try:
            return measure_step(cfg, batch, height, width, amp, recompute)
        except (ValueError, RuntimeError) as error:
            raise UserError(f'{config} cannot be planned: {error}') from error

    return cfg, batch, f'{batch} of {height}x{width}', step


def least_setting(step: Step, gpus: int, memory: float) -> tuple[bool, bool, bool] | None:
    """Of ``--amp``, ``with_cp`` and ``--shard``; None if nothing fits."""
    for shard in (False, True) if gpus > 1 else (False,):
        for amp, recompute in SETTINGS:
            if step(amp, recompute).peak(gpus, shard) <= memory * GIB - RESERVED:
                return amp, recompute, shard
    return None


def print_table(args: argparse.Namespace) -> None:
    machines = [(gpus, memory) for gpus in args.gpus for memory in args.memory]
    print('| config | parameters | images |', *(f'{n} x {gib:g} |' for n, gib in machines))
    print('|', *['--- |'] * (3 + len(machines)))
    for config in args.config:
        _, _, images, step = planned(args, config)
        cells = []
        for machine in machines:
            setting = least_setting(step, *machine)
            letters = [name for name, flag in zip('ARS', setting or (), strict=False) if flag]
            cells.append('-' if setting is None else ', '.join(letters) or '+')
        parameters = f'{step(False, False).parameters / 4e6:.0f}M'
        print(f'| `{Path(config).stem}` | {parameters} | {images} |', end=' ')
        print(*(f'{cell} |' for cell in cells), flush=True)


def print_plan(args: argparse.Namespace) -> None:
    (config,), (gpus,), (memory,) = args.config, args.gpus, args.memory
    cfg, batch, images, step = planned(args, config)
    first = step(False, False)
    print(
        f'{first.parameters / 4e6:.1f}M parameters: {first.parameters / GIB:.2f} GiB, gradients '
        f'{first.trained / GIB:.2f}, optimizer {first.states / GIB:.2f}; images per GPU: {images}'
    )
    table = Table(title=f'Peak of each of {gpus} GPUs, GiB')
    for column in ('--amp', 'with_cp', 'activations', 'whole model', 'with --shard'):
        table.add_column(column, justify='right')
    for flags in SETTINGS:
        peaks = (step(*flags).peak(gpus, shard) for shard in (False, True))
        cells = [step(*flags).activations, *peaks]
        table.add_row(
            *('yes' if flag else 'no' for flag in flags),
            *(f'{cell / GIB:.1f}' for cell in cells),
        )
    Console().print(table)
    setting = least_setting(step, gpus, memory)
    if setting is None:
        raise UserError(
            f'no setting fits into {memory:g} GiB (of which {RESERVED // GIB} are reserved): take '
            'fewer images per GPU (--batch), smaller ones (--image) or more GPUs'
        )
    print('fits: ' + command(config, gpus, cfg, batch, *setting))


def command(
    config: str, gpus: int, cfg: Config, batch: int, amp: bool, recompute: bool, shard: bool
) -> str:
    start = f'bash tools/dist_train.sh {config} {gpus}'
    words = [start if gpus > 1 else f'python tools/train.py {config}']
    words += ['--amp'] * amp + ['--shard'] * shard
    options = []
    if recompute != cfg.model.backbone.get('with_cp', False):
        options.append(f'model.backbone.with_cp={recompute}')
    if batch != cfg.train_dataloader.batch_size:
        options.append(f'train_dataloader.batch_size={batch}')
    return ' '.join(words + ['--cfg-options'] * bool(options) + options)


if __name__ == '__main__':
    main()
