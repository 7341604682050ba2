"""Draws the predictions of a detector, segmentor or classifier on an image."""

import argparse
import os.path as osp

import cv2
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, VISUALIZERS, init_default_scope

from internimage_mm.checkpoint import fit_state_dict, read_checkpoint
from internimage_mm.cli import (
    ConfigOptions,
    UserError,
    dataset_meta,
    load_config,
    reports_user_errors,
)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('image', help='image file')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or address')
    parser.add_argument('--out', required=True, help='the picture to write, e.g. out.png')
    parser.add_argument(
        '--device', help='e.g. cpu or cuda:0 (default: the first GPU if there is one)'
    )
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='least score of a detection (default: 0.3)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        metavar='KEY=VALUE',
        help='settings that override the config: visualizer.alpha=0.5',
    )
    return parser.parse_args(argv)


def build_model(cfg: Config, checkpoint_path: str, device: str) -> torch.nn.Module:
    """The model of a config with the weights of a checkpoint, ready for the inference functions."""
    checkpoint = read_checkpoint(checkpoint_path, mmap=True)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.load_state_dict(fit_state_dict(checkpoint, model, checkpoint_path), strict=False)
    model.dataset_meta = dataset_meta(cfg)
    model.cfg = cfg
    return model.to(device).eval()


def classify(model: torch.nn.Module, image_path: str, out: str) -> None:
    """Print the five best classes of an image and write them into a picture of it."""
    from mmpretrain.visualization import UniversalVisualizer

    from internimage_mm.cls import classify_image

    result = classify_image(model, image_path)
    best = result.pred_score.topk(min(5, len(result.pred_score)))
    classes = model.dataset_meta.get('classes')
    for score, label in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        print(f'{score:.3f}  {classes[label] if classes else f"class {label}"}')
    result.set_pred_label(best.indices)
    UniversalVisualizer().visualize_cls(
        cv2.imread(image_path)[..., ::-1], result, classes, draw_gt=False, out_file=out
    )


@reports_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if not osp.isfile(args.image):
        raise UserError(f'image {args.image} does not exist')
    image = cv2.imread(args.image)
    if image is None:
        raise UserError(f'{args.image} is not an image that OpenCV can read')
    if not (osp.splitext(args.out)[1] and cv2.haveImageWriter(args.out)):
        raise UserError(f'--out {args.out} is not the name of an image file, such as out.png')
    cfg = load_config(args.config, args.cfg_options)
    scope = cfg.get('default_scope')
    if scope not in ('mmdet', 'mmpretrain', 'mmseg'):
        raise UserError(
            f'{args.config} is for none of mmdet, mmpretrain and mmseg: default_scope is {scope!r}'
        )
    init_default_scope(scope)
    device = args.device or ('cuda:0' if torch.cuda.is_available() else 'cpu')
    model = build_model(cfg, args.checkpoint, device)
    if scope == 'mmpretrain':
        classify(model, args.image, args.out)
        print(f'{args.out} written')
        return
    visualizer = VISUALIZERS.build({**cfg.visualizer, 'vis_backends': None})
    visualizer.dataset_meta = model.dataset_meta
    drawing = dict(draw_gt=False, out_file=args.out)
    if scope == 'mmdet':
        from mmdet.apis import inference_detector as infer

        drawing['pred_score_thr'] = args.score_thr
    else:
        from mmseg.apis import inference_model as infer
    visualizer.add_datasample('image', image[..., ::-1], infer(model, args.image), **drawing)
    print(f'{args.out} written')


if __name__ == '__main__':
    main()
