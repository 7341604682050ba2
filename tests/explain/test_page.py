"""The page in a real browser: what it shows is what the library computes."""

import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from backbones.helpers import images

from internimage_mm.explain import record, write_page

from .helpers import small_backbone

CHROMIUM = (
    shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='there is no Chromium')
FLAGS = '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync'
FLAGS += ' --disable-background-networking --disable-component-update'
CLICK = """
<script>
const shown = hash => new Promise(resolve => setInterval(() => {
  if (document.body.dataset.shown?.includes(hash)) resolve();
}, 5));
async function act() {
  await shown('x=');
  const box = canvas.getBoundingClientRect();
  canvas.dispatchEvent(new MouseEvent('click', {
    clientX: box.left + 1 + 41.5 * canvas.clientWidth / 96,
    clientY: box.top + 1 + 30.5 * canvas.clientHeight / 64}));
  await shown('x=41&y=30');
  for (const [id, value] of [['stage', 1], ['block', 0], ['back', 2]]) {
    const control = document.getElementById(id);
    control.value = value;
    control.dispatchEvent(new Event('input'));
    await shown(`${id}=${value}`);
  }
  document.title = 'done';
}
act();
</script>
"""


def browse(page, address, folder):
    command = [CHROMIUM, *FLAGS.split(), f'--user-data-dir={folder}', '--virtual-time-budget=20000']
    command += ['--dump-dom', f'file://{page}{address}']
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def table(text):
    rows = re.findall(r'<tr>((?:<td>[-\d.]+</td>)+)</tr>', text)
    return [[float(cell) for cell in re.findall(r'<td>([-\d.]+)', row)] for row in rows]


def heaviest(recording, share, layer, stage):
    """The ten heaviest points of a layer whose output pixels hold ``share``."""
    weights = (share[..., None, None] * layer.weights / layer.weights.shape[2]).flatten()
    groups = torch.arange(layer.weights.shape[2])[:, None].expand(layer.weights.shape).flatten()
    points = layer.points.flatten(0, -2) * 4 * 2**stage
    best = weights.topk(10).indices
    return [[groups[i].item(), *points[i].tolist(), weights[i].item()] for i in best]


def assert_shows(text, expected):
    rows = table(text)
    assert len(rows) == 10
    # Neighbours in rank may change places; each row is one of the expected points.
    for row, (*_, weight) in zip(rows, expected, strict=True):
        assert row[3] == pytest.approx(weight, abs=3e-5)
        assert any(
            row[0] == point[0] and row[1:3] == pytest.approx(point[1:3], abs=0.3)
            for point in expected
        )


@pytest.fixture
def recording():
    return record(small_backbone(), images(1, 3, 64, 96))


@pytest.fixture
def page(recording, tmp_path):
    path = tmp_path / 'page.html'
    image = np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8)
    write_page(path, image, recording, stage=2, block=1, x=50, y=30)
    return path


def test_page(recording, page, tmp_path):
    share = torch.zeros(4, 6)
    share[2, 3] = 1
    text = browse(page, '', tmp_path / 'profile')
    assert 'Pixel (3, 2) of stage 2, at (48, 32) in the image' in text
    assert_shows(text, heaviest(recording, share, recording.stages[2][1], stage=2))
    assert 'src="http' not in text and 'href="http' not in text  # self-contained

    text = browse(page, '#stage=2&block=1&x=50&y=30&back=5', tmp_path / 'profile')
    assert '5, to stage 0, block 0, and on to the image' in text
    outside = re.search(r'([\d.]+) % of the weight is outside', text).group(1)
    assert float(outside) == pytest.approx(
        100 * (1 - recording.trace(2, 1, 3, 2).sum().item()), abs=0.11
    )


def test_click_and_controls(recording, page, tmp_path):
    page.write_text(page.read_text() + CLICK)
    text = browse(page, '', tmp_path / 'profile')
    assert '<title>done</title>' in text
    share = torch.zeros(8, 12)
    share[4, 5] = 1
    share = recording.stages[1][0].spread(share)
    # To stage 0 through the convolution: each pixel's share by its taps.
    wider = torch.nn.functional.conv_transpose2d(
        share[None, None],
        recording.downsamplings[0][None, None],
        stride=2,
        padding=1,
        output_padding=1,
    )[0, 0]
    assert_shows(text, heaviest(recording, wider, recording.stages[0][1], stage=0))
