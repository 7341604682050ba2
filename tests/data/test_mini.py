"""The mini data sets, read back with the libraries that training reads them with."""

import hashlib
import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from internimage_mm.data import (
    MINI_ADE20K_CLASSES,
    MINI_ADE20K_PALETTE,
    MINI_COCO_CLASSES,
    MINI_COCO_PALETTE,
    MINI_IMAGENET_CLASSES,
    make_mini_ade20k,
    make_mini_coco,
    make_mini_imagenet,
    mini_coco,
)
from internimage_mm.data.drawing import SHAPES, coverage, drop_hidden

MAKERS = [make_mini_coco, make_mini_ade20k, make_mini_imagenet]
SPLITS = {'train': 'training', 'val': 'validation'}


@pytest.fixture(scope='module')
def coco_root(tmp_path_factory):
    root = tmp_path_factory.mktemp('coco') / 'mini_coco'
    make_mini_coco(root, 150, 80)
    return root


@pytest.fixture(scope='module')
def ade_root(tmp_path_factory):
    root = tmp_path_factory.mktemp('ade') / 'mini_ade20k'
    make_mini_ade20k(root, 60, 30)
    return root


@pytest.fixture(scope='module')
def tool():
    path = Path(__file__).parents[2] / 'tools' / 'make_mini_dataset.py'
    spec = importlib.util.spec_from_file_location('make_mini_dataset', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hashes(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob('*'))
        if path.is_file()
    }


def load_coco(root, split):
    return COCO(root / 'annotations' / f'instances_{split}.json')


@pytest.mark.parametrize('make', MAKERS)
def test_reproducible(make, tmp_path):
    settings = {'one': (4, 3, 7), 'again': (4, 3, 7), 'seed': (4, 3, 8), 'few': (2, 1, 7)}
    for folder, arguments in settings.items():
        assert make(tmp_path / folder, *arguments)
    one, again, seed, few = (hashes(tmp_path / folder) for folder in settings)
    assert one == again
    # No image twice in splits and seeds; none depends on the number of images.
    images = [root[name] for root in (one, seed) for name in root if name.endswith('.jpg')]
    assert len(set(images)) == len(images) == 14
    pictures = [name for name in few if name.endswith(('.jpg', '.png'))]
    assert len(pictures) in (3, 6)
    assert all(few[name] == one[name] for name in pictures)


def test_coco_annotations_do_not_depend_on_the_number_of_images(coco_root, tmp_path):
    make_mini_coco(tmp_path / 'few', 2, 1)
    few, many = load_coco(tmp_path / 'few', 'train'), load_coco(coco_root, 'train')
    wanted = few.dataset['annotations']
    assert many.dataset['annotations'][: len(wanted)] == wanted


@pytest.mark.parametrize('split', SPLITS)
class TestCoco:
    def test_images(self, coco_root, split):
        coco = load_coco(coco_root, split)
        assert len(coco.imgs) == {'train': 150, 'val': 80}[split]
        for image in coco.imgs.values():
            pixels = cv2.imread(str(coco_root / split / image['file_name']))
            assert pixels.shape == (image['height'], image['width'], 3)
            assert 1 <= len(coco.getAnnIds(image['id'])) <= 5
        assert len({(image['height'], image['width']) for image in coco.imgs.values()}) > 10

    def test_categories(self, coco_root, split):
        coco = load_coco(coco_root, split)
        assert [coco.cats[i]['name'] for i in range(1, 7)] == list(MINI_COCO_CLASSES)
        counts = np.bincount([ann['category_id'] for ann in coco.anns.values()], minlength=7)
        assert counts[0] == 0 and len(counts) == 7
        assert counts[1:].min() > 0.5 * counts[1:].mean()

    def test_area_and_box_are_those_of_the_mask(self, coco_root, split):
        coco = load_coco(coco_root, split)
        for ann in coco.anns.values():
            mask = coco.annToMask(ann)
            y, x = np.nonzero(mask)
            box = [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
            assert ann['area'] == mask.sum() >= 50
            assert ann['bbox'] == box
            assert ann['iscrowd'] == 0

    def test_no_pixel_belongs_to_two_instances(self, coco_root, split):
        coco = load_coco(coco_root, split)
        touching = 0
        for image_id in coco.imgs:
            anns = coco.loadAnns(coco.getAnnIds(image_id))
            assert sum(coco.annToMask(ann) for ann in anns).max() == 1
            boxes = np.array([ann['bbox'] for ann in anns])
            touching += (mask_api.iou(boxes, boxes, [0] * len(anns)) > 0).sum() > len(anns)
        # Else the test above would hold without any handling of occlusion.
        assert touching > 0.1 * len(coco.imgs)


def test_coco_mask_is_where_the_shape_was_drawn(monkeypatch):
    # Flat white shapes on black, no noise: the picture itself says where the visible shapes are.
    white, black = np.full(3, 255, np.float32), np.zeros(3, np.float32)
    monkeypatch.setattr(
        mini_coco, 'random_colour', lambda rng, span=(), avoid=(): white if avoid else black
    )
    monkeypatch.setattr(
        mini_coco, 'fill', lambda rng, pattern, colour, hw, contrast: np.tile(colour, (*hw, 1))
    )
    monkeypatch.setattr(mini_coco, 'finish', lambda rng, picture: picture)
    for index in range(20):
        picture, instances, categories = mini_coco._draw(np.random.default_rng(index))
        assert set(np.unique(instances)) == set(range(len(categories) + 1))
        assert np.all(picture[instances > 0] >= 127)
        # Several shapes may each cover less than half of a pixel on their common edge.
        assert (picture[instances == 0] >= 128).mean() < 0.002


class TestDrawing:
    def test_coverage_of_a_rectangle_is_exact(self):
        outline = np.array([[2.5, 1], [6, 1], [6, 3.25], [2.5, 3.25]])
        expected = np.zeros((5, 8), np.float32)
        expected[1:3, 3:6] = 1
        expected[1:3, 2] = 0.5
        expected[3, 3:6] = 0.25
        expected[3, 2] = 0.125
        # fillPoly draws the outline itself too: up to one of the four fine rows and columns.
        np.testing.assert_allclose(coverage([outline], (5, 8)), expected, atol=0.26)
        assert coverage([outline + 100], (5, 8)).sum() == 0

    @pytest.mark.parametrize(
        ('shape', 'area'),
        [
            ('circle', np.pi),
            ('square', 2),
            ('triangle', 0.75 * 3**0.5),
            ('star', 10 * 0.5 * 0.42 * np.sin(np.pi / 5)),
            ('ring', np.pi * (1 - 0.58**2)),
            ('cross', (4 * 0.6 - 0.36) / 1.09),
        ],
    )
    def test_area_of_shapes(self, shape, area):
        outlines = [outline * 30 + [40, 40] for outline in SHAPES[shape]]
        assert coverage(outlines, (80, 80)).sum() == pytest.approx(area * 900, rel=0.03)

    def test_drop_hidden(self):
        bottom, middle, top = np.zeros((3, 10, 10), np.float32)
        bottom[:, :5] = 1
        middle[:, 1:6] = 1
        top[:, 5:] = 1
        # Middle shows 4 of 5 columns and leaves 1 of 5 of bottom.
        assert drop_hidden([bottom, middle, top], 0.4) == [1, 2]
        assert drop_hidden([bottom, middle, top], 0.2) == [0, 1, 2]
        # Without middle nothing hides bottom.
        assert drop_hidden([bottom, middle, top], 0.9) == [0, 2]


@pytest.mark.parametrize('folder', SPLITS.values())
class TestAde20k:
    def test_pairs_and_label_values(self, ade_root, folder):
        images = sorted((ade_root / 'images' / folder).glob('*.jpg'))
        label_maps = sorted((ade_root / 'annotations' / folder).glob('*.png'))
        assert [path.stem for path in images] == [path.stem for path in label_maps]
        assert len(images) == {'training': 60, 'validation': 30}[folder]
        pixels = np.zeros(256, int)
        for image, label_map in zip(images, label_maps, strict=True):
            labels = cv2.imread(str(label_map), cv2.IMREAD_UNCHANGED)
            assert labels.dtype == np.uint8
            assert labels.shape == cv2.imread(str(image)).shape[:2]
            pixels += np.bincount(labels.ravel(), minlength=256)
        share = pixels / pixels.sum()
        assert share[len(MINI_ADE20K_CLASSES) + 1 :].sum() == 0
        assert share[1 : len(MINI_ADE20K_CLASSES) + 1].min() > 0.01
        assert 0.002 < share[0] < 0.1


@pytest.mark.parametrize(
    ('config', 'classes', 'palette'),
    [
        ('mask-rcnn_internimage-nano_mini-coco', MINI_COCO_CLASSES, MINI_COCO_PALETTE),
        ('upernet_internimage-nano_mini-ade20k', MINI_ADE20K_CLASSES, MINI_ADE20K_PALETTE),
    ],
)
def test_quickstart_configs_name_the_classes_in_order(config, classes, palette):
    path = Path(__file__).parents[2] / 'configs' / 'quickstart' / f'{config}.py'
    cfg = Config.fromfile(path, import_custom_modules=False)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert loader.dataset.metainfo.classes == classes
        assert loader.dataset.metainfo.palette == list(palette)


def test_imagenet_folders(tmp_path):
    make_mini_imagenet(tmp_path / 'data', 15, 4)
    folders = {split: sorted((tmp_path / 'data' / split).iterdir()) for split in SPLITS}
    for split, total in (('train', 15), ('val', 4)):
        assert [path.name for path in folders[split]] == list(MINI_IMAGENET_CLASSES)
        counts = [len(list(path.glob('*.jpg'))) for path in folders[split]]
        assert sum(counts) == total and max(counts) - min(counts) == 1
    for path in (tmp_path / 'data').rglob('*.jpg'):
        assert all(64 <= side <= 80 for side in cv2.imread(str(path)).shape[:2])
    config = Path(__file__).parents[2] / 'configs/quickstart/internimage-nano_mini-imagenet.py'
    cfg = Config.fromfile(config, import_custom_modules=False)
    assert cfg.train_dataloader.dataset.classes == list(MINI_IMAGENET_CLASSES)


def coco_mean_colours(root, split):
    coco = load_coco(root, split)
    for ann in coco.anns.values():
        name = coco.imgs[ann['image_id']]['file_name']
        image = cv2.imread(str(root / split / name))
        yield image[coco.annToMask(ann) == 1].mean(0), ann['category_id'] - 1


def test_colour_does_not_tell_the_shape(coco_root):
    number = len(MINI_COCO_CLASSES)
    (colours, labels), (val_colours, val_labels) = (
        [np.array(column) for column in zip(*coco_mean_colours(coco_root, split), strict=True)]
        for split in SPLITS
    )

    def recall(colours, labels, val_colours, val_labels):
        """Mean recall of the nearest class centroid; a guess has 1 / number."""
        centroids = np.stack([colours[labels == i].mean(0) for i in range(number)])
        nearest = np.linalg.norm(val_colours[:, None] - centroids, axis=2).argmin(1)
        return np.mean([(nearest[val_labels == i] == i).mean() for i in range(number)])

    def both_ways(colours, val_colours):
        forth = recall(colours, labels, val_colours, val_labels)
        return (forth + recall(val_colours, val_labels, colours, labels)) / 2

    limit = 1 / number + 0.08
    assert both_ways(colours, val_colours) < limit
    # The limit is a tight one: a tint of a quarter of the colour range by class goes past it.
    tints = 50 * np.random.default_rng(0).choice([-1, 1], size=(number, 3))
    assert both_ways(colours + tints[labels], val_colours + tints[val_labels]) > limit


def test_palettes():
    for classes, palette in (
        (MINI_COCO_CLASSES, MINI_COCO_PALETTE),
        (MINI_ADE20K_CLASSES, MINI_ADE20K_PALETTE),
    ):
        assert len(set(classes)) == len(classes) == len(palette) == len(set(palette))


@pytest.mark.parametrize('make', MAKERS)
class TestWriting:
    def test_same_settings_are_left_alone(self, make, tmp_path):
        root = tmp_path / 'data'
        assert make(root, 2, 1, 5)
        marker = root / 'marker'
        marker.touch()
        assert not make(root, 2, 1, 5)
        assert not make(root, 2, 1, 5, overwrite=True)
        assert marker.exists()

    def test_other_settings_need_overwrite(self, make, tmp_path):
        root = tmp_path / 'data'
        make(root, 2, 1, 5)
        before = hashes(root)
        for other in ((3, 1, 5), (2, 2, 5), (2, 1, 6)):
            with pytest.raises(FileExistsError, match='the option overwrite replaces it'):
                make(root, *other)
        assert hashes(root) == before
        assert make(root, *other, overwrite=True)
        make(tmp_path / 'fresh', *other)
        assert hashes(root) == hashes(tmp_path / 'fresh')
        assert sorted(path.name for path in tmp_path.iterdir()) == ['data', 'fresh']

    def test_foreign_folder_is_never_overwritten(self, make, tmp_path):
        precious = tmp_path / 'data' / 'precious.txt'
        precious.parent.mkdir()
        precious.write_text('keep me')
        for overwrite in (False, True):
            with pytest.raises(FileExistsError, match='not a generated mini data set'):
                make(precious.parent, 2, 1, overwrite=overwrite)
        assert precious.read_text() == 'keep me'

    def test_empty_folder_is_filled(self, make, tmp_path):
        assert make(tmp_path, 1, 1)
        assert (tmp_path / 'mini_dataset.json').exists()

    def test_interrupt_leaves_no_half_data_set(self, make, tmp_path, monkeypatch):
        written = []

        def interrupted(path, image):
            written.append(path)
            if len(written) == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(f'{make.__module__}.write_image', interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / 'data', 5, 1)
        assert list(tmp_path.iterdir()) == []

    def test_interrupted_overwrite_keeps_the_old_data_set(self, make, tmp_path, monkeypatch):
        make(tmp_path / 'data', 2, 1)
        before = hashes(tmp_path / 'data')

        def interrupted(path, image):
            raise KeyboardInterrupt

        monkeypatch.setattr(f'{make.__module__}.write_image', interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / 'data', 3, 1, overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == ['data']
        assert hashes(tmp_path / 'data') == before

    @pytest.mark.parametrize(
        ('arguments', 'error', 'message'),
        [
            ((0, 1, 0), ValueError, 'num_train must be at least 1, got 0'),
            ((1, -2, 0), ValueError, 'num_val must be at least 1, got -2'),
            ((1, 1, -1), ValueError, 'seed must be at least 0, got -1'),
            ((1.5, 1, 0), TypeError, r'num_train must be an int, got 1.5 \(float\)'),
        ],
    )
    def test_bad_arguments(self, make, tmp_path, arguments, error, message):
        with pytest.raises(error, match=message):
            make(tmp_path / 'data', *arguments)
        assert list(tmp_path.iterdir()) == []


class TestTool:
    def test_all(self, tool, tmp_path, capsys):
        command = ['--out', str(tmp_path), '--num-train', '2', '--num-val', '1', '--seed', '3']
        tool.main(command)
        assert 'written' in capsys.readouterr().out
        settings = json.loads((tmp_path / 'mini_coco' / 'mini_dataset.json').read_text())
        assert settings['num_train'] == 2 and settings['num_val'] == 1 and settings['seed'] == 3
        make_mini_ade20k(tmp_path / 'same', 2, 1, 3)
        assert hashes(tmp_path / 'mini_ade20k') == hashes(tmp_path / 'same')
        tool.main(command)
        assert capsys.readouterr().out.count('left alone') == 3

    def test_one(self, tool, tmp_path):
        tool.main(['ade20k', '--out', str(tmp_path), '--num-train', '1', '--num-val', '1'])
        assert [path.name for path in tmp_path.iterdir()] == ['mini_ade20k']

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            (['pascal'], "invalid choice: 'pascal'"),
            (['coco', '--num-train', '0'], 'num_train must be at least 1, got 0'),
            (['coco', '--num-train', 'many'], "invalid int value: 'many'"),
        ],
    )
    def test_bad_arguments(self, tool, tmp_path, capsys, arguments, message):
        with pytest.raises(SystemExit) as stopped:
            tool.main([*arguments, '--out', str(tmp_path)])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err

    def test_folder_that_cannot_be(self, tool, tmp_path):
        (tmp_path / 'file').touch()
        with pytest.raises(SystemExit, match='^error: .*file cannot be a folder'):
            tool.main(['coco', '--out', str(tmp_path / 'file')])

    def test_other_settings(self, tool, tmp_path, capsys):
        command = ['coco', '--out', str(tmp_path), '--num-train', '1', '--num-val', '1']
        tool.main(command)
        with pytest.raises(SystemExit):
            tool.main([*command, '--seed', '1'])
        message = capsys.readouterr().err
        assert 'holds a data set with seed 0 instead of 1; --overwrite replaces it' in message
        tool.main([*command, '--seed', '1', '--overwrite'])
