"""How a picture is divided into tiles."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom do not belong to it."""


class Tile(NamedTuple):
    """A part of a picture that a model sees at once.

    Attributes:
        box: What the model sees.
        core: The part of it for which this tile's prediction counts. It ends in the middle of the
            overlap with a neighbour; the cores cover the picture and share no pixel.
        slack: How far beyond its core detections of this tile may be centred. Two tiles may place
            the centre of one object on either side of the line between them.
    """

    box: Box
    core: Box
    slack: int


def divide(width: int, height: int, tile: int, overlap: float) -> list[list[Tile]]:
    """Rows of tiles, evenly spaced, each of ``tile`` pixels or the whole side of the picture.

    Args:
        width: Of the picture.
        height: Of the picture.
        tile: Side of a tile in pixels.
        overlap: Least part of its side that a tile shares with each neighbour. An object is seen
            whole by the tile that decides about it if it is smaller than 3/4 of that.

    Raises:
        ValueError: ``tile`` is below 1, or ``overlap`` not in 0 <= overlap <= 0.5.
    """
    if tile < 1:
        raise ValueError(f'the side of a tile must be at least 1 pixel, got {tile}')
    if not 0 <= overlap <= 0.5:
        raise ValueError(f'the overlap must be from 0 to 0.5, got {overlap}')
    shared = int(tile * overlap)
    columns, rows = (_spans(size, tile, shared) for size in (width, height))
    return [
        [
            Tile((left, top, right, bottom), (core_left, core_top, core_right, core_bottom), slack)
            for left, right, core_left, core_right in columns
        ]
        for slack in (shared // 8,)
        for top, bottom, core_top, core_bottom in rows
    ]


def _spans(size: int, tile: int, shared: int) -> list[Box]:
    """Start and stop of each tile along one side, and of its core."""
    tile = min(tile, size)
    count = 1 + (math.ceil((size - tile) / (tile - shared)) if size > tile else 0)
    starts = np.linspace(0, size - tile, count).round().astype(int).tolist()
    borders = [
        (start + tile + after) // 2 for start, after in zip(starts, starts[1:], strict=False)
    ]
    cores = zip([0, *borders], [*borders, size], strict=True)
    return [(start, start + tile, *core) for start, core in zip(starts, cores, strict=True)]
