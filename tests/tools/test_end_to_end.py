"""Train, test and draw with a tiny detector and a tiny segmentor."""

import math
import pickle
import shutil

import cv2
import numpy as np
import pytest
import torch
from golden.deterministic_weights import tensor_for
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope

from .conftest import run_tool


def built_model(config):
    """The model as the libraries build it, without our tools, with deterministic weights."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    model.load_state_dict(
        {
            k: torch.from_numpy(tensor_for(k, v.shape, str(v.dtype)))
            for k, v in model.state_dict().items()
        }
    )
    model.cfg = cfg
    return model


def official_file(model, path):
    """The same weights as the old stack saved them, with what its EMA hook left behind."""
    weights = model.state_dict()
    leftovers = {f'ema_{k.replace(".", "_")}': v + 1 for k, v in weights.items()}
    meta = {'epoch': 12, 'mmcv_version': '1.5.0', 'CLASSES': ('a', 'b'), 'config': 'model = dict()'}
    torch.save({'meta': meta, 'state_dict': {**weights, **leftovers}}, path)
    return path


def predictions(path):
    with open(path, 'rb') as file:
        return pickle.load(file)


def test_train_writes_checkpoints(detector_run, segmentor_run):
    for work_dir in (detector_run, segmentor_run):
        assert {p.name for p in work_dir.glob('*.pth')} == {'iter_1.pth', 'iter_2.pth'}
        assert torch.load(work_dir / 'iter_2.pth', weights_only=False)['meta']['iter'] == 2


def test_detector_from_official_checkpoint(tmp_path, detector_config, mini_coco):
    model = built_model(detector_config)
    checkpoint = official_file(model, tmp_path / 'official.pth')
    metrics = run_tool(
        'test', detector_config, checkpoint, '--work-dir', tmp_path, '--out', tmp_path / 'out.pkl',
        '--show-dir', tmp_path / 'pictures',
    )  # fmt: skip
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= metrics.keys()
    assert all(math.isfinite(v) for v in metrics.values())

    from mmdet.apis import inference_detector

    found = predictions(tmp_path / 'out.pkl')
    assert len(found) == 2
    for prediction in found:
        expected = inference_detector(model, prediction['img_path']).pred_instances
        assert len(expected) == 5
        assert torch.equal(prediction['pred_instances']['bboxes'], expected.bboxes)
        assert torch.equal(prediction['pred_instances']['scores'], expected.scores)
        assert len(prediction['pred_instances']['masks']) == 5
    # One picture for each image, in the very folder that was given.
    assert len(list((tmp_path / 'pictures').glob('*.jpg'))) == 2


def test_segmentor_from_official_checkpoint(tmp_path, segmentor_config):
    model = built_model(segmentor_config)
    checkpoint = official_file(model, tmp_path / 'official.pth')
    metrics = run_tool(
        'test', segmentor_config, checkpoint, '--work-dir', tmp_path, '--out', tmp_path / 'out.pkl',
        '--show-dir', tmp_path / 'pictures',
    )  # fmt: skip
    assert math.isfinite(metrics['aAcc'])

    from mmseg.apis import inference_model

    found = predictions(tmp_path / 'out.pkl')
    assert len(found) == 2
    for prediction in found:
        expected = inference_model(model, prediction['img_path']).pred_sem_seg.data
        assert len(expected.unique()) > 1
        assert torch.equal(prediction['pred_sem_seg']['data'], expected)
        assert 'seg_logits' not in prediction
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 2


def test_own_checkpoint_after_training(tmp_path, detector_config, detector_run):
    metrics = run_tool('test', detector_config, detector_run / 'iter_2.pth', '--work-dir', tmp_path)
    assert 'coco/bbox_mAP' in metrics


def test_fine_tuning_with_another_number_of_classes(
    tmp_path, segmentor_config, segmentor_run, capfd
):
    source = segmentor_run / 'iter_2.pth'
    run_tool(
        'train', segmentor_config, '--work-dir', tmp_path, options=[
            f'load_from={source}', 'model.decode_head.num_classes=11',
            'optim_wrapper.optimizer.lr=0', 'train_cfg.max_iters=1',
        ],
    )  # fmt: skip
    before = torch.load(source, weights_only=False)['state_dict']
    after = torch.load(tmp_path / 'iter_1.pth', weights_only=False)['state_dict']
    assert after['decode_head.conv_seg.weight'].shape[0] == 11
    kept = [k for k, v in before.items() if v.shape == after[k].shape and 'running' not in k]
    assert len(kept) > 0.9 * len(before) - 20
    for key in kept:
        if before[key].is_floating_point():
            assert torch.equal(before[key], after[key]), key
    log = next(tmp_path.glob('*/*.log')).read_text()
    warning = [line for line in log.splitlines() if 'the backbone fits' in line]
    assert len(warning) == 1
    assert '2 have another shape' in warning[0]
    assert 'decode_head.conv_seg.weight, decode_head.conv_seg.bias' in warning[0]


EMA = """
_base_ = '{config}'
custom_hooks = [dict(type='EMAHook', momentum=0.5)]
"""


def test_averaged_weights_are_saved_tested_and_resumed(tmp_path, segmentor_config):
    config = tmp_path / 'ema.py'
    config.write_text(EMA.format(config=segmentor_config))
    run_tool('train', config, '--work-dir', tmp_path)
    saved = torch.load(tmp_path / 'iter_2.pth', weights_only=False)
    key = 'decode_head.conv_seg.weight'
    assert not torch.equal(saved['state_dict'][key], saved['ema_state_dict'][f'module.{key}'])
    with_hook = run_tool('test', config, tmp_path / 'iter_2.pth', '--work-dir', tmp_path)
    without_hook = run_tool(
        'test', segmentor_config, tmp_path / 'iter_2.pth', '--work-dir', tmp_path
    )
    np.testing.assert_equal(with_hook, without_hook)
    run_tool('train', config, '--work-dir', tmp_path, '--resume', options=['train_cfg.max_iters=3'])
    resumed = torch.load(tmp_path / 'iter_3.pth', weights_only=False)
    assert resumed['meta']['iter'] == 3
    assert resumed['ema_state_dict']['steps'] == saved['ema_state_dict']['steps'] + 1


TTA = """
_base_ = '{config}'
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale=(64, 64))],
        [dict(type='RandomFlip', prob=0.), dict(type='RandomFlip', prob=1.)],
        [dict(type='LoadAnnotations', reduce_zero_label=True)],
        [dict(type='PackSegInputs')]])]
"""


def test_tta(tmp_path, segmentor_config, segmentor_run):
    config = tmp_path / 'tta.py'
    config.write_text(TTA.format(config=segmentor_config))
    metrics = run_tool(
        'test', config, segmentor_run / 'iter_2.pth', '--work-dir', tmp_path, '--tta'
    )
    assert 'mIoU' in metrics


@pytest.mark.parametrize('kind', ['detector', 'segmentor'])
def test_image_demo(tmp_path, request, kind, mini_coco):
    config = request.getfixturevalue(f'{kind}_config')
    checkpoint = official_file(built_model(config), tmp_path / 'official.pth')
    image_path = next((mini_coco / 'val').glob('*.jpg'))
    out = tmp_path / 'pictures' / 'out.png'
    run_tool(
        'image_demo', image_path, config, checkpoint, '--out', out, '--device', 'cpu',
        '--score-thr', '0.0', options=['visualizer.alpha=0.5'],
    )  # fmt: skip
    image, drawn = cv2.imread(str(image_path)), cv2.imread(str(out))
    assert drawn.shape == image.shape
    changed = (np.abs(drawn.astype(int) - image) > 8).any(axis=2).mean()
    assert changed > 0.05
    if kind == 'segmentor':
        # Half image, half colour of the class that the model alone predicts for the pixel.
        from mmseg.apis import inference_model

        model = built_model(config)
        labels = inference_model(model, str(image_path)).pred_sem_seg.data[0].numpy()
        palette = np.array(model.cfg.metainfo.palette)[:, ::-1]
        expected = 0.5 * image + 0.5 * palette[labels]
        # The class names are written over some of it.
        assert np.median(np.abs(drawn - expected)) <= 2


def test_image_demo_of_a_folder_draws_nothing_below_the_threshold(
    tmp_path, detector_config, mini_coco
):
    checkpoint = official_file(built_model(detector_config), tmp_path / 'official.pth')
    images = shutil.copytree(mini_coco / 'val', tmp_path / 'images')
    names = {path.name for path in images.iterdir()}
    (images / 'notes.txt').write_text('no image')
    run_tool(
        'image_demo', images, detector_config, checkpoint, '--out', tmp_path / 'drawn',
        '--device', 'cpu', '--score-thr', '1.1',
    )  # fmt: skip
    assert {path.name for path in (tmp_path / 'drawn').iterdir()} == names
    for name in names:
        drawn = cv2.imread(str(tmp_path / 'drawn' / name)).astype(int)
        assert np.abs(drawn - cv2.imread(str(images / name))).mean() < 2  # JPEG again
