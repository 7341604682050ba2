"""Converts the annotations of CrowdHuman (.odgt) to COCO format, for configs/crowdhuman."""

import argparse

from internimage_mm.commands import reports_user_errors
from internimage_mm.data.crowdhuman import convert_crowdhuman


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'root', help='folder with annotations/annotation_{train,val}.odgt and Images/*.jpg'
    )
    parser.add_argument(
        '--overwrite', action='store_true', help='replace the JSON files if they exist'
    )
    return parser.parse_args(argv)


@reports_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    for path in convert_crowdhuman(args.root, args.overwrite):
        print(f'{path} written')


if __name__ == '__main__':
    main()
