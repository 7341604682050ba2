"""Time the op, on every backend and against others, or whole backbones; results are checked first.

The five default shapes are those of InternImage-T at 800x1280 and one with 32 channels per group.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from . import measure, op, scaling


def parse_sizes(text: str, expected: str) -> tuple[int, ...]:
    """Return as many positive integers as ``expected`` names, separated by commas."""
    try:
        values = tuple(int(value) for value in text.split(','))
    except ValueError:
        values = ()
    if len(values) != len(expected.split(',')) or min(values) < 1:
        raise argparse.ArgumentTypeError(f'{expected} expected, all positive integers, got {text}')
    return values


def parse_shape(text: str) -> op.Shape:
    return parse_sizes(text, 'N,H,W,groups,channels per group')  # type: ignore[return-value]


def parse_image(text: str) -> tuple[int, int]:
    return parse_sizes(text, 'H,W')  # type: ignore[return-value]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser('python -m ops_dcnv3.benchmark', description=__doc__)
    parser.add_argument('--shapes', nargs='+', type=parse_shape, metavar='N,H,W,G,C')
    parser.add_argument('--logits', action='store_true', help='masks as logits, softmax in the op')
    parser.add_argument(
        '--against',
        nargs='+',
        metavar='MODULE:FUNCTION',
        help='ops with the signature of the official functions, timed beside ours',
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        '--scaling', action='store_true', help='time images of 64 to 2048 pixels, in batches'
    )
    what.add_argument(
        '--model', nargs='+', metavar='ARCH', help='time InternImage backbones (tiny, small, ...)'
    )
    parser.add_argument('--image', type=parse_image, metavar='H,W', help='default: 800,1280')
    parser.add_argument(
        '--beside',
        nargs='*',
        metavar='NAME',
        help='convnext-ARCH and swin-ARCH of mmpretrain, timed with --model (default: tiny, both; '
        'without a name: none)',
    )
    parser.add_argument('--dtype', choices=op.TOLERANCES, default='float32')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--threads', type=int, help='CPU threads (default: as torch chooses)')
    parser.add_argument('--seconds', type=float, default=1.0, help='time spent on each call')
    parser.add_argument('--json', metavar='FILE', help='write all of it to this file')
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    check_arguments(parser, args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)

    result: dict[str, Any] = dict(machine=measure.machine(args.device))
    print(', '.join(f'{key}: {value}' for key, value in result['machine'].items() if value))
    if args.model:
        result.update(run_models(parser, args))
    elif args.scaling:
        result.update(dtype=args.dtype, logits=args.logits)
        result['rows'] = scaling.run(args.dtype, args.device, args.seconds, args.logits)
        scaling.report(result['rows'])
    else:
        shapes = list(dict.fromkeys(args.shapes or op.SHAPES))
        print(f'{args.dtype}, masks are {"logits" if args.logits else "probabilities"}')
        print('shape is (N, H, W, groups, channels per group); times are medians')
        result.update(dtype=args.dtype, logits=args.logits)
        result.update(
            op.run(shapes, args.dtype, args.device, args.seconds, args.logits, args.against or ())
        )
        op.report(result)
    if args.json:
        with open(args.json, 'w', encoding='utf-8') as file:
            json.dump(result, file, indent=1)


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options that would be ignored or cannot be right, before anything is timed."""
    if args.threads is not None and args.threads < 1:
        parser.error(f'--threads must be at least 1, got {args.threads}')
    if not 0 <= args.seconds < float('inf'):
        parser.error(f'--seconds must be a finite number, 0 or more, got {args.seconds}')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error(f'--device cuda: torch {torch.__version__} sees no GPU')
    if args.json:
        try:
            open(args.json, 'a', encoding='utf-8').close()  # now, not after minutes of timing
        except OSError as error:
            parser.error(f'--json: {error}')
    if args.model:
        mode, ignored = 'with --model', ['shapes', 'against', 'logits']
    elif args.scaling:
        mode, ignored = 'with --scaling', ['shapes', 'against', 'image', 'beside']
    else:
        mode, ignored = 'without --model', ['image', 'beside']
    for name in ignored:
        # --beside without names is given, too.
        if getattr(args, name) not in (None, False):
            parser.error(f'--{name} has no meaning {mode}')
    for spec in args.against or ():
        try:
            op.third_party_op(spec)
        except (ImportError, TypeError, ValueError) as error:
            parser.error(str(error))


def run_models(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dict[str, Any]:
    # The plugin is built on the op, so the op imports it for this option only.
    try:
        from internimage_mm import benchmark as models
    except ImportError as error:
        parser.error(f'--model needs internimage_mm and mmengine: {error}')
    if args.dtype not in models.TOLERANCES:
        parser.error(f'--model takes --dtype {", ".join(models.TOLERANCES)}, got {args.dtype}')
    image = args.image or (800, 1280)
    height, width = image
    beside = args.beside
    if beside is None:
        beside = models.BESIDE
        try:
            import mmpretrain  # noqa: F401
        except ImportError as error:
            print(f'without {", ".join(beside)}, since mmpretrain cannot be imported: {error}')
            beside = ()
    try:
        models.check_names(args.model, beside)
    except (ImportError, ValueError) as error:
        parser.error(str(error))
    print(f'backbones, four outputs, one image of {height}x{width} pixels; times are medians')
    rows = models.run(args.model, beside, image, args.dtype, args.device, args.seconds)
    models.report(rows)
    return dict(image=image, rows=rows)


if __name__ == '__main__':
    main()
