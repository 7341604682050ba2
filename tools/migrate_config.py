"""Translates a config of the official repository, or one derived from it, for this stack."""

import argparse
import os.path as osp

from internimage_mm.commands import UserError, check_output, reports_user_errors
from internimage_mm.migration import migrate_config, read_old_config
from internimage_mm.output_file import write_text

INCOMPLETE = 3


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Exit code: 0 if everything was translated; 3 if the new config was written without '
        'the listed settings; 1 if nothing was written.',
    )
    parser.add_argument(
        'old',
        metavar='OLD.py',
        help='config of mmdet 2.x or mmseg 0.x, where it finds its _base_ files',
    )
    parser.add_argument('new', metavar='NEW.py', help='config to write, without _base_')
    parser.add_argument('--overwrite', action='store_true', help='replace NEW.py if it exists')
    return parser.parse_args(argv)


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if not args.new.endswith('.py'):
        raise UserError(f'the new config must be called something.py, got {args.new}')
    if osp.realpath(args.old) == osp.realpath(args.new):
        raise UserError(f'{args.new} is the old config itself; give the new one another name')
    check_output(args.new)
    if osp.exists(args.new) and not args.overwrite:
        raise UserError(f'{args.new} exists already; --overwrite replaces it')
    migration = migrate_config(read_old_config(args.old))
    header = f'Translated from {osp.basename(args.old)} by tools/migrate_config.py.'
    write_text(args.new, migration.text(header))
    print(f'wrote {args.new}')
    if text := migration.report.text():
        print(text)
    return INCOMPLETE if migration.report.problems else 0


if __name__ == '__main__':
    raise SystemExit(main())
