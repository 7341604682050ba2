"""CrowdHuman's annotations in COCO format, as the official CrowdHuman config reads them."""

import json
from pathlib import Path

from PIL import Image
from rich.progress import track

from internimage_mm.errors import UserError
from internimage_mm.output_file import check_output, write_text

SPLITS = ('train', 'val')


def crowdhuman_to_coco(source: Path, images: Path) -> dict:
    """Convert an ``.odgt`` file.

    Boxes are those of the full body (``fbox``), which may leave the image; empty ones are left out.
    What is not a person, and people marked as ignored, become ``iscrowd`` regions.

    Args:
        source: The file: in each line ``ID``, the image's name without ending, and ``gtboxes``.
        images: Folder of the ``.jpg`` files, which are opened for their size.

    Returns:
        The content of a COCO annotation file with the category ``person`` (id 1).

    Raises:
        UserError: A line is not in the format, or an image is missing or damaged.
    """
    infos: list[dict] = []
    annotations: list[dict] = []
    lines = source.read_text(encoding='utf-8', errors='replace').splitlines()
    for number, line in enumerate(track(lines, f'{source.stem}: images'), start=1):
        if not line.strip():
            continue
        try:
            name, boxes = _decode(line)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f'{source}, line {number} is not in the format of CrowdHuman '
                f'({type(error).__name__}: {error})'
            ) from error
        path = images / f'{name}.jpg'
        if not path.is_file():
            raise UserError(f'the annotations name {path}, which does not exist')
        try:
            with Image.open(path) as image:
                width, height = image.size
        except OSError as error:
            raise UserError(f'{path} cannot be read: {error}') from error
        image_id = len(infos)
        infos.append(dict(id=image_id, file_name=path.name, width=width, height=height))
        annotations += (
            dict(id=i, image_id=image_id, category_id=1, **box)
            for i, box in enumerate(boxes, start=len(annotations) + 1)
        )
    categories = [dict(id=1, name='person', supercategory='none')]
    return dict(images=infos, annotations=annotations, categories=categories)


def _decode(line: str) -> tuple[str, list[dict]]:
    """The image's name and the boxes, as COCO writes them, of one line."""
    record = json.loads(line)
    boxes = []
    for box in record['gtboxes']:
        x, y, w, h = box['fbox']
        if w > 0 and h > 0:
            ignored = box['tag'] != 'person' or box.get('extra', {}).get('ignore', 0) != 0
            boxes.append(dict(bbox=[x, y, w, h], area=w * h, iscrowd=int(ignored)))
    return record['ID'], boxes


def convert_crowdhuman(root: str | Path, overwrite: bool = False) -> list[Path]:
    """Write ``annotation_{train,val}.json`` next to the ``.odgt`` files of CrowdHuman.

    Nothing is written unless all of it can be converted.

    Args:
        root: Folder with ``annotations/annotation_{train,val}.odgt`` and ``Images/*.jpg``.
        overwrite: Replace files that are there. Default: False.

    Returns:
        The files written.

    Raises:
        UserError: A file is missing, is not in the format, or is there already.
    """
    sources = [Path(root, 'annotations', f'annotation_{split}.odgt') for split in SPLITS]
    for source in sources:
        if not source.is_file():
            raise UserError(f'{source} does not exist; configs/crowdhuman/README.md says more')
        target = source.with_suffix('.json')
        if target.exists() and not overwrite:
            raise UserError(f'{target} exists already; --overwrite replaces it')
        check_output(target)
    contents = {
        source.with_suffix('.json'): crowdhuman_to_coco(source, Path(root, 'Images'))
        for source in sources
    }
    for target, content in contents.items():
        write_text(target, json.dumps(content))
    return list(contents)
