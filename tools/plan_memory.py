"""Says whether a training fits into the memory of GPUs, before it starts and on any machine."""

import argparse

from rich.console import Console
from rich.table import Table

from internimage_mm.commands import UserError, add_config_options, load_config, reports_user_errors
from internimage_mm.training.memory import StepMemory, measure_step

GIB = 2**30
# The context of CUDA, NCCL's buffers, and what the allocator cannot use.
RESERVED = 2 * GIB
IMAGE = {'mmdet': (800, 1344)}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--gpus', type=int, default=8, help='number of GPUs (default: 8)')
    parser.add_argument('--memory', type=float, default=80, help='GiB of each (default: 80)')
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
    for name in ('gpus', 'memory', 'batch'):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            parser.error(f'--{name} must be positive, got {getattr(args, name)}')
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
def main(argv: list[str] | None = None) -> dict[tuple, StepMemory]:
    args = parse_args(argv)
    cfg = load_config(args.config, args.cfg_options)
    batch = args.batch or cfg.train_dataloader.batch_size
    height, width = args.image or image_size(cfg)
    steps = {}
    for recompute in (False, True):
        for amp in (False, True):
            try:
                steps[amp, recompute] = measure_step(cfg, batch, height, width, amp, recompute)
            except (ValueError, RuntimeError) as error:
                raise UserError(f'{args.config} cannot be planned: {error}') from error

    first = steps[False, False]
    print(
        f'{first.parameters / 4e6:.1f}M parameters: {first.parameters / GIB:.2f} GiB, gradients '
        f'{first.trained / GIB:.2f}, optimizer {first.states / GIB:.2f}; {batch} images of '
        f'{height}x{width} per GPU'
    )
    table = Table(title=f'Peak of each of {args.gpus} GPUs, GiB')
    for column in ('--amp', 'with_cp', 'activations', 'whole model', 'with --shard'):
        table.add_column(column, justify='right')
    for (amp, recompute), step in steps.items():
        peaks = (step.peak(args.gpus, shard) for shard in (False, True))
        cells = [step.activations, *peaks]
        table.add_row(
            *('yes' if flag else 'no' for flag in (amp, recompute)),
            *(f'{cell / GIB:.1f}' for cell in cells),
        )
    Console().print(table)
    limit = args.memory * GIB - RESERVED
    for shard in (False, True) if args.gpus > 1 else (False,):
        for (amp, recompute), step in sorted(steps.items(), key=lambda item: sum(item[0])):
            if step.peak(args.gpus, shard) <= limit:
                print('fits: ' + command(args, cfg, batch, amp, recompute, shard))
                return steps
    raise UserError(
        f'no setting fits into {args.memory:g} GiB (of which {RESERVED // GIB} are reserved): take '
        'fewer images per GPU (--batch), smaller ones (--image) or more GPUs'
    )


def command(args, cfg, batch: int, amp: bool, recompute: bool, shard: bool) -> str:
    start = f'bash tools/dist_train.sh {args.config} {args.gpus}'
    words = [start if args.gpus > 1 else f'python tools/train.py {args.config}']
    words += ['--amp'] * amp + ['--shard'] * shard
    options = []
    if recompute != cfg.model.backbone.get('with_cp', False):
        options.append(f'model.backbone.with_cp={recompute}')
    if batch != cfg.train_dataloader.batch_size:
        options.append(f'train_dataloader.batch_size={batch}')
    return ' '.join(words + ['--cfg-options'] * bool(options) + options)


if __name__ == '__main__':
    main()
