"""Predicts for an image, a folder of images or a video: draws it, writes it as JSON, or both.

Large images are divided into tiles (--tile); the results are merged into one.
"""

import argparse
import json
import os.path as osp
from collections.abc import Iterator

import cv2
import numpy as np
import torch
from rich.progress import track

from internimage_mm.commands import (
    UserError,
    add_config_options,
    add_device,
    check_folder,
    check_output,
    chosen_device,
    load_config,
    reports_user_errors,
)
from internimage_mm.commands.inference import best_classes, check_scope, infer, load_model
from internimage_mm.commands.pictures import TiledPredictor
from internimage_mm.output_file import write_text
from internimage_mm.tiles import (
    VIDEO_CODECS,
    Canvas,
    Picture,
    VideoCanvas,
    divide,
    is_picture,
    open_canvas,
    open_picture,
    pictures_in,
)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('image', help='image file, a folder of them, or a video file')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or address, or an exported model')
    parser.add_argument(
        '--out',
        help='the picture to draw, e.g. out.png; for a folder of images, a folder; for a video, '
        'a video',
    )
    parser.add_argument(
        '--json',
        metavar='FILE',
        help='write the predictions to this file, with boxes and masks as COCO has them',
    )
    parser.add_argument(
        '--tile',
        type=int,
        metavar='PIXELS',
        help='divide images into tiles with sides of this many pixels',
    )
    parser.add_argument(
        '--overlap',
        type=float,
        default=0.2,
        help='part of its side that a tile shares with the next one; objects should be smaller '
        'than 3/4 of that (default: 0.2)',
    )
    add_device(parser)
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='least score of a detection (default: 0.3)'
    )
    add_config_options(parser, 'visualizer.alpha=0.5')
    args = parser.parse_args(argv)
    if not (args.out or args.json):
        parser.error('nothing to write: --out PICTURE, --json FILE or both')
    return args


def classify(model: torch.nn.Module, image_path: str, out: str | None) -> list[dict]:
    """Print the five best classes of an image, and write them into a picture of it."""
    from mmpretrain.visualization import UniversalVisualizer

    result = infer(model, image_path)
    records = best_classes(model, result)
    for record in records:
        print(f'{record["score"]:.3f}  {record["category"]}')
    if out:
        pixels, classes = cv2.imread(image_path)[..., ::-1], model.dataset_meta.get('classes')
        UniversalVisualizer().visualize_cls(pixels, result, classes, draw_gt=False, out_file=out)
    return records


def predict_tiled(
    predict: TiledPredictor,
    picture: Picture,
    canvas: Canvas | None,
    args: argparse.Namespace,
    bar: bool = True,
) -> list[dict]:
    """Predict for a picture with a detector or segmentor, and draw it if there is a canvas."""
    tile = args.tile or max(picture.width, picture.height)
    rows = divide(picture.width, picture.height, tile, args.overlap)
    records: list[dict] = []
    for box, pixels in predict(picture, rows, records, bar):
        canvas.write(box, pixels)
    if canvas:
        canvas.close()
    return records


def frames_of(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """The frames that there are; some files state another number, or none."""
    there, pixels = capture.read()
    while there:
        yield pixels
        there, pixels = capture.read()


def predict_video(
    predict: TiledPredictor, path: str, out: str | None, args: argparse.Namespace
) -> list[dict]:
    """Predict for the frames of a video, one after another."""
    capture = cv2.VideoCapture(path)
    frames, fps, width, height = (
        capture.get(key)
        for key in (
            cv2.CAP_PROP_FRAME_COUNT,
            cv2.CAP_PROP_FPS,
            cv2.CAP_PROP_FRAME_WIDTH,
            cv2.CAP_PROP_FRAME_HEIGHT,
        )
    )
    canvas = VideoCanvas(out, int(width), int(height), fps) if out else None
    images = []
    for frame, pixels in enumerate(track(frames_of(capture), 'frames', max(frames, 0) or None)):
        records = predict_tiled(predict, Picture(pixels), canvas, args, bar=False)
        images.append({'image': path, 'frame': frame, 'predictions': records})
    if canvas:
        canvas.finish()
    return images


def images_of(args: argparse.Namespace) -> dict[str, str | None]:
    """Image to picture: of a file, or of each image in a folder. A video counts as an image.

    Raises:
        UserError: There is no image, or no picture can be written under the name.
    """
    image, out = args.image, args.out
    suffix = osp.splitext(out or '')[1].lower()
    if osp.isdir(image):
        if out:
            check_folder(out)
        pictures = {
            path: osp.join(out, osp.basename(path)) if out else None for path in pictures_in(image)
        }
    elif not osp.isfile(image):
        raise UserError(f'image {image} does not exist')
    else:
        pictures = {image: out}
        if is_picture(image):
            if out and not (suffix and cv2.haveImageWriter(out)):
                raise UserError(f'--out {out} is not the name of an image file, such as out.png')
        elif not cv2.VideoCapture(image).read()[0]:
            raise UserError(f'{image} is not an image or video that OpenCV can read')
        elif out and suffix not in VIDEO_CODECS:
            raise UserError(f'--out {out} is not the name of a video: {", ".join(VIDEO_CODECS)}')
    for source, file in pictures.items():
        if file:
            check_output(file, source)
    if args.json:
        check_output(args.json, image)
    return pictures


@reports_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    pictures = images_of(args)
    try:
        divide(1, 1, 1 if args.tile is None else args.tile, args.overlap)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not 0 <= args.score_thr <= 1:
        raise UserError(f'--score-thr must be from 0 to 1, got {args.score_thr:g}')
    cfg = load_config(args.config, args.cfg_options)
    check_scope(cfg)
    video = not (osp.isdir(args.image) or is_picture(args.image))
    if cfg.default_scope == 'mmpretrain' and (video or args.tile):
        raise UserError('a classifier takes whole images: no video, no --tile')
    device = chosen_device(args)
    model = load_model(cfg, args.checkpoint, device)
    predict = None
    if cfg.default_scope != 'mmpretrain':
        predict = TiledPredictor(model, args.score_thr, draw=bool(args.out))
    images = []
    for image, out in pictures.items():
        if len(pictures) > 1:
            print(image)
        if predict is None:
            images.append({'image': image, 'predictions': classify(model, image, out)})
        elif video:
            images += predict_video(predict, image, out, args)
        else:
            picture = open_picture(image)
            canvas = open_canvas(out, picture) if out else None
            records = predict_tiled(predict, picture, canvas, args)
            images.append({'image': image, 'predictions': records})
        if out:
            print(f'{out} written')
    if args.json:
        write_text(args.json, json.dumps(images) + '\n')
        print(f'{args.json} written')


if __name__ == '__main__':
    main()
