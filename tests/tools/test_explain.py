"""tools/explain.py on a detector, a segmentor and a classifier."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from internimage_mm.training import build_model

from .conftest import ROOT, error_of, run_tool

CLASSIFIER = ROOT / 'configs/quickstart/internimage-nano_mini-imagenet.py'


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'image.png'
    pixels = np.random.default_rng(0).integers(256, size=(70, 90, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)
    return path


@pytest.mark.parametrize('library', ['mmdet', 'mmseg', 'mmpretrain'])
def test_picture_and_page(tmp_path, capsys, image, library, detector_config, segmentor_config):
    config = dict(mmdet=detector_config, mmseg=segmentor_config, mmpretrain=CLASSIFIER)[library]
    checkpoint = tmp_path / 'model.pth'
    torch.manual_seed(0)
    torch.save({'state_dict': build_model(Config.fromfile(config)).state_dict()}, checkpoint)
    figures = run_tool(
        'explain', image, config, checkpoint, '--point', 40, 20, '--stage', 1,
        '--out', tmp_path / 'new' / 'out.png', '--html', tmp_path / 'out.html',
    )  # fmt: skip
    height, width = cv2.imread(str(tmp_path / 'new' / 'out.png')).shape[:2]
    assert width == 1260 and height > 300
    text = (tmp_path / 'out.html').read_text()
    assert (
        '"size": [96, 64]' in text and '"first": {"stage": 1, "block": 0, "x": 43, "y": 18' in text
    )
    assert 0 < figures[0.2] <= figures[0.99] <= 1
    assert '99% of the contribution in' in capsys.readouterr().out


def test_mean_of_a_folder(image):
    """Of one image, the figures of its centre; untrained weights are the same in each run."""
    arguments = (CLASSIFIER, 'random', '--stage', 3, '--size', 128)
    single, folder = (
        run_tool('explain', path, *arguments, *point)
        for path, point in [(image, ('--point', 45, 46)), (image.parent, ())]
    )
    assert folder.keys() == single.keys() and 0 < folder[0.2] <= folder[0.99] <= 1


def test_mistakes(tmp_path, image):
    def message(*changes):
        return error_of('explain', image, CLASSIFIER, 'random', *changes)

    assert 'has blocks 0 to 1, got --block 2' in message('--block', 2)
    assert '--stage must be 0 to 3, got 4' in message('--stage', 4)
    assert 'is outside' in message('--point', 90, 20)
    assert '--size must be at least 1 pixel, got 0' in message('--size', 0)
    assert 'not the name of an image file' in message('--out', 'picture.xyz')
    assert 'it is the file that is read' in message('--out', image)
    assert 'for one image' in error_of(
        'explain', tmp_path, CLASSIFIER, 'random', '--html', tmp_path / 'a.html'
    )
    other = tmp_path / 'resnet.py'
    other.write_text(
        f"_base_ = '{CLASSIFIER}'\n"
        "model = dict(backbone=dict(_delete_=True, type='ResNet', depth=18))"
    )
    assert 'ResNet has no InternImage' in error_of('explain', image, other, 'random')
