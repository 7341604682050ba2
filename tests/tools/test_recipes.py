"""docs/your_data.md from boxes and label maps to a result, on a few small images."""

import csv
import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from internimage_mm.data import MINI_ADE20K_CLASSES, MINI_COCO_CLASSES

from .conftest import ROOT, error_of, load_tool, run_tool

IN_THIS_PROCESS = [
    f'{split}_dataloader.{setting}'
    for split in ('train', 'val', 'test')
    for setting in ('num_workers=0', 'persistent_workers=False')
]


def corners(box):
    left, top, width, height = box
    return [left, top, left + width, top + height]


def boxes_by_image(path):
    """Sorted corners and names by image of a COCO file."""
    content = json.loads(Path(path).read_text())
    names = {category['id']: category['name'] for category in content['categories']}
    found = {image['file_name']: [] for image in content['images']}
    files = {image['id']: image['file_name'] for image in content['images']}
    for box in content['annotations']:
        row = (*corners(box['bbox']), names[box['category_id']])
        found[files[box['image_id']]].append(row)
    return {name: sorted(rows) for name, rows in found.items()}


@pytest.fixture(scope='module')
def recipes(tmp_path_factory, mini_coco, mini_ade20k):
    """A copy of the recipes, in which the first part is changed as the page says."""
    configs = tmp_path_factory.mktemp('own') / 'configs'
    shutil.copytree(ROOT / 'configs' / '_base_', configs / '_base_')
    shutil.copytree(ROOT / 'configs' / 'recipes', configs / 'mine')
    changes = {
        'boxes': dict(
            classes=MINI_COCO_CLASSES, data_root=str(mini_coco),
            train_file='annotations/instances_train.json', val_images='val/',
            val_file='annotations/instances_val.json', batch_size=2, max_epochs=1,
            scale=(96, 96),
        ),
        'labels': dict(
            classes=MINI_ADE20K_CLASSES, data_root=str(mini_ade20k), reduce_zero_label=True,
            crop_size=(64, 64), batch_size=2, max_iters=2,
        ),
    }  # fmt: skip
    for name, values in changes.items():
        path = configs / 'mine' / f'{name}.py'
        head, rest = path.read_text().split('# ---- follows from it')
        assert all(key in head for key in values)
        lines = [f'{key} = {value!r}' for key, value in values.items()]
        path.write_text('\n'.join([head, *lines, '# ---- follows from it' + rest]))
    return configs / 'mine'


def write_csv(path, found):
    with path.open('w', newline='', encoding='utf-8-sig') as file:
        writer = csv.writer(file)
        writer.writerow(['image_path', 'xmin', 'ymin', 'xmax', 'ymax', 'label'])
        for name, rows in found.items():
            writer.writerows([[name, *row] for row in rows] or [[name, '', '', '', '', '']])


def write_voc(path, found):
    path.mkdir()
    for name, rows in found.items():
        root = ElementTree.Element('annotation')
        ElementTree.SubElement(root, 'filename').text = name
        for xmin, ymin, xmax, ymax, label in rows:
            element = ElementTree.SubElement(root, 'object')
            ElementTree.SubElement(element, 'name').text = label
            box = ElementTree.SubElement(element, 'bndbox')
            # From 1 on, and the last pixel belongs to it.
            for key, value in dict(xmin=xmin + 1, ymin=ymin + 1, xmax=xmax, ymax=ymax).items():
                ElementTree.SubElement(box, key).text = str(value)
        ElementTree.ElementTree(root).write(path / f'{Path(name).stem}.xml')


@pytest.mark.parametrize('write', [write_csv, write_voc])
def test_boxes_become_coco(tmp_path, mini_coco, write):
    expected = boxes_by_image(mini_coco / 'annotations' / 'instances_val.json')
    next(iter(expected.values())).clear()  # an image without objects
    write(tmp_path / 'mine', expected)
    load_tool('convert_boxes').main(
        [str(tmp_path / 'mine'), str(tmp_path / 'out.json'), '--images', str(mini_coco / 'val')]
    )
    assert boxes_by_image(tmp_path / 'out.json') == expected


def test_tiles_of_images_with_boxes(tmp_path):
    """A filled box is where the tile says; one that a tile cuts stays if half of it is left."""
    pixels = np.zeros((150, 230, 3), np.uint8)
    boxes = [(10, 10, 30, 40), (70, 20, 110, 50), (85, 100, 125, 140), (200, 120, 230, 150)]
    for left, top, right, bottom in boxes:
        pixels[top:bottom, left:right] = 255
    for day, content in (('1', pixels), ('2', pixels & 0)):  # two images of one name
        (tmp_path / day).mkdir()
        cv2.imwrite(str(tmp_path / day / 'a.png'), content)
    found = {'1/a.png': [(*box, 'thing') for box in boxes], '2/a.png': []}
    write_csv(tmp_path / 'a.csv', found)
    arguments = [str(tmp_path / 'a.csv'), str(tmp_path / 'tiles.json')]
    load_tool('convert_boxes').main([*arguments, '--tile', '100', '--overlap', '0.2'])
    seen = 0
    for name, rows in boxes_by_image(tmp_path / 'tiles.json').items():
        tile = cv2.imread(str(tmp_path / 'tiles' / name))[..., 0]
        assert tile.shape == (100, 100)
        stats = cv2.connectedComponentsWithStats(tile)[2][1:]
        left, top = map(int, Path(name).stem.split('_')[2:])
        expected = []
        for x, y, w, h, area in stats:
            (box,) = [b for b in boxes if b[0] <= left + x < b[2] and b[1] <= top + y < b[3]]
            if area >= 0.5 * (box[2] - box[0]) * (box[3] - box[1]):
                expected.append((x, y, x + w, y + h, 'thing'))
        assert rows == sorted(expected)
        seen += len(rows)
    assert seen > len(boxes)
    with pytest.raises(SystemExit, match='at least 1 pixel, got 0'):
        load_tool('convert_boxes').main([*arguments, '--tile', '0'])


def test_boxes_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('a.csv').write_text('image_path,xmin,ymin,xmax,label\n')
    Path('b.csv').write_text('image_path,xmin,ymin,xmax,ymax,label\na.png,1,2,x,4,c\n')
    Path('voc').mkdir()
    Path('voc/a.xml').write_text('<annotation><filename>a.png</filename><object/></annotation>')
    for boxes, message in (
        ('none.csv', 'none.csv does not exist'),
        ('a.csv', 'has no column ymax'),
        ('b.csv', 'b.csv, line 2'),
        ('voc', 'a.xml is not an annotation file of VOC: <object> has no bndbox/xmin'),
    ):
        with pytest.raises(SystemExit, match=message):
            load_tool('convert_boxes').main([boxes, 'out.json'])


def test_detection(tmp_path, recipes, mini_coco):
    config, images = recipes / 'faster-rcnn_internimage-nano.py', mini_coco / 'val'
    run_tool(
        'train', config, '--work-dir', tmp_path / 'run',
        options=[*IN_THIS_PROCESS, 'train_cfg.val_interval=1'],
    )  # fmt: skip
    run_tool(
        'image_demo', images, config, tmp_path / 'run' / 'epoch_1.pth', '--score-thr', 0,
        '--json', tmp_path / 'found.json',
    )  # fmt: skip
    annotations = mini_coco / 'annotations' / 'instances_val.json'
    evaluate = load_tool('evaluate_json').main
    evaluate([str(tmp_path / 'found.json'), str(annotations)])
    content = json.loads(annotations.read_text())
    perfect = [
        {
            'image': image['file_name'],
            'predictions': [
                {
                    'category': MINI_COCO_CLASSES[box['category_id'] - 1],
                    'score': 1,
                    'bbox': box['bbox'],
                }
                for box in content['annotations']
                if box['image_id'] == image['id']
            ],
        }
        for image in content['images']
    ]
    (tmp_path / 'found.json').write_text(json.dumps(perfect))
    assert evaluate([str(tmp_path / 'found.json'), str(annotations)]) == {'AP': 1, 'AP50': 1}
    load_tool('plot_log').main([str(tmp_path / 'run'), '--out', str(tmp_path / 'curves.png')])
    drawn = cv2.imread(str(tmp_path / 'curves.png'))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 10
    losses, metrics = load_tool('plot_log').read_curves(tmp_path / 'run')
    assert list(losses['loss']) and list(metrics['coco/bbox_mAP_50']) == [1]


def test_segmentation(tmp_path, recipes):
    config = recipes / 'upernet_internimage-nano.py'
    run_tool('train', config, '--work-dir', tmp_path, options=IN_THIS_PROCESS)
    metrics = run_tool(
        'test', config, tmp_path / 'iter_2.pth', '--work-dir', tmp_path, options=IN_THIS_PROCESS
    )
    assert 0 <= metrics['mIoU'] <= 100


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'configs' / 'recipes').glob('*_*.py')), ids=lambda path: path.stem
)
def test_class_names_stand_in_one_place(recipes, path):
    cfg = Config.fromfile(recipes / path.name)
    heads = str(cfg.model).count("'num_classes': ")
    expected = MINI_COCO_CLASSES if 'rcnn' in path.name else MINI_ADE20K_CLASSES
    assert heads == str(cfg.model).count(f"'num_classes': {len(expected)}") > 0
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert tuple(loader.dataset.metainfo.classes) == expected


def test_classes_of_another_file(recipes):
    message = error_of(
        'train', recipes / 'faster-rcnn_internimage-nano.py',
        options=['train_dataloader.dataset.metainfo.classes=[tree]'],
    )  # fmt: skip
    assert 'does not define the categories tree' in message
