"""One HTML file in which a reader clicks a pixel and sees where the layers sample for it."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import cv2
import numpy as np

from ..output_file import write_text
from .sampling import STEM_STRIDE, Recording, Sampling

_TEMPLATE = Path(__file__).with_name('page.html')
_STEPS = 65535  # of a weight from 0 to 1
_FRACTION = 64  # steps of a position in one pixel


def write_page(
    path: str | Path,
    image: np.ndarray,
    recording: Recording,
    stage: int,
    block: int,
    x: int,
    y: int,
) -> None:
    """Write the page; it needs no other file and no network.

    Positions are rounded to 1/64 of a feature pixel.

    Args:
        path: The file to write.
        image: (H, W, 3), RGB, as large as the recorded one.
        recording: Where the backbone samples that image.
        stage: Stage that is shown first.
        block: Block that is shown first.
        x: Column of the image pixel that is shown first.
        y: Its row.

    Raises:
        UserError: It cannot be written.
    """
    _, encoded = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    content = {
        'size': [image.shape[1], image.shape[0]],
        'stride': STEM_STRIDE,
        'image': 'data:image/jpeg;base64,' + base64.b64encode(encoded.tobytes()).decode(),
        'stem': [taps.flatten().tolist() for taps in recording.stem],
        'downsamplings': [taps.flatten().tolist() for taps in recording.downsamplings],
        'stages': [[_layer(layer) for layer in stage] for stage in recording.stages],
        'fraction': _FRACTION,
        'steps': _STEPS,
        'first': {'stage': stage, 'block': block, 'x': x, 'y': y, 'back': 1},
    }
    template = _TEMPLATE.read_text(encoding='utf-8')
    write_text(path, template.replace('/*CONTENT*/', json.dumps(content)))


def _layer(sampling: Sampling) -> dict:
    height, width, groups, count = sampling.weights.shape
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([columns, rows], -1)[:, :, None, None]
    # An int16 reaches 511 pixels; no image that fits into a page is wider at any stage.
    steps = np.nan_to_num((sampling.points.numpy() - pixels) * _FRACTION, nan=32767).round()
    moves = np.clip(steps, -32767, 32767).astype('<i2')
    weights = (sampling.weights.numpy() * _STEPS).round().astype('<u2')
    return {
        'shape': [width, height, groups, count],
        'moves': _packed(moves),
        'weights': _packed(weights),
    }


def _packed(array: np.ndarray) -> str:
    return base64.b64encode(gzip.compress(array.tobytes(), 6)).decode()
