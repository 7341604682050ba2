"""examples/cpp: a program without Python finds in a picture what Python finds.

``make test`` does a detector; ``GOLDEN_EXPORTS=all`` also a segmentor and a classifier.
"""

import importlib.util
import os
import shutil
import subprocess

import cv2
import numpy as np
import pytest
import torch

from internimage_mm.deploy import load

from .conftest import ROOT, run_tool
from .test_end_to_end import official
from .test_inferencers import tiny_classifier

OPERATORS = importlib.util.find_spec('ops_dcnv3._C')
LONG = pytest.mark.skipif(
    os.environ.get('GOLDEN_EXPORTS') != 'all', reason='takes a minute; GOLDEN_EXPORTS=all does it'
)


@pytest.fixture(scope='module')
def program(tmp_path_factory):
    if not (shutil.which('cmake') and shutil.which(os.environ.get('CXX', 'g++'))):
        pytest.skip('needs CMake and a C++ compiler')
    folder = tmp_path_factory.mktemp('build')
    # Not optimized: compiles faster.
    options = [
        f'-DTORCH={torch.__path__[0]}',
        '-DCMAKE_CXX_FLAGS_RELEASE=-O0',
    ]
    for command in (['-S', ROOT / 'examples' / 'cpp', '-B', folder, *options], ['--build', folder]):
        result = subprocess.run(['cmake', *map(str, command)], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    assert 'warning:' not in result.stderr
    return folder / 'internimage'


def run(*arguments):
    return subprocess.run([*map(str, arguments)], capture_output=True, text=True)


def picture_of(folder, height, width):
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    cv2.imwrite(str(folder / 'picture.ppm'), picture)
    return picture


def export(config, folder, *shape):
    """A package, and how far its results are from PyTorch's."""
    official(config, folder / 'official.pth')
    differences = run_tool(
        'export', config, folder / 'official.pth', '--out', folder / 'model.pt2', '--to', 'pt2',
        '--preprocess', '--shape', *shape,
    )  # fmt: skip
    return load(folder / 'model.pt2'), differences


def test_detector(program, detector_config, tmp_path):
    predictor, differences = export(detector_config, tmp_path, 96, 96)
    assert differences['detections'] == '5 and 5, 5 of them the same'
    picture = picture_of(tmp_path, 96, 80)
    arguments = OPERATORS.origin, tmp_path / 'model.pt2', tmp_path / 'picture.ppm'
    result = run(program, *arguments)
    assert result.returncode == 0, result.stderr
    found = [line.split() for line in result.stdout.splitlines()]
    expected = predictor(picture)
    assert [name for name, *_ in found] == [predictor.classes[i] for i in expected['labels']]
    values = np.array([line[1:] for line in found], np.float32)
    np.testing.assert_allclose(values[:, 0], expected['scores'], rtol=0, atol=1e-5)
    np.testing.assert_allclose(values[:, 1:], expected['boxes'], rtol=0, atol=1e-3)
    assert len(found) == 5
    picture_of(tmp_path, 96, 97)
    result = run(program, *arguments)
    assert result.returncode == 1 and 'at most 96x96, got 96x97' in result.stderr


@LONG
def test_segmentor(program, segmentor_config, tmp_path):
    predictor, differences = export(segmentor_config, tmp_path, 64, 64)
    assert differences == {'equal pixels': '100.0000%'}
    picture = picture_of(tmp_path, 64, 64)
    result = run(
        program, OPERATORS.origin, tmp_path / 'model.pt2', tmp_path / 'picture.ppm',
        tmp_path / 'labels.pgm',
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    labels = cv2.imread(str(tmp_path / 'labels.pgm'), cv2.IMREAD_UNCHANGED)
    expected = predictor(picture)['labels']
    assert (labels != expected).mean() <= 1e-4
    assert len(np.unique(expected)) > 1


@LONG
def test_classifier(program, tmp_path):
    config, cfg = tmp_path / 'classifier.py', tiny_classifier()
    cfg.test_dataloader.dataset.data_root = str(tmp_path)
    cfg.dump(config)
    predictor, differences = export(config, tmp_path, 224, 224)
    assert float(differences['largest difference of a score']) < 1e-6
    picture = picture_of(tmp_path, 224, 224)
    result = run(program, OPERATORS.origin, tmp_path / 'model.pt2', tmp_path / 'picture.ppm')
    assert result.returncode == 0, result.stderr
    found = [line.rsplit(maxsplit=1) for line in result.stdout.splitlines()]
    (expected,) = predictor.run(image=predictor.prepare(picture))['scores']
    best = expected.argsort()[::-1][:5]
    assert [name for name, _ in found] == [predictor.classes[i] for i in best]
    np.testing.assert_allclose(np.float32([x for _, x in found]), expected[best], rtol=0, atol=1e-6)
