"""Shows where the backbone of a model samples for a feature pixel, and what that pixel depends on.

Writes a picture (--out) and a web page (--html). For a folder of images it prints the effective
receptive field of the central pixel, averaged over them.
"""

import argparse
import os.path as osp

import cv2
import numpy as np
import torch
from mmengine.config import Config

from internimage_mm.commands import (
    UserError,
    add_config_options,
    add_device,
    check_figure,
    check_output,
    chosen_device,
    load_config,
    reports_user_errors,
)
from internimage_mm.commands.inference import check_scope, load_model
from internimage_mm.deploy.exported import is_exported
from internimage_mm.explain import areas, draw, receptive_field, record, write_page
from internimage_mm.explain.sampling import STEM_STRIDE, ends
from internimage_mm.tiles import pictures_in
from internimage_mm.training import build_model

RANDOM = 'random'
STRIDE = 32  # of the last stage; sizes are multiples of it, so nothing is padded


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('image', help='image file, or a folder of them')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        'checkpoint', help=f'checkpoint file or address, or {RANDOM!r} for an untrained model'
    )
    parser.add_argument(
        '--point',
        type=float,
        nargs=2,
        metavar=('X', 'Y'),
        help='pixel of the image whose nearest feature is explained (default: the centre)',
    )
    parser.add_argument('--stage', type=int, default=2, help='0 to 3 (default: 2)')
    parser.add_argument('--block', type=int, default=-1, help='block of the stage (default: last)')
    parser.add_argument(
        '--size',
        type=int,
        help='longer side to which the image is scaled (default: its own, at most 512)',
    )
    parser.add_argument('--out', help='the picture to write, e.g. out.png')
    parser.add_argument('--html', help='the web page to write')
    add_device(parser)
    add_config_options(parser, 'model.backbone.with_cp=True')
    return parser.parse_args(argv)


def build(cfg: Config, checkpoint: str, device: str) -> torch.nn.Module:
    if is_exported(checkpoint):
        raise UserError(f'{checkpoint} is an exported model, which does not show its layers')
    if checkpoint != RANDOM:
        model = load_model(cfg, checkpoint, device)
    else:
        torch.manual_seed(0)
        model = build_model(cfg).to(device).eval()
    return model.requires_grad_(False)


def read(path: str, size: int | None, square: bool) -> tuple[np.ndarray, tuple[int, int]]:
    """An image, BGR, scaled to sides that are multiples of 32, and its own (width, height)."""
    image = cv2.imread(path)
    if image is None:
        raise UserError(f'{path} is not an image that OpenCV can read')
    height, width = image.shape[:2]
    longer = size or min(max(height, width), 512)
    sides = (
        [longer, longer] if square else [s * longer / max(height, width) for s in (width, height)]
    )
    target = [max(round(side / STRIDE), 1) * STRIDE for side in sides]
    return cv2.resize(image, target, interpolation=cv2.INTER_AREA), (width, height)


def prepare(model: torch.nn.Module, image: np.ndarray) -> torch.Tensor:
    """What the backbone of a model takes for an image, (1, 3, H, W)."""
    tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return model.data_preprocessor({'inputs': [tensor], 'data_samples': None}, False)['inputs']


def explain_image(args: argparse.Namespace, model: torch.nn.Module, stage: int, block: int) -> dict:
    image, (width, height) = read(args.image, args.size, square=False)
    x, y = args.point or ((width - 1) / 2, (height - 1) / 2)
    if not (0 <= x < width and 0 <= y < height):
        raise UserError(f'--point {x:g} {y:g} is outside {args.image}, {width}x{height} pixels')
    x, y = (x + 0.5) * image.shape[1] / width - 0.5, (y + 0.5) * image.shape[0] / height - 0.5
    inputs = prepare(model, image)
    recording = record(model.backbone, inputs)
    column, row = recording.pixel(stage, x, y)
    contribution = receptive_field(model.backbone, inputs, stage, block, column, row)
    rgb = image[..., ::-1]
    if args.out:
        draw(args.out, rgb, recording, contribution, stage, block, x, y)
        print(f'{args.out} written')
    if args.html:
        write_page(args.html, rgb, recording, stage, block, round(x), round(y))
        print(f'{args.html} written, {osp.getsize(args.html) / 1e6:.1f} MB')
    stride = STEM_STRIDE * 2**stage
    return areas(contribution, column * stride, row * stride)


def explain_folder(
    args: argparse.Namespace, model: torch.nn.Module, stage: int, block: int
) -> dict:
    if args.out or args.html or args.point:
        raise UserError('--out, --html and --point are for one image, not for a folder')
    paths = pictures_in(args.image)
    size, stride = args.size or 512, STEM_STRIDE * 2**stage
    center = round(size / STRIDE) * STRIDE // stride // 2
    total = sum(
        receptive_field(
            model.backbone,
            prepare(model, read(path, size, square=True)[0]),
            stage,
            block,
            center,
            center,
        )
        for path in paths
    )
    print(f'{len(paths)} images of {total.shape[1]}x{total.shape[0]} pixels')
    return areas(total, center * stride, center * stride)


@reports_user_errors
def main(argv: list[str] | None = None) -> dict[float, float]:
    args = parse_args(argv)
    if not osp.exists(args.image):
        raise UserError(f'image {args.image} does not exist')
    if args.out:
        check_figure(args.out, args.image)
    if args.html:
        check_output(args.html, args.image)
    if args.size is not None and args.size < 1:
        raise UserError(f'--size must be at least 1 pixel, got {args.size}')
    cfg = load_config(args.config, args.cfg_options)
    check_scope(cfg)
    device = chosen_device(args)
    model = build(cfg, args.checkpoint, device)
    try:
        stages = ends(model.backbone)[1].depths
    except ValueError as error:
        raise UserError(f'{args.config}: {error}') from error
    if not 0 <= args.stage < len(stages):
        raise UserError(f'--stage must be 0 to {len(stages) - 1}, got {args.stage}')
    depth = stages[args.stage]
    if not -depth <= args.block < depth:
        raise UserError(f'stage {args.stage} has blocks 0 to {depth - 1}, got --block {args.block}')
    explain = explain_folder if osp.isdir(args.image) else explain_image
    figures = explain(args, model, args.stage, args.block % depth)
    print(f'effective receptive field of stage {args.stage}, block {args.block % depth}:')
    for share, area in figures.items():
        print(f'  {share:.0%} of the contribution in {area:.1%} of the area')
    return figures


if __name__ == '__main__':
    main()
