"""Trains the model of a config: detection, segmentation and classification alike."""

import argparse

import torch.distributed
from mmengine.device import get_device
from mmengine.dist import is_distributed

from internimage_mm.commands import (
    UserError,
    add_config_options,
    add_launcher,
    check_data,
    check_launcher,
    load_config,
    reports_user_errors,
)
from internimage_mm.training import (
    InternImageRunner,
    check_sharding,
    enable_amp,
    latest_checkpoint,
)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config name>)'
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from this checkpoint; without a name, from the newest complete one in the work '
        'dir, or from the beginning if there is none yet',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='automatic mixed precision: bfloat16 if the device has it, else float16',
    )
    parser.add_argument(
        '--shard',
        action='store_true',
        help='divide parameters, gradients and optimizer state among the processes',
    )
    parser.add_argument(
        '--compile',
        action='store_true',
        help='compile each block of the backbone, for images of one size or a few',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate from the batch size of the config to the actual one',
    )
    add_config_options(parser, 'optim_wrapper.optimizer.lr=1e-4 key=[a,b]')
    add_launcher(parser)
    return parser.parse_args(argv)


@reports_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_launcher(args)
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    cfg.launcher = args.launcher
    if 'train_dataloader' not in cfg:
        raise UserError(f'config {args.config} has no train_dataloader: it cannot be trained')
    # The float16 of some configs needs a GPU.
    if args.amp or (cfg.optim_wrapper.get('type') == 'AmpOptimWrapper' and get_device() == 'cpu'):
        enable_amp(cfg.optim_wrapper)
    if args.shard or cfg.get('shard'):
        cfg.shard = True
        check_sharding(cfg)
    if args.compile:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or ()), dict(type='CompileBlocksHook')]
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UserError(
                f'--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in {args.config}'
            )
        cfg.auto_scale_lr.enable = True
    check_data(cfg, 'train', 'val')
    if args.resume == 'auto':
        # Without one yet, a load_from of the config stays in force.
        if (checkpoint := latest_checkpoint(cfg.work_dir)) is not None:
            cfg.resume, cfg.load_from = True, checkpoint
        print(f'resuming from {checkpoint}' if checkpoint else 'no checkpoint yet, starting anew')
    elif args.resume:
        cfg.resume, cfg.load_from = True, args.resume
    InternImageRunner.from_cfg(cfg).train()


if __name__ == '__main__':
    main()
    if is_distributed():  # its threads may not outlive the interpreter
        torch.distributed.destroy_process_group()
