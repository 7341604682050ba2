"""Train, test and draw with tiny models. tests/det and tests/seg compare with recorded outputs."""

import math
import pickle
import shutil

import cv2
import numpy as np
import torch
from backbones.helpers import with_golden_weights
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from .conftest import run_tool

AVERAGED = """
_base_ = '{config}'
custom_hooks = [dict(type='EMAHook', momentum=0.5)]
"""


def official(config, path):
    """A model as the library builds it, and its file as the old stack with its EMA hook left it."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    model = with_golden_weights(MODELS.build(cfg.model)).eval()
    model.cfg, weights = cfg, model.state_dict()
    leftovers = {f'ema_{k.replace(".", "_")}': v + 1 for k, v in weights.items()}
    meta = {'epoch': 12, 'mmcv_version': '1.5.0', 'CLASSES': ('a', 'b'), 'config': 'model = dict()'}
    torch.save({'meta': meta, 'state_dict': {**weights, **leftovers}}, path)
    return model


def test_detector_from_official_checkpoint(tmp_path, detector_config):
    """In a config that has mmengine's EMA hook."""
    from mmdet.apis import inference_detector

    config = tmp_path / 'averaged.py'
    config.write_text(AVERAGED.format(config=detector_config))
    model = official(detector_config, tmp_path / 'official.pth')
    metrics = run_tool(
        'test', config, tmp_path / 'official.pth', '--work-dir', tmp_path,
        '--out', tmp_path / 'out.pkl', '--show-dir', tmp_path / 'pictures',
    )  # fmt: skip
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())
    found = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert len(found) == 2
    for prediction in found:
        expected = inference_detector(model, prediction['img_path']).pred_instances
        assert len(expected) == len(prediction['pred_instances']['masks']) == 5
        assert torch.equal(prediction['pred_instances']['bboxes'], expected.bboxes)
        assert torch.equal(prediction['pred_instances']['scores'], expected.scores)
    # One picture for each image, in the very folder that was given.
    assert len(list((tmp_path / 'pictures').glob('*.jpg'))) == 2


def test_averaged_weights_are_saved_tested_and_resumed(tmp_path, segmentor_config):
    config, checkpoint = tmp_path / 'averaged.py', tmp_path / 'iter_2.pth'
    config.write_text(AVERAGED.format(config=segmentor_config))
    run_tool('train', config, '--work-dir', tmp_path)
    saved = torch.load(checkpoint, weights_only=False)
    key = 'decode_head.conv_seg.weight'
    assert not torch.equal(saved['state_dict'][key], saved['ema_state_dict'][f'module.{key}'])
    with_hook, without_hook = (
        run_tool('test', path, checkpoint, '--work-dir', tmp_path, '--show-dir', tmp_path / 'shown')
        for path in (config, segmentor_config)
    )
    np.testing.assert_equal(with_hook, without_hook)
    assert len(list((tmp_path / 'shown').rglob('*.png'))) == 2
    run_tool('train', config, '--work-dir', tmp_path, '--resume', options=['train_cfg.max_iters=3'])
    resumed = torch.load(tmp_path / 'iter_3.pth', weights_only=False)
    assert resumed['meta']['iter'] == 3
    assert resumed['ema_state_dict']['steps'] == saved['ema_state_dict']['steps'] + 1


def test_image_demo_of_a_folder_draws_nothing_below_the_threshold(
    tmp_path, detector_config, mini_coco
):
    official(detector_config, tmp_path / 'official.pth')
    images = shutil.copytree(mini_coco / 'val', tmp_path / 'images')
    names = {path.name for path in images.iterdir()}
    (images / 'notes.txt').write_text('no image')
    run_tool(
        'image_demo', images, detector_config, tmp_path / 'official.pth', '--out',
        tmp_path / 'drawn', '--device', 'cpu', '--score-thr', '1',
    )  # fmt: skip
    assert {path.name for path in (tmp_path / 'drawn').iterdir()} == names
    for name in names:
        drawn = cv2.imread(str(tmp_path / 'drawn' / name)).astype(int)
        assert np.abs(drawn - cv2.imread(str(images / name))).mean() < 2  # JPEG again
