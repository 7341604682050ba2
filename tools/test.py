"""Evaluates a checkpoint or an exported model: detection, segmentation, classification alike."""

import argparse
import os.path as osp

from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults

from internimage_mm.commands import (
    UserError,
    add_config_options,
    add_launcher,
    check_data,
    check_folder,
    check_launcher,
    check_output,
    load_config,
    reports_user_errors,
)
from internimage_mm.commands.inference import put_exported
from internimage_mm.commands.submission import submit_to
from internimage_mm.deploy.exported import is_exported
from internimage_mm.training import InternImageRunner


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or address, or an exported model')
    parser.add_argument(
        '--work-dir', help='folder for logs and metrics (default: work_dirs/<config name>)'
    )
    parser.add_argument('--out', metavar='PKL', help='write the predictions to this pickle file')
    parser.add_argument(
        '--format-only',
        metavar='FOLDER',
        help='write what the server of the benchmark takes to this folder and evaluate nothing; '
        'the test images need no annotations',
    )
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='write pictures of the predictions to this folder')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds that --show shows each (default: 2)'
    )
    add_config_options(parser, 'test_dataloader.batch_size=2 key=[a,b]')
    add_launcher(parser)
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation with the tta_model of the config'
    )
    args = parser.parse_args(argv)
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out writes a pickle file: {args.out} must end in .pkl or .pickle')
    return args


def enable_pictures(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Turn on the visualization hook; each of the three libraries has its own settings for it."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise UserError('--show and --show-dir need default_hooks.visualization in the config')
    hook.update(show=show, wait_time=wait_time, interval=1)
    if cfg.get('default_scope') == 'mmpretrain':
        hook.update(enable=True, out_dir=show_dir)
        return
    hook['draw'] = True
    if show_dir and cfg.get('default_scope') == 'mmseg':
        cfg.visualizer.save_dir = show_dir
    elif show_dir:
        hook['test_out_dir'] = osp.abspath(show_dir)  # a relative one is put below the work dir


def enable_tta(cfg: Config) -> None:
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
    if missing:
        raise UserError(f'--tta needs {" and ".join(missing)} in the config {cfg.filename}')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    dataset.pipeline = cfg.tta_pipeline


class DumpSegResults(DumpResults):
    """Predictions without the scores of every class at every pixel, which fill any disk."""

    def process(self, data_batch: dict, predictions: list[dict]) -> None:
        super().process(
            data_batch, [{k: v for k, v in p.items() if k != 'seg_logits'} for p in predictions]
        )


def dump_metric(cfg: Config, path: str) -> DumpResults:
    if cfg.get('default_scope') == 'mmdet':
        from mmdet.evaluation import DumpDetResults  # masks run-length encoded

        return DumpDetResults(out_file_path=path)
    return DumpSegResults(out_file_path=path)


@reports_user_errors
def main(argv: list[str] | None = None) -> dict[str, float]:
    args = parse_args(argv)
    check_launcher(args)
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    cfg.launcher = args.launcher
    if 'test_dataloader' not in cfg:
        raise UserError(f'config {args.config} has no test_dataloader: it cannot be tested')
    cfg.pop('shard', None)
    if is_exported(args.checkpoint):
        put_exported(cfg, args.checkpoint)
    elif '://' not in args.checkpoint and not osp.exists(args.checkpoint):
        raise UserError(f'checkpoint {args.checkpoint} does not exist')
    cfg.load_from = None if is_exported(args.checkpoint) else args.checkpoint
    cfg.resume = False
    if args.out:
        check_output(args.out)
    for folder in filter(None, (args.show_dir, args.format_only)):
        check_folder(folder)
    # A config of which only the augmented test is published says so by test_with_tta.
    if args.tta or cfg.get('test_with_tta', False):
        enable_tta(cfg)
    if args.format_only:
        submit_to(cfg, args.format_only)
    check_data(cfg, 'test')
    if args.show or args.show_dir:
        enable_pictures(cfg, args.show, args.show_dir, args.wait_time)
    runner = InternImageRunner.from_cfg(cfg)
    if args.out:
        runner.test_evaluator.metrics.append(dump_metric(cfg, args.out))
    return runner.test()


if __name__ == '__main__':
    main()
