"""The data sets of the detection configs on tiny copies of the real formats."""

import json
import pickle
import re

import cv2
import numpy as np
import pytest
import torch
from golden_detseg import ROOT
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import DATASETS, METRICS, DefaultScope
from mmengine.structures import InstanceData
from tool_runner import load_tool

from internimage_mm.commands import UserError, check_data

CONFIGS = ROOT / 'configs'
CB = 'dino-4scale_cb-internimage-h'


def load(path, root):
    """One of our configs, its data looked for under ``root``."""
    cfg = Config.fromfile(CONFIGS / path)
    text = cfg.pretty_text.replace(f"'{cfg.data_root}", f"'{root}/")
    return Config.fromstring(text, '.py')


def build(config, registry=DATASETS):
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return registry.build(config)


def write_image(path, width=64, height=48):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))


def boxes_of(sample):
    """Boxes of a data sample in pixels of the original image."""
    factor = np.tile(sample.scale_factor, 2)
    return (sample.gt_instances.bboxes.numpy() / factor).round(3).tolist()


@pytest.mark.parametrize(
    ('path', 'readme'),
    [
        (f'coco/{CB}_b1-20k_objects365-coco.py', 'coco'),
        (f'lvis/{CB}_b1-80k_objects365-lvis-v1-minival.py', 'lvis'),
        (f'openimages/{CB}_b1-100k_objects365-openimages.py', 'openimages'),
        (f'voc/{CB}_b1-20k_objects365-voc12.py', 'voc'),
        ('crowdhuman/cascade-rcnn_internimage-xl_fpn_ms-crop-3x_crowdhuman.py', 'crowdhuman'),
        (f'objects365/{CB}_b1-500k_objects365.py', 'objects365'),
    ],
)
def test_missing_data_is_named(path, readme, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(CONFIGS / path)
    for split in ('train', 'val', 'test'):
        with pytest.raises(UserError) as error:
            check_data(cfg, split)
        assert f'the {split} data needs {cfg.data_root}' in str(error.value)
        assert f'configs/{readme}/README.md says where to get it' in str(error.value)


def write_voc(root, year, split, objects):
    folder = root / f'VOC{year}'
    for sub in ('Annotations', 'ImageSets/Main', 'JPEGImages'):
        (folder / sub).mkdir(parents=True)
    (folder / f'ImageSets/Main/{split}.txt').write_text('000001\n')
    write_image(folder / 'JPEGImages' / '000001.jpg')
    described = ''.join(
        f'<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>'
        f'<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>'
        for name, difficult, (x1, y1, x2, y2) in objects
    )
    (folder / 'Annotations' / '000001.xml').write_text(
        f'<annotation><size><width>64</width><height>48</height></size>{described}</annotation>'
    )


def test_voc(tmp_path):
    small = ('dog', 0, (5, 5, 12, 14))  # below 32 pixels, which the official training keeps
    write_voc(tmp_path, 2007, 'trainval', [('cat', 0, (1, 1, 40, 30)), small])
    write_voc(
        tmp_path, 2012, 'trainval', [('person', 1, (2, 3, 60, 40)), ('bus', 0, (1, 2, 50, 40))]
    )
    cfg = load(f'voc/{CB}_b1-20k_objects365-voc07.py', tmp_path)
    check_data(cfg, 'train')
    dataset = build(cfg.train_dataloader.dataset)
    assert len(dataset) == 6  # two images, repeated three times
    first, second = (dataset[i]['data_samples'] for i in range(2))
    assert first.gt_instances.labels.tolist() == [7, 11]
    assert sorted(first.img_shape) == [600, 800]  # the pipeline that trained the official model
    # Coordinates count from 1; mirrored or not.
    assert boxes_of(first)[0] in ([0, 0, 39, 29], [25, 0, 64, 29])
    assert second.gt_instances.labels.tolist() == [5]  # difficult objects are ignored
    assert second.ignored_instances.labels.tolist() == [14]
    metric = build(cfg.val_evaluator, METRICS)
    assert (metric.eval_mode, metric.iou_thrs) == ('11points', [0.5])


def test_openimages(tmp_path):
    annotations = tmp_path / 'annotations'
    annotations.mkdir()
    (annotations / 'class-descriptions-boxable.csv').write_text('/m/a,Animal\n/m/c,Cat\n')
    (annotations / 'bbox_labels_600_hierarchy.json').write_text(
        json.dumps(
            {'LabelName': '/m/0bl9f', 'Subcategory': [
                {'LabelName': '/m/a', 'Subcategory': [{'LabelName': '/m/c'}]}]}
        )
    )  # fmt: skip
    head = 'ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,Occ,Trunc,Group,Dep,In\n'
    row = 'abc,x,/m/c,1,0.25,0.75,0.5,1.0,0,0,0,0,0\n'
    (annotations / 'oidv6-train-annotations-bbox.csv').write_text(head + row)
    write_image(tmp_path / 'train' / 'abc.jpg')
    meta = [dict(filename='train/abc.jpg', ori_shape=(48, 64, 3))]
    (annotations / 'train-image-metas.pkl').write_bytes(pickle.dumps(meta))
    cfg = load(f'openimages/{CB}_b1-100k_objects365-openimages.py', tmp_path)
    check_data(cfg, 'train')
    with pytest.raises(UserError, match='the val data needs .*validation-annotations-bbox.csv'):
        check_data(cfg, 'val')
    dataset = build(cfg.train_dataloader.dataset)
    assert dataset.metainfo['classes'] == ['Animal', 'Cat']
    # A cat is an animal.
    assert dataset.metainfo['RELATION_MATRIX'][1].tolist() == [1, 1]
    sample = dataset[0]['data_samples']
    assert sample.gt_instances.labels.tolist() == [1]
    np.testing.assert_allclose(boxes_of(sample), [[16, 24, 48, 48]], atol=0.1)


def test_lvis(tmp_path):
    """The objects themselves as detections have a precision of 1."""
    boxes = [[5, 5, 20, 30], [30, 10, 25, 25]]
    annotations = [
        dict(id=n, image_id=7, category_id=n, bbox=box, area=box[2] * box[3], segmentation=[])
        for n, box in enumerate(boxes, 1)
    ]
    image = dict(id=7, width=64, height=48, neg_category_ids=[], not_exhaustive_category_ids=[])
    image['coco_url'] = 'http://images.cocodataset.org/val2017/7.jpg'
    categories = [dict(id=n, name=f'c{n}', frequency='r') for n in range(1, 1204)]
    content = dict(images=[image], annotations=annotations, categories=categories)
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations' / 'lvis_v1_val.json').write_text(json.dumps(content))
    write_image(tmp_path / 'val2017' / '7.jpg')
    cfg = load(f'lvis/{CB}_b1-80k_objects365-lvis-v1.py', tmp_path)
    check_data(cfg, 'val')
    dataset = build(cfg.val_dataloader.dataset)
    sample = dataset[0]['data_samples']
    truth = sample.gt_instances
    found = InstanceData(bboxes=truth.bboxes, labels=truth.labels, scores=torch.ones(2))
    metric = build(cfg.val_evaluator, METRICS)
    metric.dataset_meta = dataset.metainfo
    metric.process({}, [dict(img_id=7, ori_shape=(48, 64), pred_instances=found)])
    assert metric.evaluate(1)['lvis/bbox_AP'] == 1


def write_crowdhuman(root):
    """Two images of each split; the boxes of the first one are the interesting ones."""
    boxes = [
        dict(tag='person', fbox=[-10, 5, 40, 60], extra=dict(ignore=0)),
        dict(tag='person', fbox=[20, 5, 30, 30]),
        dict(tag='person', fbox=[1, 1, 20, 20], extra=dict(ignore=1)),
        dict(tag='mask', fbox=[2, 2, 30, 30]),
        dict(tag='person', fbox=[1, 1, 0, 20]),
    ]
    (root / 'annotations').mkdir(parents=True)
    for split in ('train', 'val'):
        records = [dict(ID=f'{split},1', gtboxes=boxes), dict(ID=f'{split},2', gtboxes=[])]
        text = '\n'.join(map(json.dumps, records)) + '\n'
        (root / 'annotations' / f'annotation_{split}.odgt').write_text(text)
        for record in records:
            write_image(root / 'Images' / f'{record["ID"]}.jpg')


def test_crowdhuman(tmp_path):
    write_crowdhuman(tmp_path)
    load_tool('convert_crowdhuman').main([str(tmp_path)])
    cfg = load('crowdhuman/cascade-rcnn_internimage-xl_fpn_ms-crop-3x_crowdhuman.py', tmp_path)
    check_data(cfg, 'train', 'val')
    train, val = (build(loader.dataset) for loader in (cfg.train_dataloader, cfg.val_dataloader))
    assert (len(train), len(val)) == (1, 2)  # images without people are not trained on
    info = val.get_data_info(0)
    assert (info['width'], info['height'], info['img_id']) == (64, 48, 0)
    # Full bodies, also outside of the image; ignored people and masks; no empty boxes.
    assert [i['bbox'] for i in info['instances']] == [
        [-10, 5, 30, 65], [20, 5, 50, 35], [1, 1, 21, 21], [2, 2, 32, 32]
    ]  # fmt: skip
    assert [i['ignore_flag'] for i in info['instances']] == [0, 0, 1, 1]
    assert {i['bbox_label'] for i in info['instances']} == {0}


def test_crowdhuman_conversion_errors(tmp_path):
    main = load_tool('convert_crowdhuman').main
    with pytest.raises(SystemExit, match='annotation_train.odgt does not exist'):
        main([str(tmp_path)])
    write_crowdhuman(tmp_path)
    (tmp_path / 'Images' / 'train,2.jpg').unlink()
    with pytest.raises(SystemExit, match=re.escape('train,2.jpg, which does not exist')):
        main([str(tmp_path)])
    (tmp_path / 'Images' / 'train,2.jpg').write_text('no image')
    with pytest.raises(SystemExit, match='train,2.jpg cannot be read'):
        main([str(tmp_path)])
    write_image(tmp_path / 'Images' / 'train,2.jpg')
    # The split that is converted last: the first one is not written either.
    source = tmp_path / 'annotations' / 'annotation_val.odgt'
    good = source.read_text()
    for line, reason in (
        ('{"ID": ', 'JSONDecodeError'),
        ('{"ID": "val,1", "gtboxes": [{"tag": "person", "vbox": [1, 2, 3, 4]}]}', "'fbox'"),
        ('{"ID": "val,1", "gtboxes": [{"tag": "person", "fbox": [1, 2, 3]}]}', 'expected 4, got 3'),
        ('{"gtboxes": []}', "'ID'"),
        ('[]', 'TypeError'),
    ):
        source.write_text(f'{good}\n{line}\n')
        with pytest.raises(SystemExit, match=f'annotation_val.odgt, line 4 .*{reason}'):
            main([str(tmp_path)])
    assert not list(tmp_path.glob('annotations/*.json*'))


def test_crowdhuman_conversion_keeps_what_is_there(tmp_path):
    write_crowdhuman(tmp_path)
    target = tmp_path / 'annotations' / 'annotation_val.json'
    target.write_text('mine')
    main = load_tool('convert_crowdhuman').main
    with pytest.raises(SystemExit, match='annotation_val.json exists already; --overwrite'):
        main([str(tmp_path)])
    assert target.read_text() == 'mine'
    assert not target.with_name('annotation_train.json').exists()
    main([str(tmp_path), '--overwrite'])
    assert len(json.loads(target.read_text())['images']) == 2
