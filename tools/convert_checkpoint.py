"""Converts a checkpoint of the official release to the names of our models, or back."""

import argparse

from internimage_mm.checkpoint import convert_file
from internimage_mm.commands import reports_user_errors


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=f'{__doc__} tools/train.py and tools/test.py read official files as they are; '
        'this is for other programs, and for giving trained weights to the official code.'
    )
    parser.add_argument('source', metavar='IN', help='checkpoint file or address')
    parser.add_argument('target', metavar='OUT', help='the file to write')
    parser.add_argument(
        '--to',
        choices=['ours', 'official'],
        default='ours',
        help='which names to write (default: ours)',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace OUT if it exists')
    return parser.parse_args(argv)


@reports_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    print(*convert_file(args.source, args.target, args.to, args.overwrite), sep='\n')


if __name__ == '__main__':
    main()
