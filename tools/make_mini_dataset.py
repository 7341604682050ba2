"""Draws the mini data sets of configs/quickstart into a folder."""

import argparse
from pathlib import Path

from internimage_mm.commands import check_folder, reports_user_errors
from internimage_mm.data import (
    MINI_ADE20K_CLASSES,
    MINI_COCO_CLASSES,
    MINI_IMAGENET_CLASSES,
    make_mini_ade20k,
    make_mini_coco,
    make_mini_imagenet,
)

MAKERS = {
    'coco': ('mini_coco', make_mini_coco, MINI_COCO_CLASSES),
    'ade20k': ('mini_ade20k', make_mini_ade20k, MINI_ADE20K_CLASSES),
    'imagenet': ('mini_imagenet', make_mini_imagenet, MINI_IMAGENET_CLASSES),
}


def parse_args(argv: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        'dataset', nargs='?', choices=[*MAKERS, 'all'], default='all', help='which data set to draw'
    )
    parser.add_argument(
        '--out', type=Path, default=Path('data'), help='folder for the data sets mini_*'
    )
    parser.add_argument(
        '--num-train', type=int, default=1600, help='training images in each data set'
    )
    parser.add_argument(
        '--num-val', type=int, default=100, help='validation images in each data set'
    )
    parser.add_argument('--seed', type=int, default=0, help='random seed')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace data sets made with other settings'
    )
    return parser, parser.parse_args(argv)


@reports_user_errors
def main(argv: list[str] | None = None) -> None:
    parser, args = parse_args(argv)
    check_folder(args.out)
    for key in MAKERS if args.dataset == 'all' else [args.dataset]:
        name, make, classes = MAKERS[key]
        root = args.out / name
        try:
            written = make(
                root,
                args.num_train,
                args.num_val,
                args.seed,
                overwrite=args.overwrite,
                show_progress=True,
            )
        except (OSError, ValueError) as error:
            parser.error(str(error).replace('the option overwrite', '--overwrite'))
        state = 'written' if written else 'already there with these settings, left alone'
        print(f'{root}: {state}')
        print(f'  {args.num_train} train and {args.num_val} val images, seed {args.seed}')
        print(f'  {len(classes)} classes: {", ".join(classes)}')


if __name__ == '__main__':
    main()
