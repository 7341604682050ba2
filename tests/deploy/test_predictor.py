"""What the predictor does by itself is what the libraries do."""

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from golden_detseg import ROOT
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmengine.registry import TRANSFORMS, DefaultScope
from mmengine.structures import InstanceData
from mmseg.structures import SegDataSample
from PIL import Image

from internimage_mm.deploy import exported, load
from internimage_mm.deploy.det import form_of, paste
from internimage_mm.deploy.predictor import (
    STEPS,
    Predictor,
    best_class,
    paste_masks,
    resize_as_pillow,
)
from internimage_mm.deploy.seg import ExportedSegmentor
from internimage_mm.training import InternImageRunner

SIZES = [(97, 131), (240, 320), (333, 500), (500, 333)]
PICTURES = [np.random.default_rng(0).integers(0, 256, (*s, 3), np.uint8) for s in SIZES]


@pytest.mark.parametrize(
    'scope, step',
    [
        ('mmdet', dict(type='Resize', scale=(1333, 800), keep_ratio=True)),
        ('mmseg', dict(type='Resize', scale=(2048, 512), keep_ratio=True)),
        ('mmseg', dict(type='Resize', scale=(64, 96), keep_ratio=False)),
        ('mmdet', dict(type='Resize', scale_factor=0.7, interpolation='lanczos')),
        ('mmdet', dict(type='Resize', scale_factor=(0.7, 0.3), keep_ratio=True)),
        ('mmdet', dict(type='Resize', scale=96, interpolation='area')),
        ('mmseg', dict(type='ResizeToMultiple', size_divisor=32)),
        ('mmpretrain', dict(type='ResizeEdge', scale=224, edge='short', interpolation='bicubic')),
        ('mmpretrain', dict(type='CenterCrop', crop_size=96)),
    ],
)
def test_pictures_are_resized_as_by_the_pipeline(scope, step):
    with DefaultScope.overwrite_default_scope(scope):
        transform = TRANSFORMS.build(step)
    for picture in PICTURES:
        expected = transform({'img': picture, 'img_shape': picture.shape[:2]})['img']
        np.testing.assert_array_equal(STEPS[step['type']](picture, step), expected)


@pytest.mark.parametrize('size', [(64, 48), (500, 700)])
def test_bicubic_resizing_of_pillow(size):
    picture = np.asarray(Image.open(ROOT / 'tests/golden/detseg/test_image_240x320.png'))
    expected = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    difference = np.abs(resize_as_pillow(picture, *size).astype(int) - expected)
    # A level in each of the two passes.
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.01


def test_masks_are_pasted_as_by_mmdet():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(20, 2, 2, generator=generator) * torch.tensor([320.0, 240.0])
    boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)
    masks = torch.randn(20, 1, 28, 28, generator=generator)
    head = FCNMaskHead(num_convs=0, in_channels=1, num_classes=1, class_agnostic=True)
    (result,) = head.predict_by_feat(
        [masks],
        [InstanceData(bboxes=boxes, labels=torch.zeros(20, dtype=torch.int64))],
        [{'scale_factor': (1.0, 1.0), 'ori_shape': (240, 320)}],
        rcnn_test_cfg=type('Config', (dict,), {'mask_thr_binary': 0.5})(),
        rescale=True,
    )
    pasted = paste_masks(masks[:, 0].sigmoid().numpy(), boxes.numpy(), 240, 320)
    assert 0.01 < pasted.mean() < 0.5
    assert (pasted != result.masks.numpy()).mean() < 1e-5
    # And inside of an exported model.
    inside = paste(masks[:, 0].sigmoid(), boxes, torch.zeros(1, 3, 240, 320))
    assert (pasted != inside.numpy()).mean() < 1e-5


def test_pasted_masks_are_resized_without_a_shift():
    mask = np.zeros((1, 60, 80), bool)
    mask[:, 13:47, 13:67] = True
    outputs = dict(boxes=np.zeros((1, 4), np.float32), scores=np.ones(1), masks=mask)
    resized = Predictor(dict, {}).detections(outputs, (60, 80), (75, 100))['masks']
    assert abs(resized.mean() - mask.mean()) < 0.01
    np.testing.assert_array_equal(resized, resized[:, ::-1, ::-1])


def test_best_class_of_resized_scores():
    scores = torch.randn(5, 24, 40, generator=torch.Generator().manual_seed(0))
    resize = torch.nn.functional.interpolate
    full = resize(scores[None], (96, 160), mode='bilinear')[:, :, :90, :150]
    expected = resize(full, (123, 201), mode='bilinear')[0].argmax(0).numpy()
    labels = best_class(scores.numpy(), (96, 160), (90, 150), (123, 201))
    assert (labels != expected).mean() < 1e-3


@pytest.mark.parametrize('preprocess', [False, True])
def test_image_smaller_than_that_of_an_exported_segmentor(preprocess, monkeypatch):
    """Is padded by both ways of running with what is 0 for the model, and cut off again."""
    normalization = dict(mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0])
    metadata = dict(normalization, inputs=['image'], shape=[64, 96], classes='abc', divisor=1)
    images = []

    def run(arrays):
        images.append(arrays['image'])
        return {'scores': arrays['image'][..., ::4, ::4]}

    predictor = Predictor(run, dict(metadata, preprocess=preprocess, rgb=True))
    monkeypatch.setattr(exported, '_open', lambda file: predictor)
    settings = dict(type='mmseg.SegDataPreProcessor', bgr_to_rgb=True, **normalization)
    model = ExportedSegmentor('x.onnx', settings, {}, False)
    picture = PICTURES[0][:40, :72]
    inputs = [torch.from_numpy(picture).permute(2, 0, 1)]
    data = model.data_preprocessor({'inputs': inputs, 'data_samples': [SegDataSample()]})
    scores = model.encode_decode(data['inputs'], [])
    np.testing.assert_allclose(images[0], predictor.prepare(picture), atol=1e-4)
    small = torch.from_numpy(images[0][..., ::4, ::4])
    full = torch.nn.functional.interpolate(small, (64, 96), mode='bilinear')
    assert torch.equal(scores, full[:, :, :40, :72])


def test_files_that_are_not_ours(tmp_path):
    value = onnx.helper.make_tensor_value_info('x', onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node('Identity', ['x'], ['y'])
    result = onnx.helper.make_tensor_value_info('y', onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], 'stranger', [value], [result])
    opset = onnx.helper.make_opsetid('', 20)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    onnx.save(model, tmp_path / 'stranger.onnx')
    for name, message in {
        'stranger.onnx': 'was not written by tools/export.py',
        'missing.onnx': 'does not exist',
        'model.tflite': 'no exported model; expected .onnx, .xml, .pt2',
    }.items():
        with pytest.raises(ValueError, match=message):
            load(tmp_path / name)
    for name in ('text.onnx', 'text.xml'):
        (tmp_path / name).write_text('no model')
        with pytest.raises(RuntimeError, match=f'{name} cannot be opened'):
            load(tmp_path / name)


@pytest.mark.parametrize('picture, got', [(None, 'None'), (PICTURES[0][..., 0], r'\(97, 131\)')])
def test_pictures_that_are_none(picture, got):
    with pytest.raises(ValueError, match=f'cv2.imread gives it, got .*{got}'):
        Predictor(dict, {})(picture)


def test_one_of_several_processes_runs_an_exported_model():
    """DistributedDataParallel refuses a model without parameters."""
    runner, model = SimpleNamespace(_shard=False, distributed=True), torch.nn.Identity()
    assert InternImageRunner.wrap_model(runner, None, model) is model


def test_families_that_have_no_exportable_form():
    with pytest.raises(ValueError, match='DINO can be exported, got Identity'):
        form_of(torch.nn.Identity(), None)
