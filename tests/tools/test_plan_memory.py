"""The planned memory of a step against what PyTorch's profiler saw of a real one.

Four models, and with ``SCALE_TESTS=all`` six of the release, with and without ``with_cp``.
"""

import json
import os
from unittest import mock

import numpy as np
import pytest
import torch
from mmcv.ops import multi_scale_deform_attn as attention
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from torch.profiler import ProfilerActivity, profile

from internimage_mm.training import build_model
from internimage_mm.training.memory import StepMemory, measure_step
from ops_dcnv3.fast_cpu import use_fast_cpu

from .conftest import ROOT, load_tool
from .test_inferencers import tiny_dino

SIZE = (192, 256)


def detection_sample():
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    corners = torch.cartesian_prod(torch.arange(4) * 50.0, torch.arange(4) * 35.0)
    boxes = torch.cat([corners, corners + 40], dim=1)
    instances = InstanceData(bboxes=boxes, labels=torch.arange(16) % 3)
    instances.masks = BitmapMasks(np.ones((16, *SIZE), dtype=np.uint8), *SIZE)
    metainfo = dict(img_shape=SIZE, ori_shape=SIZE, pad_shape=SIZE, batch_input_shape=SIZE)
    return DetDataSample(gt_instances=instances, metainfo=metainfo)


def segmentation_sample():
    from mmseg.structures import SegDataSample

    labels = PixelData(data=torch.zeros(1, *SIZE, dtype=torch.long))
    return SegDataSample(gt_sem_seg=labels, metainfo=dict(img_shape=SIZE))


def classification_sample():
    from mmpretrain.structures import DataSample

    return DataSample().set_gt_label(1)


SAMPLES = {
    'detector': detection_sample,
    'segmentor': segmentation_sample,
    'imagenet/internimage-t_8xb512_in1k-224.py': classification_sample,
    'imagenet/internimage-s_8xb512_in1k-224.py': classification_sample,
    'imagenet/internimage-b_8xb512_in1k-224.py': classification_sample,
    'coco/mask-rcnn_internimage-t_fpn_1x_coco.py': detection_sample,
    'coco/dino-4scale_internimage-t_8xb2-12e_coco.py': detection_sample,
    'ade20k/upernet_internimage-t_8xb2-160k_ade20k-512x512.py': segmentation_sample,
}
# The tiny models not with recomputed blocks: the losses, which are not planned, then have much of
# the memory.
CASES = [
    ('detector', False),
    ('segmentor', False),
    ('imagenet/internimage-t_8xb512_in1k-224.py', True),
    ('coco/mask-rcnn_internimage-t_fpn_1x_coco.py', True),
]
if os.environ.get('SCALE_TESTS') == 'all':
    CASES = [(case, flag) for case in SAMPLES if case.endswith('.py') for flag in (False, True)]


class AttentionOfGPUs(torch.autograd.Function):
    """What mmcv's operator for GPUs keeps of deformable attention, without its values.

    For CPUs mmcv has none: it keeps the features of all sampling points, many times as much.
    """

    @staticmethod
    def forward(ctx, value, shapes, locations, weights):
        ctx.save_for_backward(value, locations, weights)
        return value.new_zeros(*locations.shape[:2], value.shape[2:].numel())

    @staticmethod
    def backward(ctx, grad):
        value, locations, weights = map(torch.zeros_like, ctx.saved_tensors)
        return value, None, locations, weights


def measured_peak(cfg, sample, trace):
    """Most bytes that a forward and a backward pass had allocated at a time."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    images = torch.rand(2, 3, *SIZE)
    with (
        use_fast_cpu(False),
        mock.patch.object(attention, 'multi_scale_deformable_attn_pytorch', AttentionOfGPUs.apply),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        losses = model(images, [sample(), sample()], mode='loss')
        model.parse_losses(losses)[0].backward()
    profiler.export_chrome_trace(str(trace))
    events = [e for e in json.loads(trace.read_text())['traceEvents'] if e['name'] == '[memory]']
    return np.cumsum([event['args']['Bytes'] for event in events]).max()


@pytest.mark.parametrize(('case', 'recompute'), CASES)
def test_peak_of_a_step(request, tmp_path, case, recompute):
    if case.endswith('.py'):
        cfg = Config.fromfile(ROOT / 'configs' / case)
    else:
        cfg = Config.fromfile(request.getfixturevalue(f'{case}_config'))
        # Enough blocks that the backbone has most of the memory, as in the models of the release.
        cfg.model.backbone.depths = [3, 3, 6, 2]
    cfg.model.backbone.with_cp = recompute
    if 'roi_head' in cfg.model:
        cfg.model.train_cfg.rcnn.sampler.num = 64  # of which the 16 objects are the positive part
    planned = measure_step(cfg, 2, *SIZE, amp=False, recompute=recompute).step_peak
    measured = measured_peak(cfg, SAMPLES[case], tmp_path / 'trace.json')
    mebibytes = f'{planned / 2**20:.0f} MiB planned, {measured / 2**20:.0f} measured'
    print(f'{case}, with_cp={recompute}: {mebibytes}, {planned / measured - 1:+.1%}')
    assert 0.9 * measured < planned < 1.1 * measured


def test_shares():
    step = StepMemory(
        parameters=800, trained=800, states=1600, activations=50, step_peak=850, gathered=10
    )
    assert step.peak(1, shard=False) == 800 + 1600 + 850
    assert step.peak(8, shard=False) == 800 + 1600 + 850 + 800
    assert step.peak(8, shard=True) == (800 + 800 + 1600) / 8 + 2 * 10 + 50


def test_command_for_the_least_setting(capsys, segmentor_config):
    tool = load_tool('plan_memory')
    tool.main([str(segmentor_config), '--gpus', '2', '--memory', '80', '--batch', '4'])
    expected = f'fits: bash tools/dist_train.sh {segmentor_config} 2 --cfg-options train_dataloader'
    assert expected in capsys.readouterr().out


def test_table(capsys, segmentor_config):
    tool = load_tool('plan_memory')
    tool.main([str(segmentor_config), '--gpus', '2', '--memory', '1', '80'])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row == '| `tiny_segmentor` | 0M | 2 of 64x64 | - | + |'


def test_dino_writes_into_its_config(detector_config):
    cfg = tiny_dino(detector_config)
    steps = [measure_step(cfg, 1, 64, 96, amp=False, recompute=False) for _ in range(2)]
    assert steps[0] == steps[1]


def test_nothing_fits(segmentor_config):
    tool = load_tool('plan_memory')
    with pytest.raises(SystemExit) as exit_info:
        tool.main([str(segmentor_config), '--memory', '1'])
    assert 'no setting fits into 1 GiB' in exit_info.value.code
