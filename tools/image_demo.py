"""Draws the predictions of a detector, segmentor or classifier on one image or a folder of them."""

import argparse
import functools
import os
import os.path as osp
from collections.abc import Callable

import cv2
import torch
from mmengine.registry import VISUALIZERS

from internimage_mm.commands import (
    UserError,
    add_config_options,
    check_folder,
    check_output,
    load_config,
    reports_user_errors,
)
from internimage_mm.commands.inference import check_scope, infer, load_model


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('image', help='image file, or a folder of them')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or address, or an exported model')
    parser.add_argument(
        '--out',
        required=True,
        help='the picture to write, e.g. out.png; for a folder of images, a folder',
    )
    parser.add_argument(
        '--device', help='e.g. cpu or cuda:0 (default: the first GPU if there is one)'
    )
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='least score of a detection (default: 0.3)'
    )
    add_config_options(parser, 'visualizer.alpha=0.5')
    return parser.parse_args(argv)


def make_drawer(model: torch.nn.Module, score_thr: float) -> Callable[[str, str], None]:
    """Return a function of two paths: it draws the prediction for an image into a picture."""
    scope = model.cfg.default_scope
    if scope == 'mmpretrain':
        return functools.partial(classify, model)
    settings = dict(pred_score_thr=score_thr) if scope == 'mmdet' else {}
    visualizer = VISUALIZERS.build({**model.cfg.visualizer, 'vis_backends': None})
    visualizer.dataset_meta = model.dataset_meta

    def draw(image_path: str, out: str) -> None:
        image = cv2.imread(image_path)[..., ::-1]
        result = infer(model, image_path)
        visualizer.add_datasample('image', image, result, draw_gt=False, out_file=out, **settings)

    return draw


def classify(model: torch.nn.Module, image_path: str, out: str) -> None:
    """Print the five best classes of an image and write them into a picture of it."""
    from mmpretrain.visualization import UniversalVisualizer

    result = infer(model, image_path)
    best = result.pred_score.topk(min(5, len(result.pred_score)))
    classes = model.dataset_meta.get('classes')
    for score, label in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        print(f'{score:.3f}  {classes[label] if classes else f"class {label}"}')
    result.set_pred_label(best.indices)
    UniversalVisualizer().visualize_cls(
        cv2.imread(image_path)[..., ::-1], result, classes, draw_gt=False, out_file=out
    )


def pictures_to_draw(image: str, out: str) -> dict[str, str]:
    """Image to picture: of a file, or of each image in a folder.

    Raises:
        UserError: There is no image, or no picture can be written under the name.
    """
    if osp.isdir(image):
        check_folder(out)
        names = sorted(entry.name for entry in os.scandir(image) if entry.is_file())
        pictures = {
            osp.join(image, name): osp.join(out, name)
            for name in names
            if cv2.imread(osp.join(image, name)) is not None
        }
        if not pictures:
            raise UserError(f'the folder {image} has no image that OpenCV can read')
    elif not osp.isfile(image):
        raise UserError(f'image {image} does not exist')
    elif cv2.imread(image) is None:
        raise UserError(f'{image} is not an image that OpenCV can read')
    elif not (osp.splitext(out)[1] and cv2.haveImageWriter(out)):
        raise UserError(f'--out {out} is not the name of an image file, such as out.png')
    else:
        pictures = {image: out}
    for picture in pictures.values():
        check_output(picture)
    return pictures


@reports_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    pictures = pictures_to_draw(args.image, args.out)
    cfg = load_config(args.config, args.cfg_options)
    check_scope(cfg)
    device = args.device or ('cuda:0' if torch.cuda.is_available() else 'cpu')
    draw = make_drawer(load_model(cfg, args.checkpoint, device), args.score_thr)
    for image, picture in pictures.items():
        if len(pictures) > 1:
            print(image)
        draw(image, picture)
        print(f'{picture} written')


if __name__ == '__main__':
    main()
