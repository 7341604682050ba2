"""Draws the learning curves of trainings, from the folders that tools/train.py wrote."""

import argparse
import json
from collections import defaultdict
from pathlib import Path

from internimage_mm.commands import UserError, check_figure, reports_user_errors


def read_curves(work_dir: Path) -> tuple[dict[str, dict], dict[str, dict]]:
    """Losses by iteration, and metrics by epoch or iteration, of the last run in a work dir."""
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    if not logs:
        raise UserError(f'{work_dir} has no */vis_data/scalars.json: nothing was trained there')
    losses: dict[str, dict] = defaultdict(dict)
    metrics: dict[str, dict] = defaultdict(dict)
    for line in logs[-1].read_text().splitlines():
        entry = json.loads(line)
        training = 'lr' in entry
        for key, value in entry.items():
            if training and 'loss' in key:
                losses[key][entry['step']] = value
            elif not training and key not in ('step', 'time', 'data_time'):
                metrics[key][entry['step']] = value
    return losses, metrics


@reports_user_errors
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dirs', nargs='+', type=Path, help='folders of tools/train.py')
    parser.add_argument('--out', default='curves.png', help='picture to write (curves.png)')
    parser.add_argument(
        '--keys',
        nargs='+',
        default=['loss', 'coco/bbox_mAP_50', 'mIoU', 'accuracy/top1'],
        help='losses and metrics to draw',
    )
    args = parser.parse_args(argv)
    check_figure(args.out)
    curves = {folder: read_curves(folder) for folder in args.work_dirs}

    import matplotlib

    matplotlib.use('agg')
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout='constrained')
    known = sorted({key for pair in curves.values() for part in pair for key in part})
    for panel, title, index in zip(
        panels, ('iteration', 'epoch or iteration'), (0, 1), strict=True
    ):
        for folder, pair in curves.items():
            for key in args.keys:
                if curve := pair[index].get(key):
                    label = f'{folder.name}: {key}'
                    panel.plot(list(curve), list(curve.values()), marker='.', label=label)
        panel.set_xlabel(title)
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend()
    if not any(panel.lines for panel in panels):
        raise UserError(f'none of {", ".join(args.keys)} was logged; there are {", ".join(known)}')
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=100)
    print(f'{args.out} written')


if __name__ == '__main__':
    main()
