"""Data sets of the official release that mmseg lacks, on generated folders."""

import cv2
import numpy as np
import pytest
from golden_detseg import ROOT
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from mmseg.datasets import CityscapesDataset

from internimage_mm.commands import UserError, check_data, dataset_meta

CONFIGS = ROOT / 'configs'
SIZE = (24, 32)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def write_image(path, seed=0):
    write(path, np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8))


def write_labels(path, labels):
    """A label map whose first pixels, row by row, are these labels; the rest is the last one."""
    image = np.full(SIZE, labels[-1], dtype=np.uint8)
    image.ravel()[: len(labels)] = labels
    write(path, image)


def config_in(folder, name):
    """A config whose data lies in the folder instead of ``data``."""
    cfg = Config.fromfile(CONFIGS / name)
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        for leaf in dataset.get('datasets', [dataset]):
            leaf.data_root = str(folder / leaf.data_root.removeprefix('data/'))
    return cfg


def build(dataset):
    with DefaultScope.overwrite_default_scope('mmseg'):
        return DATASETS.build(dataset)


def loaded_labels(dataset, index, until=None):
    """The label map as the first transforms of the data set's pipeline load it."""
    results = dataset.get_data_info(index)
    with DefaultScope.overwrite_default_scope('mmseg'):
        for transform in dataset.pipeline.transforms:
            name = type(transform).__name__
            if name in ('LoadImageFromFile', 'LoadAnnotations', 'MapillaryToCityscapes'):
                results = transform(results)
    return results['gt_seg_map']


def test_nyu(tmp_path):
    cfg = config_in(tmp_path, 'nyu/mask2former_internimage-h_16xb1-40k_nyu-480x480.py')
    root = tmp_path / 'nyu_depth_v2'
    for name, labels in (('5', [0, 1, 40]), ('6', [2]), ('7', [3])):
        write_image(root / 'image' / f'{name}.png')
        write_labels(root / 'label40' / f'{name}.png', labels)
    (root / 'train.txt').write_text('5\n7\n')
    (root / 'test.txt').write_text('6\n')
    check_data(cfg, 'train', 'val', 'test')

    train = build(cfg.train_dataloader.dataset)
    assert [train[i]['data_samples'].img_path.rpartition('/')[2] for i in range(2)] == [
        '5.png',
        '7.png',
    ]
    # 0 is ignored, label k is class k - 1.
    labels = loaded_labels(train, 0)
    assert labels.ravel()[:3].tolist() == [255, 0, 39]
    classes = train.metainfo['classes']
    assert len(classes) == len(set(classes)) == len(train.metainfo['palette']) == 40
    assert (classes[0], classes[39]) == ('wall', 'otherprop')

    test = build(cfg.test_dataloader.dataset)
    assert len(test) == 1
    sample = test[0]
    # Short edge 480 by 640 at most, then stretched to a multiple of 32; the labels keep their size.
    assert tuple(sample['inputs'].shape) == (3, 480, 640)
    assert sample['data_samples'].gt_sem_seg.shape == SIZE
    assert sample['data_samples'].gt_sem_seg.data.unique().tolist() == [1]


# Mapillary's label of each class of Cityscapes, by the English name, and some that have none.
MERGED = {
    'Road': 'road',
    'Lane Marking - General': 'road',
    'Manhole': 'road',
    'Curb': 'sidewalk',
    'Sidewalk': 'sidewalk',
    'Building': 'building',
    'Wall': 'wall',
    'Fence': 'fence',
    'Pole': 'pole',
    'Utility Pole': 'pole',
    'Traffic Light': 'traffic light',
    'Traffic Sign (Front)': 'traffic sign',
    'Vegetation': 'vegetation',
    'Terrain': 'terrain',
    'Sky': 'sky',
    'Person': 'person',
    'Bicyclist': 'rider',
    'Motorcyclist': 'rider',
    'Other Rider': 'rider',
    'Car': 'car',
    'Truck': 'truck',
    'Bus': 'bus',
    'On Rails': 'train',
    'Motorcycle': 'motorcycle',
    'Bicycle': 'bicycle',
}


def test_mapillary_labels_are_merged():
    from mmseg.datasets import MapillaryDataset_v1

    names = MapillaryDataset_v1.METAINFO['classes']
    assert len(names) == 66
    cityscapes = CityscapesDataset.METAINFO['classes']
    expected = [cityscapes.index(MERGED[n]) if n in MERGED else 255 for n in names]
    assert set(MERGED) <= set(names)
    assert set(expected) == {*range(19), 255}
    with DefaultScope.overwrite_default_scope('mmseg'):
        transform = TRANSFORMS.build(dict(type='MapillaryToCityscapes'))
    labels = np.arange(66, dtype=np.uint8).reshape(6, 11)
    merged = transform({'gt_seg_map': labels.copy()})['gt_seg_map']
    assert merged.dtype == np.uint8
    assert merged.ravel().tolist() == expected
    # What is no label at all is ignored too.
    assert (transform({'gt_seg_map': np.arange(66, 256)})['gt_seg_map'] == 255).all()


@pytest.mark.parametrize(
    'name',
    ['segformer_internimage-l_8xb2-80k_mapillary-512x1024',
     'mask2former_internimage-h_16xb2-80k_mapillary-896x896'],
)  # fmt: skip
def test_mapillary(tmp_path, name):
    cfg = config_in(tmp_path, f'mapillary/{name}.py')
    for part, label in (('training', 13), ('validation', 64)):
        write_image(tmp_path / 'Mapillary' / part / 'images' / 'a.jpg')
        write_labels(tmp_path / 'Mapillary' / part / 'labels' / 'a.png', [label, 19])
    write_image(tmp_path / 'cityscapes/leftImg8bit/val/ulm/ulm_1_leftImg8bit.png')
    write_labels(tmp_path / 'cityscapes/gtFine/val/ulm/ulm_1_gtFine_labelTrainIds.png', [255, 18])
    check_data(cfg, 'train', 'val', 'test')

    train = build(cfg.train_dataloader.dataset)
    assert len(train) == 2
    assert train.metainfo['classes'] == CityscapesDataset.METAINFO['classes']
    labels = [loaded_labels(part, 0).ravel()[:2].tolist() for part in train.datasets]
    assert labels == [[0, 11], [255, 11]]  # road, person; ego vehicle
    crop = next(t for t in cfg.train_pipeline if t.type == 'RandomCrop').crop_size
    for i in range(2):
        sample = train[i]
        assert sample['inputs'].shape[1:] == sample['data_samples'].gt_sem_seg.shape
        assert all(a <= b for a, b in zip(sample['inputs'].shape[1:], crop, strict=True))

    val = build(cfg.val_dataloader.dataset)
    assert type(val) is CityscapesDataset
    assert val[0]['data_samples'].gt_sem_seg.data.unique().tolist() == [18, 255]


CITYSCAPES_EXTRA = 'cityscapes/upernet_internimage-l_8xb2-160k_mapillary2cityscapes-512x1024.py'


@pytest.fixture
def cityscapes_extra(tmp_path):
    """Config and root of a tiny Cityscapes with the refined coarse part."""
    root = tmp_path / 'cityscapes'
    for part, labels_in, label in (
        ('train', 'gtFine', 3),
        ('train_extra', 'refinement_final', 5),
        ('val', 'gtFine', 7),
    ):
        write_image(root / 'leftImg8bit' / part / 'ulm' / f'{part}_leftImg8bit.png')
        name = f'{part}_gtFine_labelTrainIds.png'
        write_labels(root / labels_in / part / 'ulm' / name, [label])
    return config_in(tmp_path, CITYSCAPES_EXTRA), root


def test_cityscapes_extra(cityscapes_extra):
    cfg, _ = cityscapes_extra
    check_data(cfg, 'train', 'val', 'test')
    train = build(cfg.train_dataloader.dataset)
    labels = [loaded_labels(part, 0).max() for part in train.datasets]
    assert labels == [3, 5]
    assert len(build(cfg.val_dataloader.dataset)) == 1


def test_missing_extra_labels(cityscapes_extra):
    """As after downloading without converting the names."""
    cfg, root = cityscapes_extra
    folder = root / 'refinement_final' / 'train_extra' / 'ulm'
    path = next(folder.iterdir())
    path.rename(folder / 'train_extra_leftImg8bit.png')
    with pytest.raises(UserError) as error:
        check_data(cfg, 'train')
    message = str(error.value)
    assert f'the train data lacks 1 of 1 label maps: {path} does not exist' in message
    assert 'configs/cityscapes/README.md says where to get it' in message
    check_data(cfg, 'test')


def test_missing_folder(cityscapes_extra):
    cfg, root = cityscapes_extra
    (root / 'refinement_final').rename(root / 'refined')
    with pytest.raises(
        UserError, match='needs .*refinement_final/train_extra, which does not exist'
    ):
        check_data(cfg, 'train')


def test_empty_folder(cityscapes_extra):
    cfg, root = cityscapes_extra
    for path in (root / 'leftImg8bit' / 'val').rglob('*.png'):
        path.unlink()
    with pytest.raises(UserError) as error:
        check_data(cfg, 'val')
    assert 'the val data has no images: there is no *_leftImg8bit.png in ' in str(error.value)
    assert 'configs/cityscapes/README.md' in str(error.value)


def test_missing_listed_image(tmp_path):
    cfg = config_in(tmp_path, 'nyu/mask2former_internimage-h_16xb1-40k_nyu-480x480.py')
    root = tmp_path / 'nyu_depth_v2'
    write_image(root / 'image' / '1.png')
    write_labels(root / 'label40' / '1.png', [1])
    (root / 'test.txt').write_text('1\n2\n')
    with pytest.raises(UserError) as error:
        check_data(cfg, 'test')
    assert f'lacks 1 of 2 images: {root}/image/2.png does not exist' in str(error.value)
    assert 'configs/nyu/README.md' in str(error.value)


@pytest.mark.parametrize(
    ('config', 'missing', 'readme'),
    [
        ('ade20k/upernet_internimage-t_8xb2-160k_ade20k-512x512.py', 'ade', 'ade20k'),
        (CITYSCAPES_EXTRA, 'cityscapes', 'cityscapes'),
        ('mapillary/upernet_internimage-l_8xb2-80k_mapillary-512x1024.py', 'Mapillary',
         'mapillary'),
        ('coco-stuff/mask2former_internimage-h_16xb1-80k_cocostuff164k-896x896.py',
         'coco_stuff164k', 'coco-stuff'),
        ('coco-stuff/mask2former_internimage-h_16xb1-40k_cocostuff164k-to-10k-512x512.py',
         'coco_stuff10k', 'coco-stuff'),
        ('nyu/mask2former_internimage-h_16xb1-40k_nyu-480x480.py', 'nyu_depth_v2', 'nyu'),
        ('pascal-context/mask2former_internimage-h_16xb1-40k_pascal-context-59-480x480.py',
         'VOCdevkit/VOC2010', 'pascal-context'),
    ],
)  # fmt: skip
def test_no_data_at_all(tmp_path, config, missing, readme):
    cfg = config_in(tmp_path, config)
    with pytest.raises(UserError) as error:
        check_data(cfg, 'train')
    assert f'the train data needs {tmp_path / missing}' in str(error.value)
    assert f'configs/{readme}/README.md says where to get it' in str(error.value)


@pytest.mark.parametrize(
    ('folder', 'classes'),
    [
        ('ade20k', 150),
        ('cityscapes', 19),
        ('coco-stuff', 171),
        ('mapillary', 19),
        ('nyu', 40),
        ('pascal-context', 59),
    ],
)
def test_classes_and_colours_without_data(folder, classes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (CONFIGS / folder).glob('*.py'):
        cfg = Config.fromfile(path)
        with DefaultScope.overwrite_default_scope('mmseg'):
            meta = dataset_meta(cfg)
        assert len(set(meta['classes'])) == len(meta['palette']) == classes
