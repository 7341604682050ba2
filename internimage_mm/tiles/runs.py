"""Masks of large pictures as run-length codes, made from masks of their parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def runs_of(mask: np.ndarray, left: int, top: int, height: int) -> np.ndarray:
    """The runs of set pixels in each column of a part of a picture.

    Args:
        mask: The part, (h, w), bool.
        left: Its first column in the picture.
        top: Its first row in the picture.
        height: Of the picture.

    Returns:
        First pixel and the one after the last of each run, (runs, 2). Pixels are counted down the
        columns of the picture, as COCO does.
    """
    padded = np.zeros((mask.shape[1], mask.shape[0] + 2), bool)
    padded[:, 1:-1] = mask.T
    columns, rows = np.nonzero(padded[:, 1:] != padded[:, :-1])  # starts and ends in turns
    return ((columns + left) * height + rows + top).reshape(-1, 2)


def run_length_code(runs: Sequence[np.ndarray], width: int, height: int) -> dict:
    """One mask of a picture from the runs of its parts, which share no pixel.

    Returns:
        COCO's run-length code, not compressed: ``size`` [height, width] and ``counts``, the numbers
        of unset and set pixels in turns. ``pycocotools.mask.frPyObjects`` compresses it.
    """
    edges = np.concatenate([np.empty((0, 2), int), *runs])
    edges = edges[edges[:, 0].argsort()].ravel()
    # A run that ends where another starts is the same run.
    meets = edges[1:-1:2] == edges[2::2]
    inner = edges[1:-1].reshape(-1, 2)[~meets].ravel()
    edges = np.concatenate([[0], edges[:1], inner, edges[-1:], [width * height]])
    counts = np.diff(edges)
    counts = counts[: len(counts) - (counts[-1] == 0)]
    return {'size': [height, width], 'counts': counts.tolist()}
