"""tools/test.py --format-only: what it writes, read back by the rules of the servers."""

import json
import pickle
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from lvis import LVISResults
from mmdet.datasets import VOCDataset
from mmengine.config import Config
from mmseg.datasets import CityscapesDataset
from pycocotools.coco import COCO

from internimage_mm.commands import UserError
from internimage_mm.commands.submission import submit_to
from internimage_mm.data import MINI_COCO_CLASSES
from internimage_mm.training import build_model

from .conftest import DETECTOR, ROOT, SEGMENTOR, run_tool, write_config


def submit(config, folder, *options):
    """Run the tool with an untrained model; returns what the model predicted."""
    torch.manual_seed(0)
    checkpoint = folder / 'model.pth'
    torch.save({'state_dict': build_model(Config.fromfile(config)).state_dict()}, checkpoint)
    arguments = [
        '--format-only',
        folder / 'files',
        '--out',
        folder / 'out.pkl',
        '--work-dir',
        folder,
    ]
    assert run_tool('test', config, checkpoint, *arguments, options=options) == {}
    return pickle.loads((folder / 'out.pkl').read_bytes())


def images_without_annotations(root, folder):
    """A COCO or LVIS file that names images and categories only, as those of the test sets."""
    content = json.loads((root / 'annotations' / 'instances_val.json').read_text())
    content['annotations'] = []
    for image in content['images']:
        image['coco_url'] = f'http://images.cocodataset.org/{image["file_name"]}'
    path = folder / 'image_info.json'
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ('dataset', 'metric'), [('CocoDataset', 'CocoMetric'), ('LVISV1Dataset', 'LVISMetric')]
)
def test_coco_and_lvis(tmp_path, detector_config, mini_coco, dataset, metric):
    info = images_without_annotations(mini_coco, tmp_path)
    predictions = submit(
        detector_config,
        tmp_path,
        f'test_dataloader.dataset.ann_file={info}',
        f'test_dataloader.dataset.type={dataset}',
        f'test_evaluator.type={metric}',
    )
    images = COCO(str(info))
    for kind in ('bbox', 'segm'):
        file = str(tmp_path / 'files' / f'results.{kind}.json')
        if metric == 'LVISMetric':
            entries = LVISResults(str(info), file).img_ann_map
        else:
            entries = images.loadRes(file).imgToAnns
        for prediction in predictions:
            expected = prediction['pred_instances']
            found = entries[prediction['img_id']]
            assert len(found) == len(expected['scores']) == 5
            names = [MINI_COCO_CLASSES[label] for label in expected['labels']]
            assert [images.cats[entry['category_id']]['name'] for entry in found] == names
            scores = [entry['score'] for entry in found]
            assert scores == pytest.approx(expected['scores'].tolist())
            if kind == 'bbox':
                left_top_size = expected['bboxes'].clone()
                left_top_size[:, 2:] -= left_top_size[:, :2]
                boxes = torch.tensor([entry['bbox'] for entry in found])
                torch.testing.assert_close(boxes, left_top_size)
            else:
                for entry, mask in zip(found, expected['masks'], strict=True):
                    assert entry['segmentation']['counts'] == mask['counts'].decode()


def test_voc(tmp_path, mini_coco):
    """The development kit gives names of images, and no annotations for those of the test."""
    classes = VOCDataset.METAINFO['classes']
    config = write_config(DETECTOR, tmp_path / 'voc.py', mini_coco, classes)
    lists = tmp_path / 'VOC2012' / 'ImageSets' / 'Main'
    lists.mkdir(parents=True)
    shutil.copytree(mini_coco / 'val', tmp_path / 'VOC2012' / 'JPEGImages')
    (lists / 'test.txt').write_text('000000\n000001\n')
    config.write_text(
        config.read_text() + 'test_dataloader = dict(batch_size=1, num_workers=0, '
        "sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(type='VOCDataset', "
        f"data_root='{tmp_path}', ann_file='VOC2012/ImageSets/Main/test.txt', "
        "data_prefix=dict(sub_data_root='VOC2012/'), test_mode=True, "
        'pipeline=[load, resize, load_annotations, pack]))\n'
        "test_evaluator = dict(type='VOCMetric')\n"
    )
    predictions = submit(config, tmp_path)
    found = {}
    for index, name in enumerate(classes):
        lines = (tmp_path / 'files' / f'comp4_det_test_{name}.txt').read_text().splitlines()
        for image, *numbers in map(str.split, lines):
            found.setdefault(image, []).append([index, *map(float, numbers)])
    assert sorted(found) == ['000000', '000001']
    for prediction in predictions:
        instances = prediction['pred_instances']
        expected = torch.cat(
            [instances['labels'][:, None], instances['scores'][:, None], instances['bboxes'] + 1], 1
        )
        np.testing.assert_allclose(
            sorted(found[prediction['img_id']]), sorted(expected.tolist()), atol=1e-5
        )


def test_ade20k(tmp_path, segmentor_config, mini_ade20k):
    """Labels from 1; the folder of images is all there is."""
    shutil.copytree(mini_ade20k / 'images' / 'validation', tmp_path / 'testing')
    predictions = submit(
        segmentor_config,
        tmp_path,
        f'test_dataloader.dataset.data_root={tmp_path}',
        'test_dataloader.dataset.data_prefix.img_path=testing',
    )
    for prediction in predictions:
        name = prediction['img_path'].split('/')[-1].replace('.jpg', '.png')
        labels = cv2.imread(str(tmp_path / 'files' / name), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint8 and labels.shape == prediction['ori_shape']
        np.testing.assert_array_equal(labels, prediction['pred_sem_seg']['data'][0] + 1)


def test_cityscapes(tmp_path, mini_ade20k):
    classes = CityscapesDataset.METAINFO['classes']
    config = write_config(SEGMENTOR, tmp_path / 'cityscapes.py', mini_ade20k, classes)
    image = next((mini_ade20k / 'images' / 'validation').glob('*.jpg'))
    city = tmp_path / 'leftImg8bit' / 'test' / 'berlin'
    city.mkdir(parents=True)
    cv2.imwrite(str(city / 'berlin_000000_000019_leftImg8bit.png'), cv2.imread(str(image)))
    config.write_text(
        config.read_text() + 'test_dataloader = dict(batch_size=1, num_workers=0, '
        "sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict("
        f"type='CityscapesDataset', data_root='{tmp_path}', pipeline=test_pipeline, "
        "data_prefix=dict(img_path='leftImg8bit/test', seg_map_path='gtFine/test')))\n"
    )
    (prediction,) = submit(config, tmp_path)
    file = tmp_path / 'files' / 'berlin_000000_000019_leftImg8bit.png'
    ids = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    labels = prediction['pred_sem_seg']['data'][0].numpy()
    assert len(np.unique(labels)) > 1
    # Of cityscapesscripts' helpers/labels.py.
    known = {'road': 7, 'sidewalk': 8, 'building': 11, 'wall': 12, 'fence': 13, 'pole': 17}
    known |= {'traffic light': 19, 'traffic sign': 20, 'vegetation': 21, 'terrain': 22, 'sky': 23}
    known |= {'person': 24, 'rider': 25, 'car': 26, 'truck': 27, 'bus': 28, 'train': 31}
    known |= {'motorcycle': 32, 'bicycle': 33}
    expected = np.array([known[name] for name in classes])[labels]
    np.testing.assert_array_equal(ids, expected)


def test_augmented_test_needs_no_annotations():
    cfg = Config.fromfile(ROOT / 'configs/ade20k/upernet_internimage-t_8xb2-160k_ade20k-512x512.py')
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    submit_to(cfg, 'out')
    text = str(cfg.test_dataloader.dataset)
    assert 'LoadAnnotations' not in text and 'seg_map_path' not in text and '[]' not in text
    assert len(re.findall('RandomFlip', text)) == 2


def test_unknown_format():
    cfg = Config.fromfile(ROOT / 'configs/quickstart/internimage-nano_mini-imagenet.py')
    with pytest.raises(UserError, match='knows COCO, LVIS, VOC, .*evaluates by Accuracy'):
        submit_to(cfg, 'out')
