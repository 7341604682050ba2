"""tools/demo.py from end to end, on four images and with another model."""

import re

import cv2
import pytest

from internimage_mm.data import MINI_ADE20K_CLASSES

from .conftest import SEGMENTOR, load_tool, write_config


def test_demo(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    config = write_config(SEGMENTOR, tmp_path / 'c.py', 'data/mini_ade20k', MINI_ADE20K_CLASSES)
    demo = load_tool('demo')
    metrics = {'mIoU': ('mIoU', 0.01, 0.0), 'aAcc': ('pixels', 0.01, 1.5)}  # more than all of them
    monkeypatch.setattr(demo, 'TASKS', [demo.Task('segmentation', config, metrics)])
    monkeypatch.setattr(demo, 'MINI_DATASETS', ['ade20k', '--num-train', '4', '--num-val', '2'])
    with pytest.raises(SystemExit, match=r'^error: pixels is 0\.\d+, expected at least 1\.50$'):
        demo.main(['--work-dir', 'demo'])
    text = capfd.readouterr().out
    steps = re.findall(r'^\$ python tools/(\S+)', text, re.MULTILINE)
    assert steps == ['make_mini_dataset.py', 'test.py', 'train.py', 'test.py']
    rows = re.findall(r'(mIoU|pixels) +\S (\d\.\d{3}) +\S (\d\.\d{3}) +\S (\d\.\d\d)', text)
    logged = re.findall(r'aAcc: +(\d+\.\d+) +mIoU: +(\d+\.\d+)', text)
    assert [row[0] for row in rows] == ['mIoU', 'pixels']
    for i, (_, *values, _) in zip((1, 0), rows, strict=True):
        found = [float(pair[i]) / 100 for pair in (logged[0], logged[-1])]  # of the two test.py
        assert found == pytest.approx([float(v) for v in values], abs=6e-4)
    pictures = list((tmp_path / 'demo' / 'segmentation' / 'pictures').rglob('*.png'))
    assert len(pictures) == 2
    assert all(cv2.imread(str(picture)) is not None for picture in pictures)
