"""Pictures too large for a model, in tiles that overlap; needs NumPy and OpenCV only."""

from .files import (
    VIDEO_CODECS,
    Canvas,
    Picture,
    VideoCanvas,
    is_picture,
    open_canvas,
    open_picture,
    pictures_in,
)
from .grid import Tile, divide
from .runs import run_length_code, runs_of

__all__ = [
    'VIDEO_CODECS',
    'Canvas',
    'Picture',
    'Tile',
    'VideoCanvas',
    'divide',
    'is_picture',
    'open_canvas',
    'open_picture',
    'pictures_in',
    'run_length_code',
    'runs_of',
]
