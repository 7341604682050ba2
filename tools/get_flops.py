"""Counts parameters and multiply-adds of models as the official get_flops.py scripts do."""

import argparse
import math

import torch
from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from internimage_mm.commands import UserError, add_config_options, load_config, reports_user_errors
from internimage_mm.flops import count_flops
from internimage_mm.training import build_model

DEFAULT_SHAPES = {'mmdet': (800, 1280), 'mmseg': (512, 2048)}
"""Height and width that the official scripts take; a classifier has its crop size."""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', nargs='+', help='config file(s)')
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar='N',
        help='height and width of the image, or one number for both (default: 800 1280 for '
        'detectors, 512 2048 for segmentors, the crop size for classifiers)',
    )
    parser.add_argument(
        '--size-divisor',
        type=int,
        default=32,
        help='round height and width up to a multiple of this (default: 32)',
    )
    add_config_options(parser, 'model.backbone.arch=small')
    args = parser.parse_args(argv)
    if args.shape and (len(args.shape) > 2 or min(args.shape) < 1):
        parser.error(f'--shape takes one or two positive numbers, got {args.shape}')
    if args.size_divisor < 1:
        parser.error(f'--size-divisor must be positive, got {args.size_divisor}')
    return args


def default_shape(cfg: Config) -> tuple[int, int]:
    """Default height and width for a model of this kind.

    Raises:
        UserError: There is none: not a detector or segmentor, and the test images are not cropped.
    """
    scope = cfg.get('default_scope')
    if scope in DEFAULT_SHAPES:
        return DEFAULT_SHAPES[scope]
    dataset = (cfg.get('test_dataloader') or {}).get('dataset', {})
    for step in dataset.get('pipeline', ()):
        if step['type'] == 'CenterCrop':
            crop = step['crop_size']
            return (crop, crop) if isinstance(crop, int) else tuple(crop)
    raise UserError(
        f'{cfg.filename} does not say how large an image is (default_scope is {scope!r}, and the '
        'test pipeline has no CenterCrop); give height and width with --shape'
    )


@reports_user_errors
def main(argv: list[str] | None = None) -> list[dict]:
    args = parse_args(argv)
    rows = []
    for path in args.config:
        cfg = load_config(path, args.cfg_options)
        with torch.device('meta'):
            model = build_model(cfg).eval()
        shape = args.shape * (3 - len(args.shape)) if args.shape else default_shape(cfg)
        height, width = (math.ceil(n / args.size_divisor) * args.size_divisor for n in shape)
        try:
            counts = count_flops(model, height, width)
        except ValueError as error:
            raise UserError(f'{path}: {error}') from error
        parameters = sum(p.numel() for p in model.parameters())
        rows.append(dict(path=path, shape=(height, width), parameters=parameters, counts=counts))

    table = Table(title='FLOPs (multiply-adds) of one image')
    for column in ('config', 'shape', 'parameters', 'FLOPs', 'of which'):
        justify = 'left' if column in ('config', 'of which') else 'right'
        table.add_column(column, justify=justify, overflow='fold')
    for row in rows:
        parts = (f'{k} {v / 1e9:.1f}G' for k, v in row['counts'].items() if k != 'total')
        table.add_row(
            row['path'],
            '{}x{}'.format(*row['shape']),
            f'{row["parameters"] / 1e6:.1f}M',
            f'{row["counts"]["total"] / 1e9:.1f}G',
            ', '.join(parts),
        )
    console = Console()
    if not console.is_terminal:  # where nothing has to be cut, least of all names
        console.width = 1000
    console.print(table)
    return rows


if __name__ == '__main__':
    main()
