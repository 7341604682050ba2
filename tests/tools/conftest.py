"""A tiny detector and a tiny segmentor on tiny data sets, and the tools as functions."""

from pathlib import Path

import pytest
import torch
from tool_runner import load_tool, run_tool  # noqa: F401  load_tool for the tests

from internimage_mm.data import (
    MINI_ADE20K_CLASSES,
    MINI_COCO_CLASSES,
    make_mini_ade20k,
    make_mini_coco,
)

ROOT = Path(__file__).parents[2]
BASE = ROOT / 'configs' / '_base_'

BACKBONE = """dict(
    _delete_=True, type='InternImage', channels=16, depths=[1, 1, 2, 1], groups=[1, 2, 4, 8],
    mlp_ratio=2.0, layer_scale=1.0, drop_path_rate=0.0)"""

RUNTIME = """
randomness = dict(seed=0)
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(
        _delete_=True, type='CheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=-1))
log_processor = dict(by_epoch=False)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=100)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10)]
"""

DETECTOR = """
_base_ = ['{base}/models/mask-rcnn_internimage_fpn.py', '{base}/default_runtime_det.py']
model = dict(
    backbone={backbone},
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes={num_classes}),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(
            num_convs=1, in_channels=16, conv_out_channels=16, num_classes={num_classes})),
    train_cfg=dict(rpn_proposal=dict(max_per_img=20), rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(max_per_img=20), rcnn=dict(score_thr=0.0, max_per_img=5)))
load = dict(type='LoadImageFromFile')
load_annotations = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
resize = dict(type='Resize', scale=(96, 96), keep_ratio=True)
pack = dict(type='PackDetInputs', meta_keys=(
    'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip'))
metainfo = dict(classes={classes})
train_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='InfiniteSampler'),
    dataset=dict(
        type='CocoDataset', data_root='{root}', ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'), metainfo=metainfo,
        pipeline=[load, load_annotations, resize, pack]))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset', data_root='{root}', ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'), metainfo=metainfo, test_mode=True,
        pipeline=[load, resize, load_annotations, pack]))
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric', ann_file='{root}/annotations/instances_val.json', metric=['bbox', 'segm'])
test_evaluator = val_evaluator
"""

SEGMENTOR = """
_base_ = ['{base}/models/upernet_internimage.py', '{base}/default_runtime_seg.py']
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone={backbone},
    decode_head=dict(
        in_channels=[16, 32, 64, 128], channels=16, dropout_ratio=0, num_classes={num_classes}),
    auxiliary_head=dict(in_channels=64, channels=16, dropout_ratio=0, num_classes={num_classes}))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='Resize', scale=(64, 64)),
    dict(type='PackSegInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64)),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs')]
metainfo = dict(classes={classes}, palette=[[i, 2 * i, 3 * i] for i in range({num_classes})])
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler'),
    dataset=dict(
        type='BaseSegDataset', img_suffix='.jpg', seg_map_suffix='.png', data_root='{root}',
        reduce_zero_label=True, metainfo=metainfo,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BaseSegDataset', img_suffix='.jpg', seg_map_suffix='.png', data_root='{root}',
        reduce_zero_label=True, metainfo=metainfo,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
"""


def error_of(name, *args, options=()):
    """The message with which a tool refuses."""
    with pytest.raises(SystemExit) as exit_info:
        run_tool(name, *args, options=options)
    message = exit_info.value.code
    assert isinstance(message, str), 'not refused by us'  # a text means: to stderr, exit code 1
    assert message.startswith('error: ')
    return message


def write_config(template, path, root, classes):
    text = template.format(
        base=BASE, backbone=BACKBONE, root=root, classes=classes, num_classes=len(classes)
    )
    path.write_text(text + RUNTIME)
    return path


@pytest.fixture(scope='session')
def mini_coco(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'mini_coco'
    make_mini_coco(root, num_train=4, num_val=2, seed=0)
    return root


@pytest.fixture(scope='session')
def mini_ade20k(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'mini_ade20k'
    make_mini_ade20k(root, num_train=4, num_val=2, seed=0)
    return root


@pytest.fixture(scope='session')
def detector_config(tmp_path_factory, mini_coco):
    path = tmp_path_factory.mktemp('configs') / 'tiny_detector.py'
    return write_config(DETECTOR, path, mini_coco, MINI_COCO_CLASSES)


@pytest.fixture(scope='session')
def segmentor_config(tmp_path_factory, mini_ade20k):
    path = tmp_path_factory.mktemp('configs') / 'tiny_segmentor.py'
    return write_config(SEGMENTOR, path, mini_ade20k, MINI_ADE20K_CLASSES)


@pytest.fixture(scope='session')
def segmentor_run(tmp_path_factory, segmentor_config):
    """A finished training of two iterations."""
    work_dir = tmp_path_factory.mktemp('segmentor')
    run_tool('train', segmentor_config, '--work-dir', work_dir)
    return work_dir


@pytest.fixture(autouse=True)
def quiet_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
