"""Exports a detector, segmentor or classifier to a file that other runtimes run, and checks it."""

import argparse
import gc
import logging
import os
import os.path as osp
import tempfile
import time
import warnings

import cv2
import numpy as np

from internimage_mm.commands import (
    UserError,
    add_config_options,
    check_output,
    load_config,
    reports_user_errors,
)
from internimage_mm.commands.inference import check_scope, infer, load_model
from internimage_mm.deploy.compare import compare
from internimage_mm.deploy.export import EXAMPLE, FORMATS, Options, describe, make_form, trace
from internimage_mm.output_file import folder_moved_when_complete


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or address, official or our own')
    parser.add_argument('--to', choices=FORMATS, default='onnx', help='format (default: onnx)')
    parser.add_argument('--out', required=True, help='the file to write: .onnx, .xml or .pt2')
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'), help='height and width, fixed'
    )
    size.add_argument('--dynamic', action='store_true', help='any multiples of 32 (the default)')
    parser.add_argument(
        '--preprocess',
        action='store_true',
        help='the model takes BGR pixels in 0..255 and normalizes them itself',
    )
    parser.add_argument(
        '--paste-masks', action='store_true', help='instance masks of the whole image'
    )
    parser.add_argument('--fp16', action='store_true', help='compute in float16')
    parser.add_argument('--opset', type=int, default=20, help='ONNX opset (default: 20)')
    parser.add_argument(
        '--grid-sample',
        action='store_true',
        help='ONNX for runtimes without the operator DeformConv (OpenVINO always has it so)',
    )
    parser.add_argument(
        '--verify', metavar='IMAGE', help='image to compare with PyTorch on (default: noise)'
    )
    add_config_options(parser, 'model.test_cfg.rcnn.score_thr=0.3')
    return parser.parse_args(argv)


def noise(shape: tuple[int, int], folder: str) -> str:
    """A picture of noise in a file."""
    path = osp.join(folder, 'noise.png')
    cv2.imwrite(path, np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))
    return path


class Steps:
    """Prints what is being done, and how long it took."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def done(self, what: str) -> None:
        now = time.perf_counter()
        print(f'{now - self.start:6.1f} s  {what}', flush=True)
        self.start = now


@reports_user_errors
def main(argv: list[str] | None = None) -> dict[str, str]:
    args = parse_args(argv)
    export, options = FORMATS[args.to], Options(args.opset, args.fp16, args.grid_sample or None)
    if not args.out.endswith(export.suffix):
        raise UserError(f'--out {args.out} must end in {export.suffix} for --to {args.to}')
    if args.shape and any(n % 32 or n < 64 for n in args.shape):
        raise UserError(f'--shape must be multiples of 32, and at least 64, got {args.shape}')
    if args.verify and cv2.imread(args.verify) is None:
        raise UserError(f'--verify {args.verify} is no image that OpenCV can read')
    check_output(args.out)
    cfg = load_config(args.config, args.cfg_options)
    check_scope(cfg)
    if 'test_dataloader' not in cfg:
        raise UserError(f'config {args.config} has no test_dataloader: it resizes the pictures')
    try:
        export.check(options)
    except ImportError as error:
        extra = 'pip install internimage-mm[deploy]'
        raise UserError(f'--to {args.to} needs "{extra}": {error.__cause__ or error}') from error
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from error
    # What PyTorch's exporter says about itself.
    warnings.simplefilter('ignore', FutureWarning)
    logging.getLogger('onnxscript').setLevel(logging.ERROR)
    steps = Steps()
    model = load_model(cfg, args.checkpoint)
    steps.done('checkpoint loaded')
    with tempfile.TemporaryDirectory() as folder:
        image = args.verify or noise(args.shape or EXAMPLE, folder)
        expected = infer(model, image)
        steps.done('predicted with PyTorch')
        try:
            form = make_form(model, cfg, args.preprocess, args.paste_masks)
        except ValueError as error:
            raise UserError(str(error)) from error
        program = trace(form, args.shape)
        steps.done('traced')
        description = describe(form, cfg, model.dataset_meta, args.shape)
        os.makedirs(osp.dirname(osp.abspath(args.out)), exist_ok=True)
        try:
            with folder_moved_when_complete(args.out) as file:
                export.write(program, form, file, description, options)
                size = sum(part.stat().st_size for part in file.parent.iterdir())
        except (OSError, ValueError) as error:
            raise UserError(f'{args.out} cannot be written: {error}') from error
        del model, form, program
        gc.collect()  # graphs refer to themselves, and hold the weights
        steps.done(f'{args.out} written, {size / 2**20:.0f} MiB')
        exported = load_model(cfg, args.out)
        try:
            actual = infer(exported, image)
        except UserError as error:
            raise UserError(
                f"{args.out} is written, but does not fit the config's test pipeline: {error}"
            ) from error
        steps.done('predicted with the exported model')
    differences = compare(expected, actual)
    print(f'PyTorch and {args.out} on {args.verify or "noise"}:')
    for what, value in differences.items():
        print(f'  {what}: {value}')
    return differences


if __name__ == '__main__':
    main()
