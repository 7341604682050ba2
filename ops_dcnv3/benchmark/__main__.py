"""Time the op, on every backend and against other implementations; results are checked first.

The five default shapes are those of InternImage-T at 800x1280 and one with 32 channels per group.
"""

from __future__ import annotations

import argparse

from . import measure, op, scaling

COLUMNS = """columns:
  error        largest error of output and gradients, relative to the largest value (float64 truth)
  ms           median time of a call
  reference/   how many times as fast as plain PyTorch (backend 'reference')
  GB/s         the least that the call must read and write, divided by its time
  of floor     GB/s as a share of that of a large copy on this machine (the copy floor)
  / bound      time divided by that of the forward's loads and multiply-adds alone, from the
               first-level cache (CPU, forward)
  peak MiB     peak memory of the call, without its arguments
"""


def parse_shape(text: str) -> op.Shape:
    return measure.parse_sizes(text, 'N,H,W,groups,channels per group')  # type: ignore[return-value]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        'python -m ops_dcnv3.benchmark',
        description=__doc__,
        epilog=COLUMNS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--shapes', nargs='+', type=parse_shape, metavar='N,H,W,G,C')
    parser.add_argument('--logits', action='store_true', help='masks as logits, softmax in the op')
    parser.add_argument(
        '--against',
        nargs='+',
        metavar='MODULE:FUNCTION',
        help='ops with the signature of the official functions, to time beside ours',
    )
    parser.add_argument(
        '--scaling', action='store_true', help='time images of 64 to 2048 pixels, in batches'
    )
    measure.add_options(parser, op.TOLERANCES)
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    measure.check_options(parser, args)
    if args.scaling and (args.shapes or args.against):
        parser.error('--shapes and --against have no meaning with --scaling')
    for spec in args.against or ():
        try:
            op.third_party_op(spec)
        except (ImportError, TypeError, ValueError) as error:
            parser.error(str(error))

    result = measure.begin(args)
    result.update(dtype=args.dtype, logits=args.logits)
    if args.scaling:
        result['rows'] = scaling.run(args.dtype, args.device, args.seconds, args.logits)
        scaling.report(result['rows'])
    else:
        shapes = list(dict.fromkeys(args.shapes or op.SHAPES))
        print(f'{args.dtype}, masks are {"logits" if args.logits else "probabilities"}')
        print('shape is (N, H, W, groups, channels per group); --help explains the columns')
        result.update(
            op.run(shapes, args.dtype, args.device, args.seconds, args.logits, args.against or ())
        )
        op.report(result)
    measure.write_json(args, result)


if __name__ == '__main__':
    main()
