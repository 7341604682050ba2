"""Time exported models in their runtimes beside PyTorch; results are compared first."""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

from ops_dcnv3.benchmark import measure

from .benchmark import check_names, internimage, parse_image, spread_points, theirs
from .deploy.export import FORMATS, Options, describe, make_form, trace
from .deploy.forms import Form
from .deploy.predictor import RUNTIMES
from .shipped_configs import config_path
from .training import build_model

EXPORTS = {
    'pt2': ('pt2', Options()),
    'onnxruntime': ('onnx', Options()),
    'onnxruntime-grid-sample': ('onnx', Options(grid_sample=True)),
    'openvino': ('openvino', Options()),
    'openvino-deform-conv': ('openvino', Options(grid_sample=False)),
}
"""What can be timed beside PyTorch: a format, and how the file is written."""

MODELS = ('internimage-tiny', 'convnext-tiny')

TOLERANCE = 1e-4
"""Largest distance of an output from PyTorch's, relative to its norm, with which it is timed."""


class Backbone(Form):
    """``image`` to the four maps of a backbone."""

    family = 'backbone'
    outputs = ('map0', 'map1', 'map2', 'map3')

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(image))


def build(name: str) -> tuple[Form, dict[str, Any]]:
    """The form of a model with random weights, and what its files say of themselves.

    Args:
        name: ``internimage-ARCH``; ``convnext-ARCH`` or ``swin-ARCH`` of mmpretrain; or a shipped
            config.
    """
    if '/' not in name:
        family, _, arch = name.partition('-')
        backbone = internimage(arch) if family == 'internimage' else theirs(name)
        form: Form = Backbone(backbone, None)
        return form.eval().requires_grad_(False), dict(outputs=form.outputs)
    cfg = Config.fromfile(config_path(name))
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = spread_points(build_model(cfg))
    for parameter_name, parameter in model.named_parameters():
        # Fresh classes of two-stage detectors are too alike for any box to be found.
        if parameter_name.endswith('fc_cls.weight'):
            nn.init.normal_(parameter, std=0.1)
    form = make_form(model, cfg, preprocess=False)
    return form.eval().requires_grad_(False), describe(form, cfg, {}, None)


def run(
    names: Sequence[str],
    runtimes: Sequence[str],
    size: tuple[int, int],
    seconds: float,
    threads: int,
    folder: Path,
) -> list[dict[str, Any]]:
    """Export, check and time each model in each runtime; files that are there are used again.

    Raises:
        RuntimeError: The results of a runtime differ from those of PyTorch.
    """
    rows: list[dict[str, Any]] = []
    calls: list[measure.Call] = []
    for name in names:
        form, description = build(name)
        inputs, _ = form.examples(*size, dynamic=False)
        inputs['image'] = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        call = torch.inference_mode()(functools.partial(form, **inputs))
        truth = dict(zip(form.outputs, call(), strict=True))
        rows.append(dict(model=name, runtime='PyTorch'))
        calls.append(call)
        arrays = {key: value.numpy() for key, value in inputs.items()}
        # Boxes whose scores are the same but for rounding may change places.
        compared = ('scores',) if 'scores' in truth else form.outputs
        program = None
        for runtime in runtimes:
            if runtime.endswith(('grid-sample', 'deform-conv')) and 'internimage' not in name:
                continue
            format_name, options = EXPORTS[runtime]
            export = FORMATS[format_name]
            file = folder / f'{name.replace("/", "_")}.{runtime}{export.suffix}'
            if not file.exists():
                print(f'exporting {file.name}', flush=True)
                program = trace(form, size) if program is None else program
                export.write(program, form, file, description, options)
            predict, _ = RUNTIMES[export.suffix](str(file), threads)
            found = predict(arrays)
            error = measure.largest(distance(found[key], truth[key]) for key in compared)
            if not error < TOLERANCE:
                raise RuntimeError(f'{name} in {runtime} is wrong by {error:.1e}; it is not timed')
            rows.append(dict(model=name, runtime=runtime, error=error))
            calls.append(functools.partial(predict, arrays))
    with measure.freed_memory_kept():
        times = measure.medians_ms(calls, 'cpu', seconds)
    return [dict(row, ms=ms) for row, ms in zip(rows, times, strict=True)]


def distance(found: np.ndarray, truth: Tensor) -> float:
    return float(np.linalg.norm(found - truth.numpy()) / np.linalg.norm(truth.numpy()))


def report(rows: Sequence[dict[str, Any]]) -> None:
    """Print what :func:`run` has returned."""
    for name in dict.fromkeys(row['model'] for row in rows):
        print(f'\n{name:<42} {"error":>8} {"ms":>8} {"PyTorch":>8}')
        same = [row for row in rows if row['model'] == name]
        for row in same:
            error = f'{row["error"]:.1e}' if 'error' in row else '-'
            ratio = same[0]['ms'] / row['ms']
            print(f'  {row["runtime"]:<40} {error:>8} {row["ms"]:>8.0f} {ratio:>7.2f}x')


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        'python -m internimage_mm.benchmark_exported', description=__doc__
    )
    parser.add_argument(
        '--model',
        nargs='+',
        metavar='NAME',
        default=MODELS,
        help='internimage-ARCH, convnext-ARCH or swin-ARCH of mmpretrain, or a shipped config such '
        f'as coco/mask-rcnn_internimage-t_fpn_1x_coco (default: {" ".join(MODELS)})',
    )
    parser.add_argument('--runtime', nargs='+', choices=EXPORTS, default=list(EXPORTS))
    parser.add_argument('--image', type=parse_image, metavar='H,W', default=(800, 1280))
    parser.add_argument('--folder', help='keep the exported files here, and use those that exist')
    measure.add_options(parser, ['float32'])
    args = parser.parse_args(argv)
    measure.check_options(parser, args)
    ours = [n.removeprefix('internimage-') for n in args.model if n.startswith('internimage-')]
    configs = [n for n in args.model if '/' in n]
    others = [n for n in args.model if not n.startswith('internimage-') and n not in configs]
    try:
        check_names(ours, others)
        for name in configs:
            config_path(name)
    except (ImportError, ValueError) as error:
        parser.error(str(error))
    result = measure.begin(args)
    for package in ('onnxruntime', 'openvino'):
        result['machine'][package] = metadata.version(package)
        print(package, result['machine'][package])
    height, width = args.image
    print(f'one image of {height}x{width} pixels; times are medians')
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = run(
            args.model, args.runtime, args.image, args.seconds, torch.get_num_threads(), folder
        )
    report(rows)
    measure.write_json(args, result | dict(image=args.image, rows=rows))


if __name__ == '__main__':
    main()
