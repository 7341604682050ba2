"""Writes models of OpenMMLab to files that other runtimes run."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from torch import nn
from torch.export import ExportedProgram

from ..compat import compile_package
from ..version import __version__
from .exported import ROOMS, preprocessor_of
from .forms import Form, normalization
from .predictor import KEY

EXAMPLE = (256, 288)
"""Height and width of the image that a model of any size is traced with."""
CPP_METADATA = ('family', 'shape', 'divisor', 'preprocess', 'rgb', 'mean', 'classes')
"""What examples/cpp reads of a ``.pt2`` file, each as text under its own name."""


def make_form(model: nn.Module, cfg: Config, preprocess: bool, paste_masks: bool = False) -> Form:
    """The exportable form of the model of a config.

    Args:
        model: In evaluation mode. Some of its layers are replaced by exportable ones.
        cfg: Its config.
        preprocess: Whether the form takes BGR pixels in 0..255 instead of normalised ones.
        paste_masks: Whether instance masks are pasted into the whole image.

    Raises:
        ValueError: The model is of a family that cannot be exported, or has no masks to paste.
    """
    if paste_masks and not getattr(model, 'with_mask', False):
        raise ValueError('paste_masks needs a detector with a mask head')
    room = importlib.import_module(f'{__package__}.{ROOMS[cfg.default_scope]}')
    settings = preprocessor_of(cfg) if preprocess else None
    options = {'paste_masks': True} if paste_masks else {}
    form = room.form_of(model, settings, **options)
    return form.eval().requires_grad_(False)


def trace(form: Form, shape: tuple[int, int] | None = None) -> ExportedProgram:
    """A form as a graph.

    Args:
        form: The form.
        shape: Height and width of the image; None: any multiples of 32, and where the family
            allows it any batch.
    """
    arguments, sizes = form.examples(*(shape or EXAMPLE), dynamic=shape is None)
    with torch.no_grad():
        return torch.export.export(
            form, tuple(arguments.values()), dynamic_shapes=sizes and tuple(sizes.values())
        )


def describe(
    form: Form, cfg: Config, dataset_meta: dict, shape: tuple[int, int] | None
) -> dict[str, Any]:
    """What an exported file says about itself; see :class:`~.predictor.Predictor`."""
    dataset = cfg.test_dataloader.dataset
    while 'pipeline' not in dataset:  # of a wrapper
        dataset = dataset['datasets'][0] if 'datasets' in dataset else dataset['dataset']
    loading = ('Load', 'Pack')
    return {
        'family': form.family,
        'inputs': form.inputs,
        'outputs': form.outputs,
        'shape': shape,
        'divisor': form.divisor,
        'preprocess': form.preprocess is not None,
        **normalization(preprocessor_of(cfg)),
        'pipeline': [step for step in dataset.pipeline if not step['type'].startswith(loading)],
        'classes': dataset_meta.get('classes'),
        'palette': dataset_meta.get('palette'),
        'versions': {
            'internimage-mm': __version__,
            'torch': torch.__version__,
            **{
                name: metadata.version(name)
                for name in ('onnx', 'onnxscript', 'openvino')
                if importlib.util.find_spec(name)
            },
        },
    }


@dataclass
class Options:
    """How a file is written.

    Attributes:
        opset: Of ONNX.
        fp16: Compute in float16 (ONNX); keep weights in float16 (OpenVINO).
        grid_sample: Translate DCNv3 to ``GridSample``, not to ``DeformConv``. None: for OpenVINO,
            which runs it faster; not for ONNX.
    """

    opset: int = 20
    fp16: bool = False
    grid_sample: bool | None = None


def write_onnx(
    program: ExportedProgram, form: Form, file: Path, description: dict, options: Options
) -> None:
    """Write an ``.onnx`` file; weights of more than 1.5 GiB go to ``<file>.data`` beside it.

    Raises:
        ValueError: PyTorch cannot convert it to the opset.
    """
    import ops_dcnv3.onnx

    from . import onnx_operators  # noqa: F401  registers

    with ops_dcnv3.onnx.use_operator(_operator(options)):
        exported: Any = torch.onnx.export(
            program,
            opset_version=options.opset,
            input_names=form.inputs,
            output_names=form.outputs,
            verbose=False,
        )
    if exported.model.opset_imports[''] != options.opset:
        raise ValueError(
            f'PyTorch {torch.__version__} cannot convert the model to ONNX opset {options.opset}; '
            'opset 20 always works'
        )
    exported.model.metadata_props[KEY] = json.dumps(description)
    exported.save(file)
    if options.fp16:
        convert_to_float16(file)


def convert_to_float16(file: Path) -> None:
    """Let an ``.onnx`` file compute in float16, except sampling, and with float32 at both ends."""
    import onnx
    from onnxruntime.transformers import float16

    model = float16.convert_float_to_float16(
        str(file),  # not loaded yet: else nothing of more than 2 GiB can be converted
        keep_io_types=True,
        op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, 'DeformConv', 'GridSample'],
    )
    weights = file.with_name(f'{file.name}.data')
    external = weights.exists()
    weights.unlink(missing_ok=True)
    onnx.save(model, file, save_as_external_data=external, location=weights.name)


def _operator(options: Options) -> str:
    return 'GridSample' if options.grid_sample else 'DeformConv'


def check_onnx(options: Options) -> None:
    import ops_dcnv3.onnx

    with ops_dcnv3.onnx.use_operator(_operator(options)):
        ops_dcnv3.onnx.check_opset(options.opset)
        ops_dcnv3.onnx.check_onnxruntime()


def write_openvino(
    program: ExportedProgram, form: Form, file: Path, description: dict, options: Options
) -> None:
    """Write an ``.xml`` file and its weights in a ``.bin`` file beside it."""
    import openvino

    from ops_dcnv3.openvino import deform_conv

    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        onnx_file = Path(folder) / 'model.onnx'
        write_onnx(program, form, onnx_file, description, _for_openvino(options))
        model = openvino.convert_model(onnx_file, extension=deform_conv())
        model.set_rt_info(json.dumps(description), KEY)
        openvino.save_model(model, file, compress_to_fp16=options.fp16)


def _for_openvino(options: Options) -> Options:
    return replace(options, fp16=False, grid_sample=options.grid_sample is not False)


def check_openvino(options: Options) -> None:
    import ops_dcnv3.onnx
    import ops_dcnv3.openvino

    with ops_dcnv3.onnx.use_operator(_operator(_for_openvino(options))):
        ops_dcnv3.onnx.check_opset(options.opset)


def write_pt2(
    program: ExportedProgram, form: Form, file: Path, description: dict, options: Options
) -> None:
    """Write a ``.pt2`` package that AOTInductor has compiled for this kind of processor."""
    # Programs in C++ have no reader of JSON: for them, lists have an item on each line.
    plain = {
        name: '\n'.join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        for name, value in description.items()
        if name in CPP_METADATA and value is not None
    }
    compile_package(program, file, {KEY: json.dumps(description), **plain})


def check_pt2(options: Options) -> None:
    if options.fp16 or options.grid_sample:
        raise ValueError('fp16 and grid_sample are for ONNX and OpenVINO, not for pt2')
    compiler = os.environ.get('CXX', 'g++')
    if not shutil.which(compiler):
        raise RuntimeError(
            f'pt2 needs a C++ compiler: {compiler} is not found; the environment variable CXX may '
            'name another'
        )


class Format(NamedTuple):
    suffix: str
    write: Callable[[ExportedProgram, Form, Path, dict, Options], None]
    check: Callable[[Options], None]
    """Raises ImportError, ValueError or RuntimeError if that cannot be written or run here."""


FORMATS = {
    'onnx': Format('.onnx', write_onnx, check_onnx),
    'openvino': Format('.xml', write_openvino, check_openvino),
    'pt2': Format('.pt2', write_pt2, check_pt2),
}
