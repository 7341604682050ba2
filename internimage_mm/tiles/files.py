"""Pictures read and written in parts."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import UserError
from .grid import Box

_TIFF = ('.tif', '.tiff')
VIDEO_CODECS = {'.mp4': 'mp4v', '.mov': 'mp4v', '.avi': 'MJPG'}


class Picture:
    """A picture in memory, of which parts are read.

    Args:
        pixels: (height, width, 3), BGR, uint8.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def read(self, box: Box) -> np.ndarray:
        """The pixels of a box, (h, w, 3), BGR, uint8."""
        left, top, right, bottom = box
        return np.ascontiguousarray(self._pixels[top:bottom, left:right])


class RasterPicture(Picture):
    """A TIFF file, of which rasterio reads parts."""

    def __init__(self, path: str) -> None:
        import rasterio

        self.file = rasterio.open(path)
        self.height, self.width = self.file.shape
        if set(self.file.dtypes[:3]) != {'uint8'}:
            raise UserError(
                f'{path} has pixels of type {self.file.dtypes[0]}, uint8 is needed: gdal_translate '
                '-ot Byte -scale'
            )

    def read(self, box: Box) -> np.ndarray:
        bands = [1, 2, 3] if self.file.count >= 3 else [1, 1, 1]
        return np.ascontiguousarray(
            self.file.read(bands, window=_window(box)).transpose(1, 2, 0)[..., ::-1]
        )


class Canvas:
    """A picture in memory that is drawn in parts, then written by OpenCV."""

    def __init__(self, path: str, width: int, height: int) -> None:
        self._path = path
        self._pixels = np.zeros((height, width, 3), np.uint8)

    def write(self, box: Box, pixels: np.ndarray) -> None:
        """Put pixels, (h, w, 3), BGR, uint8, into a box."""
        left, top, right, bottom = box
        self._pixels[top:bottom, left:right] = pixels

    def close(self) -> None:
        """Write the file."""
        Path(self._path).parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(self._path, self._pixels):
            raise UserError(f'{self._path} cannot be written')


class RasterCanvas(Canvas):
    """A TIFF file that rasterio writes in parts, with the position on the Earth of another."""

    def __init__(self, path: str, width: int, height: int, like: Picture) -> None:
        import rasterio

        place: dict[str, Any] = {}
        if isinstance(like, RasterPicture):
            place = dict(crs=like.file.crs, transform=like.file.transform)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._file = rasterio.open(
            path, 'w', driver='GTiff', width=width, height=height, count=3, dtype='uint8',
            photometric='RGB', tiled=True, compress='deflate', BIGTIFF='IF_SAFER', **place,
        )  # fmt: skip

    def write(self, box: Box, pixels: np.ndarray) -> None:
        self._file.write(pixels[..., ::-1].transpose(2, 0, 1), window=_window(box))

    def close(self) -> None:
        self._file.close()


class VideoCanvas(Canvas):
    """A video, of which one frame after another is drawn.

    Raises:
        UserError: OpenCV cannot write it.
    """

    def __init__(self, path: str, width: int, height: int, fps: float) -> None:
        super().__init__(path, width, height)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        codec = cv2.VideoWriter.fourcc(*VIDEO_CODECS[Path(path).suffix.lower()])
        self._writer = cv2.VideoWriter(path, codec, fps, (width, height))
        if not self._writer.isOpened():
            raise UserError(f'{path} cannot be written')

    def close(self) -> None:
        """Write the frame."""
        self._writer.write(self._pixels)

    def finish(self) -> None:
        """Close the video."""
        self._writer.release()


def is_picture(path: str) -> bool:
    """Whether :func:`open_picture` takes a file for a picture, by how the file begins."""
    return path.lower().endswith(_TIFF) or cv2.haveImageReader(path)


def pictures_in(folder: str) -> list[str]:
    """The pictures in a folder, by name.

    Raises:
        UserError: There are none.
    """
    files = sorted(entry.path for entry in os.scandir(folder) if entry.is_file())
    if not (pictures := [path for path in files if is_picture(path)]):
        raise UserError(f'the folder {folder} has no image that OpenCV can read')
    return pictures


def open_picture(path: str) -> Picture:
    """Open a picture: a TIFF by rasterio, if that is installed, in parts; else by OpenCV, whole.

    Raises:
        UserError: It cannot be read, or its pixels are not of 8 bits.
    """
    if _by_rasterio(path):
        from rasterio.errors import RasterioIOError

        try:
            return RasterPicture(path)
        except RasterioIOError as error:
            raise UserError(f'{path} is not an image that rasterio can read: {error}') from error
    pixels = cv2.imread(path)
    if pixels is None:
        raise UserError(f'{path} is not an image that OpenCV can read')
    return Picture(pixels)


def open_canvas(path: str, like: Picture) -> Canvas:
    """A picture to draw, of the size of another: a TIFF by rasterio in parts, else in memory."""
    if _by_rasterio(path):
        return RasterCanvas(path, like.width, like.height, like)
    return Canvas(path, like.width, like.height)


def _by_rasterio(path: str) -> bool:
    return path.lower().endswith(_TIFF) and importlib.util.find_spec('rasterio') is not None


def _window(box: Box) -> tuple[tuple[int, int], tuple[int, int]]:
    left, top, right, bottom = box
    return (top, bottom), (left, right)
