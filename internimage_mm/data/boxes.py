"""Boxes in VOC XML or CSV files as COCO annotations, with images whole or cut into tiles."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import cv2
from rich.progress import track

from ..errors import UserError
from ..tiles import divide
from .storage import write_image

COLUMNS = ('image_path', 'xmin', 'ymin', 'xmax', 'ymax', 'label')


class LabelledBox(NamedTuple):
    """Sides in pixels from the left upper corner of the image, and the name of the class."""

    left: float
    top: float
    right: float
    bottom: float
    label: str


def read_csv(path: Path) -> dict[str, list[LabelledBox]]:
    """Boxes by image, from a CSV file with one box per line and :data:`COLUMNS`.

    A line without coordinates is an image without boxes.

    Raises:
        UserError: A column is missing, or a coordinate is no number.
    """
    found: dict[str, list[LabelledBox]] = {}
    with path.open(newline='', encoding='utf-8-sig') as file:  # Excel begins files with a mark
        rows = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
            raise UserError(f'{path} has no column {", ".join(missing)}; a box needs {COLUMNS}')
        for row in rows:
            boxes = found.setdefault(row['image_path'], [])
            if any(row[name] for name in COLUMNS[1:5]):
                try:
                    xmin, ymin, xmax, ymax = (float(row[name]) for name in COLUMNS[1:5])
                except ValueError as error:
                    raise UserError(f'{path}, line {rows.line_num}: {error}') from error
                boxes.append(LabelledBox(xmin, ymin, xmax, ymax, row['label']))
    return found


def read_voc(folder: Path) -> dict[str, list[LabelledBox]]:
    """Boxes by image, from the ``*.xml`` files of a folder.

    VOC counts pixels from 1, and the last one belongs to the box.

    Raises:
        UserError: There are none, or one is not of VOC's form.
    """
    found: dict[str, list[LabelledBox]] = {}
    for path in sorted(folder.glob('*.xml')):
        try:
            root = ElementTree.parse(path).getroot()
            boxes = found.setdefault(_text(root, 'filename'), [])
            for element in root.iter('object'):
                xmin, ymin, xmax, ymax = (
                    float(_text(element, f'bndbox/{name}')) for name in COLUMNS[1:5]
                )
                boxes.append(LabelledBox(xmin - 1, ymin - 1, xmax, ymax, _text(element, 'name')))
        except (ElementTree.ParseError, ValueError) as error:
            raise UserError(f'{path} is not an annotation file of VOC: {error}') from error
    if not found:
        raise UserError(f'there is no .xml file in {folder}')
    return found


def _text(element: ElementTree.Element, name: str) -> str:
    text = element.findtext(name)
    if text is None:
        raise ValueError(f'<{element.tag}> has no {name}')
    return text.strip()


def write_coco(
    found: dict[str, list[LabelledBox]],
    images: Path,
    out: Path,
    tile: int | None = None,
    overlap: float = 0.2,
    min_visible: float = 0.5,
) -> dict:
    """Write a COCO annotation file.

    Args:
        found: Boxes by file name of the image.
        images: The folder of the images.
        out: The file. With ``tile``, the tiles go into a folder of this name without the suffix.
        tile: Cut images into tiles with sides of this many pixels.
        overlap: Least part of its side that a tile shares with the next.
        min_visible: A box that a tile cuts stays if this part of its area is left.

    Returns:
        What was written. Categories are sorted by name, ids start at 1.

    Raises:
        UserError: An image cannot be read.
        ValueError: See :func:`internimage_mm.tiles.divide`.
    """
    labels = sorted({box.label for boxes in found.values() for box in boxes})
    content: dict = {
        'images': [],
        'annotations': [],
        'categories': [{'id': i, 'name': label} for i, label in enumerate(labels, 1)],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    if tile is not None:
        out.with_suffix('').mkdir(exist_ok=True)
    for name, boxes in track(found.items(), out.name):
        pixels = cv2.imread(str(images / name))
        if pixels is None:
            raise UserError(f'{images / name} is not an image that OpenCV can read')
        height, width = pixels.shape[:2]
        side = max(width, height) if tile is None else tile
        for row in divide(width, height, side, overlap):
            for part in row:
                left, top, right, bottom = part.box
                file_name = name
                if tile is not None:
                    stem = Path(name).with_suffix('').as_posix().replace('/', '_')
                    file_name = f'{stem}_{left}_{top}.png'
                    write_image(out.with_suffix('') / file_name, pixels[top:bottom, left:right])
                image = {'id': len(content['images']) + 1, 'file_name': file_name}
                content['images'].append({**image, 'width': right - left, 'height': bottom - top})
                for box in boxes:
                    x0, y0 = max(box.left, left), max(box.top, top)
                    w, h = min(box.right, right) - x0, min(box.bottom, bottom) - y0
                    area = (box.right - box.left) * (box.bottom - box.top)
                    if min(w, h) <= 0 or w * h < min_visible * area:
                        continue
                    content['annotations'].append(
                        {
                            'id': len(content['annotations']) + 1,
                            'image_id': image['id'],
                            'category_id': labels.index(box.label) + 1,
                            'bbox': [x0 - left, y0 - top, w, h],
                            'area': w * h,
                            'iscrowd': 0,
                        }
                    )
    out.write_text(json.dumps(content))
    return content
