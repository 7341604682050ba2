"""The test pipeline against Pillow and NumPy alone, following the official description.

Official: the short edge becomes the crop size (the long edge is truncated to an integer) by
Pillow's bicubic filter, then a central crop, then (x / 255 - mean) / std on RGB.
"""

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

import internimage_mm.cls  # noqa: F401  registers

CONFIGS = Path(__file__).parents[2] / 'configs'
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
BY_SIZE = {
    224: 'imagenet/internimage-t_8xb512_in1k-224.py',
    384: 'imagenet/internimage-xl_in22k-pre_32xb16-20e_in1k-384.py',
    512: 'imagenet/internimage-g_joint-in22k-pre_64xb8-20e_in1k-512.py',
    640: 'imagenet/internimage-h_joint-in22k-pre_32xb16-20e_in1k-640.py',
}
INAT = 'inaturalist2018/internimage-h_joint-in22k-pre_8xb128-100e_inat2018-384.py'


def expected(path, size):
    image = Image.open(path).convert('RGB')
    width, height = image.size
    if width <= height:
        new = size, int(size * height / width)
    else:
        new = int(size * width / height), size
    image = np.asarray(image.resize(new, Image.Resampling.BICUBIC))
    left, top = (int(round((new[i] - size) / 2)) for i in (0, 1))
    crop = image[top : top + size, left : left + size]
    return ((crop / 255 - MEAN) / STD).transpose(2, 0, 1)


def preprocessed(config, path):
    cfg = Config.fromfile(CONFIGS / config)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        data = Compose(cfg.test_dataloader.dataset.pipeline)(dict(img_path=str(path)))
        preprocessor = MODELS.build(cfg.model.data_preprocessor)
    return preprocessor(default_collate([data]))['inputs'][0].numpy()


# Both orientations, odd differences (the crop's rounding), and one that is enlarged.
@pytest.mark.parametrize('hw', [(375, 500), (500, 333), (301, 299), (97, 131)])
@pytest.mark.parametrize('size', BY_SIZE)
def test_pixels_are_the_official_ones(tmp_path, size, hw):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize(hw[::-1], Image.Resampling.BICUBIC)).astype(int)
    image = (image + rng.integers(-20, 21, image.shape)).clip(0, 255).astype(np.uint8)
    path = tmp_path / 'image.png'
    Image.fromarray(image).save(path)
    ours = preprocessed(BY_SIZE[size], path)
    # Measured 2.4e-7: mean and std are rounded to float32 on 0..255 instead of 0..1.
    np.testing.assert_allclose(ours, expected(path, size), rtol=0, atol=1e-6)


def test_jpeg_is_decoded_as_by_pillow(tmp_path):
    path = tmp_path / 'image.jpg'
    image = np.random.default_rng(1).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    Image.fromarray(image).save(path, quality=75)
    np.testing.assert_allclose(
        preprocessed(BY_SIZE[224], path), expected(path, 224), rtol=0, atol=1e-6
    )


def test_inaturalist_uses_the_same(tmp_path):
    path = tmp_path / 'image.png'
    image = np.random.default_rng(1).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    Image.fromarray(image).save(path)
    np.testing.assert_allclose(preprocessed(INAT, path), expected(path, 384), rtol=0, atol=1e-6)
