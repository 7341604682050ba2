"""tools/web_demo.py in a real browser: predictions, a click, two visitors, wrong and huge files."""

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest

from internimage_mm.data import MINI_COCO_CLASSES

from .conftest import ROOT, load_tool
from .test_end_to_end import official

CHROMIUM = (
    shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
)
# `make web` sets up an environment on top of this one.
WEB = Path(f'{sys.prefix.replace(".venv", ".venv-web")}/bin/python')
PYTHON = sys.executable if importlib.util.find_spec('gradio') else WEB
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason='there is no Chromium'),
    pytest.mark.skipif(not Path(PYTHON).exists(), reason='there is no gradio: make web'),
]


@pytest.fixture
def address(tmp_path, detector_config):
    official(detector_config, tmp_path / 'a.pth')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [PYTHON, ROOT / 'tools' / 'web_demo.py', '--port', port, '--device', 'cpu']
    command += ['--model', detector_config, tmp_path / 'a.pth', '--score-thr', 0]
    with (tmp_path / 'log.txt').open('w') as log:
        server = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log)
    url = f'http://127.0.0.1:{port}'
    try:
        for _ in range(600):
            assert server.poll() is None, (tmp_path / 'log.txt').read_text()
            try:
                urllib.request.urlopen(url, timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait()


def test_page(tmp_path, address, mini_coco):
    image = next((mini_coco / 'val').glob('*.jpg'))
    (tmp_path / 'broken.png').write_text('no image')
    cv2.imwrite(str(tmp_path / 'huge.png'), np.zeros((5100, 5000, 3), np.uint8))
    visit = [PYTHON, Path(__file__).parent / 'browse_web_demo.py', address, CHROMIUM, image]
    visit += [tmp_path / name for name in ('broken.png', 'huge.png', 'page.png')]
    result = subprocess.run(list(map(str, visit)), capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout.splitlines()[-1])
    assert 'This is not an image that can be read.' in seen['broken']
    assert '5000x5100 pixels, more than 25 million' in seen['huge']
    first, second = seen['found']
    assert first == second  # two visitors at once
    assert len(first) == 5
    assert {line.split()[1] for line in first} <= set(MINI_COCO_CLASSES)
    height, width = cv2.imread(str(image)).shape[:2]
    assert seen['explained'][:2] == [[width, height]] * 2  # the image and the prediction
    assert len(seen['explained']) == 3
    assert (tmp_path / 'page.png').stat().st_size > 10_000


def test_demo_models_before_make_demo(tmp_path):
    with pytest.raises(Exception, match='run make demo'):
        load_tool('web_demo').demo_models(tmp_path)
