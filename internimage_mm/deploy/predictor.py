"""Runs exported models with NumPy, OpenCV and the runtime alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

KEY = 'internimage_mm'
"""Under this key an exported file has its metadata, as JSON."""


def load(file: str | Path, threads: int | None = None) -> Predictor:
    """Open a model that ``tools/export.py`` has written.

    Args:
        file: ``.onnx`` (needs onnxruntime), ``.xml`` (openvino) or ``.pt2`` (torch).
        threads: How many the runtime may use; default: its own choice.

    Raises:
        ImportError: The runtime is not installed.
        ValueError: Another kind of file, or we did not export it.
        RuntimeError: The runtime cannot run it.
    """
    file = Path(file)
    if file.suffix not in RUNTIMES:
        raise ValueError(f'{file} is no exported model; expected {", ".join(RUNTIMES)}')
    if not file.is_file():
        raise ValueError(f'exported model {file} does not exist')
    try:
        run, metadata = RUNTIMES[file.suffix](str(file), threads)
    except ImportError as error:
        raise ImportError(f'{file} needs "pip install internimage-mm[deploy]": {error}') from error
    except RuntimeError as error:
        raise RuntimeError(f'{file} cannot be opened: {error}') from error
    if metadata is None:
        raise ValueError(f'{file} was not written by tools/export.py: it has no metadata {KEY!r}')
    return Predictor(run, json.loads(metadata))


Arrays = dict[str, np.ndarray]
Opened = tuple[Callable[[Arrays], Arrays], str | None]


def _open_onnx(file: str, threads: int | None) -> Opened:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    try:
        session = onnxruntime.InferenceSession(file, options, onnxruntime.get_available_providers())
    except Exception as error:  # none of its own errors has a public name
        if 'DeformConv' not in str(error):
            raise RuntimeError(str(error)) from error
        raise RuntimeError(
            f'onnxruntime {onnxruntime.__version__} has no DeformConv: install 1.25 or later, or '
            'export with --grid-sample'
        ) from error
    names = [output.name for output in session.get_outputs()]
    metadata = session.get_modelmeta().custom_metadata_map.get(KEY)
    return lambda arrays: dict(zip(names, session.run(names, arrays), strict=True)), metadata


def _open_openvino(file: str, threads: int | None) -> Opened:
    import openvino

    try:
        model = openvino.Core().read_model(file)
    except RuntimeError as error:  # says last what is wrong
        raise RuntimeError(str(error).strip().splitlines()[-1]) from error
    # By default it computes in bfloat16 where the processor can.
    options: dict[str, Any] = {'INFERENCE_PRECISION_HINT': 'f32'}
    if threads:
        options['INFERENCE_NUM_THREADS'] = threads
    compiled = openvino.compile_model(model, 'CPU', options)
    names = [output.any_name for output in compiled.outputs]
    metadata = model.get_rt_info(KEY).astype(str) if model.has_rt_info(KEY) else None

    def run(arrays: Arrays) -> Arrays:
        return dict(zip(names, compiled(arrays).values(), strict=True))

    return run, metadata


def _open_pt2(file: str, threads: int | None) -> Opened:
    import torch

    import ops_dcnv3  # noqa: F401  the package calls its operators

    from ..compat import load_package

    if threads:
        torch.set_num_threads(threads)
    try:
        package, metadata = load_package(file)
    except RuntimeError as error:
        # Perhaps the operators of two-stage detectors are missing, which mmcv computes.
        try:
            from . import det  # noqa: F401
        except ImportError as missing:
            raise RuntimeError(
                f'{error} (that of a two-stage detector needs mmdet and mmcv: {missing})'
            ) from error
        package, metadata = load_package(file)
    text = metadata.get(KEY)
    names = json.loads(text)['outputs'] if text else []

    def run(arrays: Arrays) -> Arrays:
        with torch.no_grad():
            outputs = package(*(torch.from_numpy(array) for array in arrays.values()))
        return dict(zip(names, (x.numpy() for x in outputs), strict=True))

    return run, text


RUNTIMES = {'.onnx': _open_onnx, '.xml': _open_openvino, '.pt2': _open_pt2}


class Predictor:
    """An exported model, with what stands before and behind it.

    Attributes:
        metadata: What the file says about itself: ``family``; names of ``inputs`` and ``outputs``;
            ``shape`` of the images, (height, width) or None for any multiples of ``divisor``;
            ``preprocess``, whether the model itself turns BGR pixels in 0..255 into what it was
            trained on, and ``rgb``, ``mean`` and ``std``, how; ``pipeline``, how pictures are
            resized; ``classes``, ``palette`` and ``versions``.
    """

    def __init__(self, run: Callable[[Arrays], Arrays], metadata: dict) -> None:
        self._run = run
        self.metadata = metadata

    @property
    def family(self) -> str:
        """``'classifier'``, ``'segmentor'`` or ``'detector'``."""
        return self.metadata['family']

    @property
    def classes(self) -> list[str] | None:
        """Their names, by label; None if the checkpoint and the data set had none."""
        return self.metadata['classes']

    def run(self, **inputs: np.ndarray) -> Arrays:
        """Call the model itself.

        Args:
            **inputs: By the names of ``metadata['inputs']``: ``image`` (N, 3, H, W), float32; of a
                detector, ``image_size`` (N, 2), int64, height and width that are not padding; of
                the classifier of iNaturalist, ``temporal`` (N, 4) and ``spatial`` (N, 3), float32.

        Returns:
            Arrays by the names of ``metadata['outputs']``; docs/deploy.md has their shapes.

        Raises:
            ValueError: An input is missing, or the size of the image does not fit.
        """
        if missing := [name for name in self.metadata['inputs'] if name not in inputs]:
            raise ValueError(f'the model also needs the inputs {", ".join(missing)}')
        height, width = inputs['image'].shape[2:]
        shape, divisor = self.metadata['shape'], self.metadata['divisor']
        if shape is None and (height % divisor or width % divisor or min(height, width) < 64):
            raise ValueError(
                f'height and width of the image must be multiples of {divisor}, and at least 64, '
                f'got {height}x{width}'
            )
        if shape is not None and [height, width] != shape:
            raise ValueError(
                f'the model was exported for images of {shape[0]}x{shape[1]}, got '
                f'{height}x{width}; export it without --shape for any size'
            )
        return self._run({name: inputs[name] for name in self.metadata['inputs']})

    def __call__(self, picture: np.ndarray, min_score: float = 0.0) -> Arrays:
        """Predict for a picture as ``cv2.imread`` gives it, (H, W, 3), BGR, uint8.

        Args:
            picture: The picture, of any size.
            min_score: Detections of lower scores are left out.

        Returns:
            Of a classifier, ``scores`` (classes,). Of a segmentor, ``labels`` (H, W). Of a
                detector, ``boxes`` (D, 4) as x1, y1, x2, y2 in pixels of the picture, ``scores``
                (D,) and ``labels`` (D,), best first, and, of some, ``masks`` (D, H, W), bool.

        Raises:
            ValueError: It is no such picture; resized as by the config, it is larger than that of
                the model; or the config's test pipeline resizes in a way that is not known here.
        """
        if getattr(picture, 'shape', ())[2:] != (3,):
            got = 'None' if picture is None else f'the shape {np.shape(picture)}'
            raise ValueError(f'a picture is an array (H, W, 3) as cv2.imread gives it, got {got}')
        image = picture
        for step in self.metadata['pipeline']:
            if step['type'] not in STEPS:
                raise _unknown(step['type'])
            image = STEPS[step['type']](image, step)
        inputs: Arrays = {'image': self.prepare(image)}
        if 'image_size' in self.metadata['inputs']:
            inputs['image_size'] = np.array([image.shape[:2]])
        for name, size in (('temporal', 4), ('spatial', 3)):
            if name in self.metadata['inputs']:
                inputs[name] = np.zeros((1, size), np.float32)  # unknown
        outputs = {name: array[0] for name, array in self.run(**inputs).items()}
        if self.family == 'classifier':
            return {'scores': outputs['scores']}
        if self.family == 'segmentor':
            sizes = (inputs['image'].shape[2:], image.shape[:2], picture.shape[:2])
            return {'labels': best_class(outputs['scores'], *sizes)}
        return self.detections(outputs, image.shape[:2], picture.shape[:2], min_score)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """A resized picture (h, w, 3) as the model takes it, (1, 3, H, W), padded on two sides."""
        image = image.astype(np.float32)
        mean, std = (np.array(self.metadata[key], np.float32) for key in ('mean', 'std'))
        padding = mean[::-1] if self.metadata['rgb'] else mean
        if not self.metadata['preprocess']:
            image = image[..., ::-1] if self.metadata['rgb'] else image
            image, padding = (image - mean) / std, np.zeros(3, np.float32)
        divisor = self.metadata['divisor']
        height, width = self.metadata['shape'] or (
            max(-(-n // divisor) * divisor, 64) for n in image.shape[:2]
        )
        padded = np.empty((max(height, image.shape[0]), max(width, image.shape[1]), 3), np.float32)
        padded[:] = padding
        padded[: image.shape[0], : image.shape[1]] = image
        return np.ascontiguousarray(padded.transpose(2, 0, 1)[None])

    def detections(
        self,
        outputs: Arrays,
        size: tuple[int, int],
        picture_size: tuple[int, int],
        min_score: float = 0.0,
    ) -> Arrays:
        """Detections of one image in pixels of the picture that it was resized from.

        Args:
            outputs: Of :meth:`run`, without the axis of the batch.
            size: Height and width of the resized picture.
            picture_size: Height and width of the picture.
            min_score: Detections of lower scores are left out.

        Returns:
            As of :meth:`__call__`.
        """
        # Free places have a score of 0.
        found = (outputs['scores'] > 0) & (outputs['scores'] >= min_score)
        result = {name: array[found] for name, array in outputs.items()}
        (height, width), (picture_height, picture_width) = size, picture_size
        scale = [width / picture_width, height / picture_height] * 2
        result['boxes'] = result['boxes'] / np.array(scale, np.float32)
        if 'masks' in result and result['masks'].dtype == bool:  # pasted already
            masks = [mask[:height, :width].astype(np.uint8) for mask in result['masks']]
            masks = [cv2.resize(mask, picture_size[::-1]) for mask in masks]  # 0.5 becomes 1
            result['masks'] = np.array(masks, bool).reshape(-1, *picture_size)
        elif 'masks' in result:
            result['masks'] = paste_masks(result['masks'], result['boxes'], *picture_size)
        return result


# ---- pictures -----------------------------------------------------------------------------------

INTERPOLATIONS = {
    'nearest': cv2.INTER_NEAREST,
    'bilinear': cv2.INTER_LINEAR,
    'bicubic': cv2.INTER_CUBIC,
    'area': cv2.INTER_AREA,
    'lanczos': cv2.INTER_LANCZOS4,
}


def _unknown(what: str) -> ValueError:
    return ValueError(
        f'the test pipeline has {what}, which is not known here: resize the picture yourself and '
        'call run()'
    )


def _resize(image: np.ndarray, width: int, height: int, step: dict) -> np.ndarray:
    kind, backend = step.get('interpolation', 'bilinear'), step.get('backend', 'cv2')
    if (kind, backend) == ('bicubic', 'pillow'):
        return resize_as_pillow(image, width, height)
    if backend != 'cv2':
        raise _unknown(f'a resize of kind {kind} by {backend}')
    return cv2.resize(image, (width, height), interpolation=INTERPOLATIONS[kind])


def _fit(image: np.ndarray, step: dict) -> np.ndarray:
    (height, width), scale = image.shape[:2], step.get('scale')
    if scale is None:
        factors = step['scale_factor']
        factors = factors if isinstance(factors, (list, tuple)) else (factors, factors)
        scale = [int(n * factor + 0.5) for n, factor in zip((width, height), factors, strict=True)]
    elif isinstance(scale, int):
        scale = scale, scale
    if step.get('keep_ratio'):
        factor = min(
            max(scale) / max(height, width),
            min(scale) / min(height, width),
        )
        scale = int(width * factor + 0.5), int(height * factor + 0.5)
    return _resize(image, scale[0], scale[1], step)


def _fit_multiple(image: np.ndarray, step: dict) -> np.ndarray:
    divisor = step.get('size_divisor', 32)
    height, width = (-(-n // divisor) * divisor for n in image.shape[:2])
    return _resize(image, width, height, step)


def _fit_edge(image: np.ndarray, step: dict) -> np.ndarray:
    (height, width), scale = image.shape[:2], step['scale']
    edge = step.get('edge', 'short')
    if (
        edge == 'width'
        or (edge == 'short' and width < height)
        or (edge == 'long' and width > height)
    ):
        return _resize(image, scale, int(scale * height / width), step)
    return _resize(image, int(scale * width / height), scale, step)


def _crop(image: np.ndarray, step: dict) -> np.ndarray:
    size = step['crop_size']
    width, height = (size, size) if isinstance(size, int) else size
    top, left = (
        max(0, round((now - wanted) / 2.0))
        for now, wanted in zip(image.shape[:2], (height, width), strict=True)
    )
    return image[top : top + height, left : left + width]


STEPS = {
    'Resize': _fit,
    'ResizeToMultiple': _fit_multiple,
    'ResizeEdge': _fit_edge,
    'CenterCrop': _crop,
}
"""The transforms of test pipelines that change the size of a picture."""


def resize_as_pillow(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bicubic resizing of uint8 pictures with Pillow's filter, which widens when it shrinks.

    Keys' cubic convolution with a = -0.5. Pillow also rounds its weights, which may change a level
    in each of two passes.
    """

    def shrink(rows: np.ndarray, new: int) -> np.ndarray:
        old = rows.shape[0]
        centers = (np.arange(new)[:, None] + 0.5) * old / new
        x = np.abs(np.arange(old) + 0.5 - centers) / max(old / new, 1)
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = np.where(x < 1, near, np.where(x < 2, far, 0))
        weights /= weights.sum(1, keepdims=True)
        return np.rint(np.tensordot(weights, rows, 1)).clip(0, 255)

    columns = shrink(image.swapaxes(0, 1), width)
    return shrink(columns.swapaxes(0, 1), height).astype(np.uint8)


# ---- results ------------------------------------------------------------------------------------


def best_class(
    scores: np.ndarray,
    input_size: tuple[int, int],
    size: tuple[int, int],
    picture_size: tuple[int, int],
) -> np.ndarray:
    """The label map of a picture, (H, W), from scores (classes, h, w) of a smaller map.

    Args:
        scores: The output of the model.
        input_size: Height and width of its input.
        size: Of that, height and width that are not padding.
        picture_size: H and W.
    """
    labels = np.zeros(picture_size, np.int64)
    best = np.full(picture_size, -np.inf, np.float32)
    for label, score in enumerate(scores):
        full = cv2.resize(score.astype(np.float32), input_size[::-1])[: size[0], : size[1]]
        if size != picture_size:
            full = cv2.resize(full, picture_size[::-1])
        labels[full > best] = label
        np.maximum(best, full, out=best)
    return labels


def paste_masks(
    masks: np.ndarray, boxes: np.ndarray, height: int, width: int, threshold: float = 0.5
) -> np.ndarray:
    """Masks (D, h, w) of boxes (D, 4) as masks (D, ``height``, ``width``) of the picture, bool.

    Bilinear interpolation at the centres of the pixels, zero outside a mask.
    """
    pasted = np.zeros((len(masks), height, width), bool)
    for mask, (left, top, right, bottom), canvas in zip(masks, boxes, pasted, strict=True):
        rows, vertical = _between(mask.shape[0], top, bottom, height)
        columns, horizontal = _between(mask.shape[1], left, right, width)
        canvas[rows, columns] = vertical @ mask @ horizontal.T >= threshold
    return pasted


def _between(cells: int, start: float, stop: float, limit: int) -> tuple[slice, np.ndarray]:
    """The pixels around start..stop, and the weights (pixels, cells) of interpolation there."""
    part = slice(max(int(start) - 1, 0), min(int(np.ceil(stop)) + 1, limit))
    pixels = np.arange(part.start, part.stop, dtype=np.float32) + 0.5
    positions = (pixels - start) / max(stop - start, 1e-6) * cells - 0.5
    weights = 1 - np.abs(positions[:, None] - np.arange(cells))
    return part, weights.clip(0).astype(np.float32)
