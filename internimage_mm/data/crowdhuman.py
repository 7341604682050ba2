"""CrowdHuman's annotations in COCO format, as the official CrowdHuman config reads them."""

import json
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from rich.progress import track

from internimage_mm.cli import UserError

SPLITS = ('train', 'val')


def crowdhuman_to_coco(records: Iterable[dict], images: Path) -> dict:
    """Convert the lines of an ``.odgt`` file.

    Boxes are those of the full body (``fbox``), which may leave the image; empty ones are left out.
    What is not a person, and people marked as ignored, become ``iscrowd`` regions.

    Args:
        records: Decoded lines: ``ID``, the image's name without ending, and ``gtboxes``.
        images: Folder of the ``.jpg`` files, which are opened for their size.

    Returns:
        The content of a COCO annotation file with the category ``person`` (id 1).

    Raises:
        UserError: An image is missing.
    """
    infos: list[dict] = []
    annotations: list[dict] = []
    for image_id, record in enumerate(records):
        path = images / f'{record["ID"]}.jpg'
        if not path.is_file():
            raise UserError(f'the annotations name {path}, which does not exist')
        with Image.open(path) as image:
            width, height = image.size
        infos.append(dict(id=image_id, file_name=path.name, width=width, height=height))
        for box in record['gtboxes']:
            *_, w, h = box['fbox']
            if w <= 0 or h <= 0:
                continue
            ignored = box['tag'] != 'person' or box.get('extra', {}).get('ignore', 0) != 0
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=1,
                    bbox=box['fbox'],
                    area=w * h,
                    iscrowd=int(ignored),
                )
            )
    categories = [dict(id=1, name='person', supercategory='none')]
    return dict(images=infos, annotations=annotations, categories=categories)


def convert_crowdhuman(root: str | Path) -> list[Path]:
    """Write ``annotation_{train,val}.json`` beside the ``.odgt`` files of CrowdHuman.

    Args:
        root: Folder with ``annotations/annotation_{train,val}.odgt`` and ``Images/*.jpg``.

    Returns:
        The files written.

    Raises:
        UserError: A file is missing or is not in the format.
    """
    written = []
    for split in SPLITS:
        source = Path(root, 'annotations', f'annotation_{split}.odgt')
        if not source.is_file():
            raise UserError(f'{source} does not exist; configs/crowdhuman/README.md says more')
        try:
            records = [json.loads(line) for line in source.read_text().splitlines() if line.strip()]
        except ValueError as error:
            raise UserError(f'{source} has a line that is not JSON: {error}') from error
        content = crowdhuman_to_coco(track(records, f'{split}: images'), Path(root, 'Images'))
        target = source.with_suffix('.json')
        target.write_text(json.dumps(content))
        written.append(target)
    return written
