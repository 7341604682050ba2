"""Exporting with the tools, and running the file: by the tools, and without PyTorch.

``GOLDEN_EXPORTS=all`` also compiles a package of DINO, which takes minutes.
"""

import os
import pickle
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from backbones.helpers import with_golden_weights
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm

from internimage_mm.deploy import load
from internimage_mm.deploy.export import FORMATS, Options, describe, make_form, trace
from internimage_mm.training import build_model

from .conftest import ROOT, error_of, run_tool
from .test_end_to_end import official
from .test_inferencers import tiny_dino, tiny_mask2former

KINDS = ['onnx', 'pt2'] if os.environ.get('GOLDEN_EXPORTS') == 'all' else ['onnx']

WITHOUT_PYTORCH = """
import runpy, sys
for name in ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'ops_dcnv3'):
    sys.modules[name] = None  # as if it were not installed
sys.argv = {args!r}
runpy.run_path(sys.argv[0])
"""


def predictions(config, model, folder):
    metrics = run_tool(
        'test', config, model, '--work-dir', folder, '--out', folder / 'out.pkl',
    )  # fmt: skip
    return metrics, pickle.loads((folder / 'out.pkl').read_bytes())


def run_example(model, picture, out):
    args = [str(ROOT / 'docs' / 'deploy_example.py'), *map(str, (model, picture, out))]
    result = subprocess.run(
        [sys.executable, '-c', WITHOUT_PYTORCH.format(args=args)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert cv2.imread(str(out)).shape == cv2.imread(str(picture)).shape
    return result.stdout.splitlines()


@pytest.fixture(scope='module')
def detector(tmp_path_factory, detector_config):
    """An official checkpoint, and what it was exported to."""
    folder = tmp_path_factory.mktemp('exported')
    official(detector_config, folder / 'official.pth')
    files = folder / 'official.pth', folder / 'detector.onnx'
    # All pictures are padded to this size. A fixed one is exported faster.
    shape = ('--shape', 96, 96)
    run_tool('export', detector_config, files[0], '--out', files[1], '--preprocess', *shape)
    return files


def test_exported_detector(detector, detector_config, mini_coco, tmp_path):
    results = [predictions(detector_config, file, tmp_path / file.suffix[1:]) for file in detector]
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-3)
    for expected, actual in zip(results[0][1], results[1][1], strict=True):
        expected, actual = expected['pred_instances'], actual['pred_instances']
        assert len(expected['labels']) == len(actual['masks']) == 5
        np.testing.assert_array_equal(expected['labels'], actual['labels'])
        np.testing.assert_allclose(expected['bboxes'], actual['bboxes'], rtol=0, atol=0.05)
        np.testing.assert_allclose(expected['scores'], actual['scores'], rtol=0, atol=1e-4)
    picture = next((mini_coco / 'val').glob('*.jpg'))
    run_tool('image_demo', picture, detector_config, detector[1], '--out', tmp_path / 'demo.png')
    assert (tmp_path / 'demo.png').is_file()
    run_example(detector[1], picture, tmp_path / 'example.png')


def test_exported_segmentor(segmentor_config, mini_ade20k, tmp_path):
    """In OpenVINO."""
    checkpoint, file = tmp_path / 'official.pth', tmp_path / 'segmentor.xml'
    official(segmentor_config, checkpoint)
    options = ('--to', 'openvino', '--shape', 64, 64)
    run_tool('export', segmentor_config, checkpoint, '--out', file, *options)
    results = [
        predictions(segmentor_config, x, tmp_path / x.suffix[1:]) for x in (checkpoint, file)
    ]
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-3)
    for expected, actual in zip(results[0][1], results[1][1], strict=True):
        expected, actual = expected['pred_sem_seg']['data'], actual['pred_sem_seg']['data']
        assert (expected != actual).float().mean() <= 1e-4
    picture = next((mini_ade20k / 'images' / 'validation').glob('*.jpg'))
    printed = run_example(file, picture, tmp_path / 'example.png')
    assert sum(float(line.split()[-1][:-1]) for line in printed) == pytest.approx(100, abs=1)


def exported(model, cfg, folder, shape=None, kind='onnx'):
    form, file = make_form(model, cfg, preprocess=False), folder / f'model{FORMATS[kind].suffix}'
    FORMATS[kind].write(trace(form, shape), form, file, describe(form, cfg, {}, shape), Options())
    return load(file)


def built(cfg):
    return revert_sync_batchnorm(with_golden_weights(build_model(cfg))).eval()


@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_dino_with_padding(kind, detector_config, tmp_path):
    cfg = tiny_dino(detector_config)
    cfg.model.encoder.num_layers = cfg.model.decoder.num_layers = 1
    model = built(cfg)
    images = torch.randn(1, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    images[:, :, 70:] = images[:, :, :, 149:] = 0
    info = dict(img_shape=(70, 149), batch_input_shape=(96, 160))
    expected = model.predict(images, [DetDataSample(metainfo=info)], rescale=False)[0]
    predictor = exported(model, cfg, tmp_path, (96, 160), kind)
    found = predictor.run(image=images.numpy(), image_size=np.array([info['img_shape']]))
    expected = expected.pred_instances
    np.testing.assert_array_equal(found['labels'][0], expected.labels)
    np.testing.assert_allclose(found['boxes'][0], expected.bboxes, rtol=0, atol=0.05)
    np.testing.assert_allclose(found['scores'][0], expected.scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize('kind', KINDS)
@torch.no_grad()
def test_mask2former(kind, segmentor_config, tmp_path):
    cfg = tiny_mask2former(segmentor_config)
    head = cfg.model.decode_head
    head.pixel_decoder.encoder.num_layers = head.transformer_decoder.num_layers = 1
    model = built(cfg)
    images = torch.randn(1, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    expected = model.decode_head.semantic_map(model.extract_feat(images))
    predictor = exported(model, cfg, tmp_path, (96, 160), kind)
    scores = predictor.run(image=images.numpy())['scores']
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif('pt2' not in KINDS, reason='takes minutes; GOLDEN_EXPORTS=all does it')
@torch.no_grad()
def test_any_size_in_pt2(segmentor_config, tmp_path):
    cfg = Config.fromfile(segmentor_config)
    model = built(cfg)
    predictor = exported(model, cfg, tmp_path, kind='pt2')
    for size in (72, 101), (64, 96):
        images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        expected = model.encode_decode(images, [dict(ori_shape=size, img_shape=size)]).argmax(1)
        assert (predictor.run(image=images.numpy())['labels'] == expected.numpy()).mean() > 0.9999


def test_no_detections(detector_config, tmp_path):
    """Free places only: nothing is left of them."""
    cfg = Config.fromfile(detector_config)
    cfg.model.test_cfg.rcnn.score_thr = 0.999
    # A config may also be without normalization, and its test data in a wrapper.
    cfg.model.data_preprocessor.pop('mean'), cfg.model.data_preprocessor.pop('std')
    data = cfg.test_dataloader
    data.dataset = dict(type='ConcatDataset', datasets=[data.dataset])
    predictor = exported(built(cfg), cfg, tmp_path, (64, 96))
    found = predictor(np.zeros((60, 90, 3), np.uint8))
    assert {name: x.shape for name, x in found.items()} == {
        'boxes': (0, 4), 'scores': (0,), 'labels': (0,), 'masks': (0, 60, 90)
    }  # fmt: skip


def test_mistakes(detector, detector_config, segmentor_config, tmp_path, monkeypatch):
    checkpoint, file = detector
    out = tmp_path / 'model.onnx'
    export = ('export', detector_config, checkpoint, '--out')
    cases = {
        'must end in .xml for --to openvino': (*export, out, '--to', 'openvino'),
        'multiples of 32': (*export, out, '--shape', 100, 128),
        'opset 19 or later, got 18': (*export, out, '--opset', 18),
        'is no image': (*export, out, '--verify', segmentor_config),
        'does not fit': ('export', segmentor_config, checkpoint, '--out', out),
        'is a detector, the config is for a segmentor': ('test', segmentor_config, file),
        'does not exist': ('test', detector_config, out),
        'compiler: missing-c++ is not': (*export, tmp_path / 'model.pt2', '--to', 'pt2'),
    }
    monkeypatch.setenv('CXX', 'missing-c++')
    for message, args in cases.items():
        assert message in error_of(*args)
    options = {
        'got MaskRCNN with PISARoIHead': 'model.roi_head.type=PISARoIHead',
        'rcnn.nms can be exported with type=nms': 'model.test_cfg.rcnn.nms.type=soft_nms',
        'rpn.nms can be exported with': 'model.test_cfg.rpn.nms.class_agnostic=True',
        'only RoIAlign with': 'model.roi_head.bbox_roi_extractor.roi_layer.aligned=False',
    }
    for message, option in options.items():
        assert message in error_of(*export, out, options=[option])
    larger = ['test_dataloader.dataset.pipeline.1.scale=(128,128)']
    message = error_of('test', detector_config, file, options=larger)
    assert 'was exported for images of 96x96, got ' in message
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    extra = 'needs "pip install internimage-mm[deploy]"'
    assert extra in error_of(*export, out)
    with pytest.raises(ImportError, match=re.escape(extra)):
        load(file)
    assert not out.exists()
