"""Paths of our configs, for configs elsewhere that inherit them."""

import pytest
from mmengine.config import Config

from internimage_mm import config_path


def test_config_elsewhere_inherits_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'own.py').write_text(
        "_base_ = __import__('internimage_mm').config_path(\n"
        "    'coco/mask-rcnn_internimage-t_fpn_1x_coco')\n"
        'model = dict(backbone=dict(drop_path_rate=0.7))\n'
    )
    cfg = Config.fromfile('own.py')
    ours = Config.fromfile(config_path('coco/mask-rcnn_internimage-t_fpn_1x_coco.py'))
    assert cfg.model.backbone.drop_path_rate == 0.7
    ours.model.backbone.drop_path_rate = 0.7
    assert cfg.to_dict() == ours.to_dict()


def test_unknown_config_names_similar_ones():
    with pytest.raises(ValueError, match=r'no config coco/mask-rcnn_t in .*coco/mask-rcnn_intern'):
        config_path('coco/mask-rcnn_t')
    with pytest.raises(ValueError, match=r'no config \.\./x in .*there are, for example, \w+/'):
        config_path('../x')
