"""Writes boxes in a CSV file or VOC XML files as COCO annotations; may cut images into tiles."""

import argparse
from collections import Counter
from pathlib import Path

from internimage_mm.commands import UserError, check_output, reports_user_errors
from internimage_mm.data.boxes import COLUMNS, read_csv, read_voc, write_coco


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'boxes',
        type=Path,
        help=f'CSV file with the columns {",".join(COLUMNS)}, or a folder of VOC XML files',
    )
    parser.add_argument('out', type=Path, help='COCO annotation file to write, e.g. train.json')
    parser.add_argument(
        '--images', type=Path, help='folder of the images (default: that of the boxes)'
    )
    parser.add_argument(
        '--tile',
        type=int,
        metavar='PIXELS',
        help='cut images into tiles of this size, into a folder beside the annotation file',
    )
    parser.add_argument(
        '--overlap',
        type=float,
        default=0.2,
        help='part of its side that a tile shares with the next (default: 0.2)',
    )
    return parser.parse_args(argv)


@reports_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if not args.boxes.exists():
        raise UserError(f'{args.boxes} does not exist')
    check_output(args.out)
    is_folder = args.boxes.is_dir()
    images = args.images or (args.boxes if is_folder else args.boxes.parent)
    found = read_voc(args.boxes) if is_folder else read_csv(args.boxes)
    try:
        content = write_coco(found, images, args.out, args.tile, args.overlap)
    except ValueError as error:
        raise UserError(str(error)) from error
    counts = Counter(box['category_id'] for box in content['annotations'])
    names = [category['name'] for category in content['categories']]
    print(f'{args.out}: {len(content["images"])} images, {sum(counts.values())} boxes')
    print(', '.join(f'{name} {counts[i]}' for i, name in enumerate(names, 1)))
    print(f'for the config: classes = {tuple(names)}')


if __name__ == '__main__':
    main()
