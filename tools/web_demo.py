"""A web page on which images can be dropped: it shows what models predict, and where they look.

Without --model it serves the models that `make demo` trained.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.registry import DefaultScope
from PIL import Image, ImageOps

from internimage_mm.commands import (
    UserError,
    add_device,
    chosen_device,
    load_config,
    reports_user_errors,
)
from internimage_mm.commands.inference import best_classes, check_scope, infer, load_model
from internimage_mm.commands.pictures import TiledPredictor
from internimage_mm.tiles import Picture, divide

CONFIGS = Path(__file__).resolve().parents[1] / 'configs' / 'quickstart'
DEMO = {
    'detection': 'mask-rcnn_internimage-nano_mini-coco.py',
    'segmentation': 'upernet_internimage-nano_mini-ade20k.py',
}
MAX_PIXELS = 25_000_000
EXPLAINED = 512  # longer side of an image that is explained


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--model',
        nargs=2,
        action='append',
        metavar=('CONFIG', 'CHECKPOINT'),
        help='a model to serve; may be given several times',
    )
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/demo'), help='of make demo'
    )
    parser.add_argument('--host', default='127.0.0.1', help='address to listen on (this machine)')
    parser.add_argument('--port', type=int, default=7860, help='port (7860)')
    add_device(parser)
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='least score of a detection, until a visitor changes it (default: 0.3)',
    )
    return parser.parse_args(argv)


def demo_models(work_dir: Path) -> list[tuple[str, str]]:
    """Config and checkpoint of the models that `make demo` has trained."""
    models = []
    for task, config in DEMO.items():
        note = work_dir / task / 'train' / 'last_checkpoint'
        if note.exists():
            models.append((str(CONFIGS / config), note.read_text()))
    if not models:
        raise UserError(
            f'{work_dir} has no trained model: run make demo, or give --model CONFIG CHECKPOINT'
        )
    return models


def read(path: str | None) -> np.ndarray:
    """An uploaded image, RGB; what a visitor did wrong is shown to them."""
    import gradio

    if path is None:
        raise gradio.Error('Drop an image first.', print_exception=False)
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise gradio.Error(
                    f'The image has {image.width}x{image.height} pixels, more than '
                    f'{MAX_PIXELS / 1e6:.0f} million: tools/image_demo.py --tile takes it.',
                    print_exception=False,
                )
            return np.array(ImageOps.exif_transpose(image).convert('RGB'))
    except (OSError, Image.DecompressionBombError) as error:
        raise gradio.Error(
            'This is not an image that can be read.', print_exception=False
        ) from error


class Server:
    """What the page calls."""

    def __init__(self, models: list[tuple[str, str]], device: str) -> None:
        self.models: dict[str, Any] = {}
        for config, checkpoint in models:
            cfg = load_config(config)
            check_scope(cfg)
            with DefaultScope.overwrite_default_scope(cfg.default_scope):
                model = load_model(cfg, checkpoint, device)
                predictor = None
                if cfg.default_scope != 'mmpretrain':
                    predictor = TiledPredictor(model, 0.0, draw=True)
            self.models[Path(config).stem] = model, predictor

    def predict(self, name: str, path: str | None, score_thr: float) -> tuple[np.ndarray, str]:
        """The drawn prediction; the time that it took and what was found, line by line."""
        image = read(path)
        model, predictor = self.models[name]
        started = time.perf_counter()
        records: list[dict] = []
        drawn = image
        with DefaultScope.overwrite_default_scope(model.cfg.default_scope):
            if predictor is None:
                records = best_classes(model, infer(model, path))
            else:
                predictor.score_thr = score_thr
                picture = Picture(np.ascontiguousarray(image[..., ::-1]))
                rows = divide(picture.width, picture.height, max(image.shape), 0)
                ((_, pixels),) = predictor(picture, rows, records, bar=False)
                drawn = pixels[..., ::-1]
        seconds = time.perf_counter() - started
        lines = [
            f'{record["score"]:.2f}  {record["category"]}'
            if 'score' in record
            else f'{record["area"] / image[..., 0].size:.1%}  {record["category"]}'
            for record in records
        ]
        return drawn, '\n'.join([f'{seconds:.2f} s, with drawing', *lines])

    def explain(self, name: str, path: str | None, x: float, y: float) -> np.ndarray:
        """Where the backbone samples for the pixel that was clicked."""
        import gradio

        from internimage_mm.explain import draw, receptive_field, record

        pixels = read(path)
        model = self.models[name][0]
        if not hasattr(model, 'backbone'):
            raise gradio.Error('An exported model does not show its layers.', print_exception=False)
        height, width = pixels.shape[:2]
        scale = min(EXPLAINED / max(height, width), 1)
        size = [max(round(side * scale / 32), 1) * 32 for side in (width, height)]
        image = np.array(Image.fromarray(pixels).resize(size))
        x, y = (x + 0.5) * size[0] / width - 0.5, (y + 0.5) * size[1] / height - 0.5
        tensor = torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy())
        batch = model.data_preprocessor({'inputs': [tensor], 'data_samples': None}, False)
        recording = record(model.backbone, batch['inputs'])
        stage = len(recording.stages) - 2
        block = len(recording.stages[stage]) - 1
        column, row = recording.pixel(stage, x, y)
        field = receptive_field(model.backbone, batch['inputs'], stage, block, column, row)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / 'explained.png'
            draw(file, image, recording, field, stage, block, x, y)
            return np.array(Image.open(file).convert('RGB'))


def build_page(server: Server, score_thr: float) -> Any:
    import gradio

    # A click gives its place in the image.
    def clicked(name: str, path: str | None, event: gradio.SelectData) -> np.ndarray:
        return server.explain(name, path, *event.index)

    names = list(server.models)
    with gradio.Blocks(title='InternImage', analytics_enabled=False) as page:
        gradio.Markdown('# InternImage\nDrop an image; click it to see where the model looks.')
        name = gradio.Dropdown(names, value=names[0], label='Model')
        threshold = gradio.Slider(0, 1, score_thr, label='Least score of a detection')
        with gradio.Row():
            image = gradio.Image(type='filepath', label='Image', sources=['upload', 'clipboard'])
            # Unread, for a message of ours if it is no image.
            image.preprocess = lambda upload: upload and upload.path
            drawn = gradio.Image(label='Prediction', interactive=False)
        button = gradio.Button('Predict', variant='primary')
        found = gradio.Textbox(label='Time; scores of objects or areas of classes', lines=6)
        explained = gradio.Image(show_label=False, interactive=False)
        # One at a time: visitors queue for the models.
        queue = dict(concurrency_limit=1, concurrency_id='models')
        inputs = [name, image, threshold]
        for event in (button.click, image.upload):
            event(server.predict, inputs, [drawn, found], **queue)
        image.select(clicked, [name, image], explained, **queue)
    return page


@reports_user_errors
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    device = chosen_device(args)
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError(f'make web, or pip install gradio: {error}') from error
    server = Server(args.model or demo_models(args.work_dir), device)
    page = build_page(server, args.score_thr)
    try:
        page.launch(
            server_name=args.host, server_port=args.port, max_file_size='50mb', show_error=True
        )
    except OSError as error:  # another program has the port, or there is no such host
        raise UserError(f'--host {args.host} --port {args.port}: {error}') from error


if __name__ == '__main__':
    main()
