"""Train, test and draw with tiny classifiers made from the released configs."""

import json
import math
import pickle
import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from backbones.helpers import with_golden_weights
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmpretrain.structures import DataSample

from internimage_mm.checkpoint.convert import convert_to_official
from internimage_mm.commands.inference import best_classes
from internimage_mm.data import MINI_IMAGENET_CLASSES, make_mini_imagenet

from .conftest import ROOT, run_tool

NUM_CLASSES = len(MINI_IMAGENET_CLASSES)
BACKBONE = dict(channels=16, depths=[1, 1, 2, 1], groups=[1, 2, 4, 8], mlp_ratio=2.0)
RELEASED = {
    't': 'imagenet/internimage-t_8xb512_in1k-224.py',
    'h': 'imagenet/internimage-h_joint-in22k-pre_32xb16-20e_in1k-640.py',
    'inat': 'inaturalist2018/internimage-h_joint-in22k-pre_8xb128-100e_inat2018-384.py',
}
# These have no gradient but rounding. What only adds to the keys adds the same number to all scores
# of a query, which does not change the attention. What adds the same to all pixels before a
# convolution and a batch norm is taken away by the norm.
NO_GRADIENT = {
    't': {'backbone.levels.3.norm.0.bias'},
    'h': {'neck.clip_projector.cross_dcn.k_bias', 'neck.clip_projector.norm1_k.0.bias'},
}
NO_GRADIENT['inat'] = NO_GRADIENT['h']


@pytest.fixture(scope='session')
def mini_imagenet(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'mini_imagenet'
    make_mini_imagenet(root, num_train=12, num_val=12, seed=0)
    return root


@pytest.fixture(scope='session')
def mini_inat(mini_imagenet):
    """The same images with the annotation files of iNaturalist 2018."""
    for split in ('train', 'val'):
        files = sorted((mini_imagenet / split).rglob('*.jpg'))
        names = [str(file.relative_to(mini_imagenet)) for file in files]
        labels = [MINI_IMAGENET_CLASSES.index(file.parent.name) for file in files]
        content = dict(
            images=[dict(id=i, file_name=name) for i, name in enumerate(names)],
            categories=[dict(id=i, name=name) for i, name in enumerate(MINI_IMAGENET_CLASSES)],
            annotations=[dict(image_id=i, category_id=c) for i, c in enumerate(labels)],
        )
        places = [
            dict(id=i, date=f'2017-{i % 12 + 1:02d}-01', lat=10.0 + i, lon=20.0 - 5 * i)
            for i in range(len(names))
        ]
        (mini_imagenet / f'{split}2018.json').write_text(json.dumps(content))
        (mini_imagenet / f'{split}2018_locations.json').write_text(json.dumps(places))
    return mini_imagenet


def shrink(pipeline):
    for step in pipeline:
        for key in ('scale', 'crop_size'):
            if key in step:
                step[key] = 64


def tiny_config(kind, root):
    """The released config with a small backbone, on small images of six classes."""
    cfg = Config.fromfile(ROOT / 'configs' / RELEASED[kind])
    cfg.model.backbone.update(BACKBONE)
    if kind in ('h', 'inat'):
        cfg.model.backbone.level2_post_norm_block_ids = [1]
        cfg.model.neck.update(
            in_channels=[64, 128], embed_channels=32, num_heads=4, out_channels=24
        )
        cfg.model.head.in_channels = 24
    else:
        cfg.model.neck.update(in_channels=128, out_channels=192)
        cfg.model.head.in_channels = 192
    cfg.model.head.num_classes = cfg.model.data_preprocessor.num_classes = NUM_CLASSES
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(batch_size=6, num_workers=0, persistent_workers=False, pin_memory=False)
        loader.dataset.data_root = str(root)
        if kind != 'inat':
            loader.dataset.metainfo = dict(classes=MINI_IMAGENET_CLASSES)
        shrink(loader.dataset.pipeline)
    cfg.optim_wrapper.type = 'OptimWrapper'  # mixed precision needs a GPU
    # Two epochs of two iterations, past the beginning of the schedule, whose rate may be 0.
    cfg.train_cfg.update(max_epochs=2, val_interval=2)
    cfg.param_scheduler.update(T_max=2, end=2)
    if 'warmup' in cfg.param_scheduler:
        cfg.param_scheduler.warmup = 1
    cfg.default_hooks.logger.interval = 1
    cfg.load_from = None
    cfg.randomness = dict(seed=0)
    return cfg


@pytest.fixture(scope='session', params=RELEASED)
def trained(request, tmp_path_factory, mini_inat):
    """Kind, config file and work folder of a finished training."""
    folder = tmp_path_factory.mktemp(request.param)
    config = folder / 'config.py'
    tiny_config(request.param, mini_inat).dump(config)
    run_tool('train', config, '--work-dir', folder / 'work')
    return request.param, config, folder / 'work'


def log_of(work_dir):
    return next(work_dir.glob('*/*.log')).read_text()


def test_training(trained, tmp_path):
    kind, config, work_dir = trained
    log = log_of(work_dir)
    losses = [float(x) for x in re.findall(r'Epoch\(train\).* loss: (\S+)', log)]
    assert len(losses) == 4 and all(math.isfinite(x) for x in losses)
    assert 'accuracy/top1' in log
    saved = torch.load(work_dir / 'epoch_2.pth', weights_only=False)
    assert ('ema_state_dict' in saved) == (kind != 'inat')
    options = ['test_evaluator.topk=(1,5)']
    metrics = run_tool(
        'test', config, work_dir / 'epoch_2.pth', '--work-dir', tmp_path, options=options
    )
    assert set(metrics) == {'accuracy/top1', 'accuracy/top5'}
    assert 0 <= metrics['accuracy/top1'] <= metrics['accuracy/top5'] <= 100
    trained_top1 = float(re.findall(r'accuracy/top1: (\S+)', log)[-1])
    assert metrics['accuracy/top1'] == pytest.approx(trained_top1, abs=1e-3)


def built_model(config):
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    return with_golden_weights(MODELS.build(cfg.model)).eval(), cfg


def test_official_checkpoint(trained, tmp_path):
    """A file as the release saves it, through tools/test.py, against the model by itself."""
    _, config, _ = trained
    model, cfg = built_model(config)
    weights = convert_to_official(model.state_dict())
    assert not any(k.startswith(('backbone.', 'neck.')) for k in weights)
    checkpoint = tmp_path / 'official.pth'
    torch.save({'model': weights, 'max_accuracy': 83.5, 'epoch': 299}, checkpoint)
    metrics = run_tool(
        'test', config, checkpoint, '--work-dir', tmp_path, '--out', tmp_path / 'out.pkl',
        '--show-dir', tmp_path / 'pictures',
    )  # fmt: skip
    found = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    assert len(found) == len(dataset) == 12
    correct = 0
    with torch.no_grad():
        for i, prediction in enumerate(found):
            (expected,) = model.test_step(default_collate([dataset[i]]))
            # A batch of 6 sums in another order; measured 1.5e-6.
            torch.testing.assert_close(
                prediction['pred_score'], expected.pred_score, rtol=0, atol=5e-6
            )
            correct += int(expected.pred_label) == int(expected.gt_label)
    assert metrics['accuracy/top1'] == pytest.approx(100 * correct / 12, abs=1e-3)
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 12


def test_image_demo_of_a_config_as_mmpretrain_writes_it(tmp_path, mini_imagenet, capsys):
    """With data_preprocessor at the top level; and with the class names of the checkpoint."""
    cfg = tiny_config('t', mini_imagenet)
    cfg.data_preprocessor = cfg.model.pop('data_preprocessor')
    cfg.data_preprocessor.update(mean=[200.0] * 3, std=[20.0] * 3)
    cfg.dump(tmp_path / 'own.py')
    cfg.model.data_preprocessor = cfg.data_preprocessor
    cfg.dump(tmp_path / 'usual.py')
    model, cfg = built_model(tmp_path / 'usual.py')
    names = [f'my {name}' for name in MINI_IMAGENET_CLASSES]
    checkpoint = {'state_dict': model.state_dict(), 'meta': {'dataset_meta': {'classes': names}}}
    torch.save(checkpoint, tmp_path / 'own.pth')
    sample = DATASETS.build(cfg.test_dataloader.dataset)[0]
    with torch.no_grad():
        (expected,) = model.test_step(default_collate([sample]))
    run_tool(
        'image_demo', sample['data_samples'].img_path, tmp_path / 'own.py', tmp_path / 'own.pth',
        '--out', tmp_path / 'o.png', '--device', 'cpu',
    )  # fmt: skip
    assert np.any(
        cv2.imread(str(tmp_path / 'o.png')) != cv2.imread(sample['data_samples'].img_path)
    )
    found = re.findall(r'^(0\.\d{3})  (my .*)$', capsys.readouterr().out, re.MULTILINE)
    best = expected.pred_score.topk(5)
    assert [name for _, name in found] == [names[i] for i in best.indices]
    assert [float(score) for score, _ in found] == pytest.approx(best.values.tolist(), abs=6e-4)


def test_fewer_classes_than_are_shown():
    result = DataSample().set_pred_score(torch.tensor([0.25, 0.75]))
    assert best_classes(SimpleNamespace(dataset_meta={}), result) == [
        {'category': 'class 1', 'score': 0.75},
        {'category': 'class 0', 'score': 0.25},
    ]
    assert result.pred_label.tolist() == [1, 0]


@pytest.mark.parametrize('kind', RELEASED)
def test_gradients_reach_every_parameter(kind, mini_inat):
    cfg = tiny_config(kind, mini_inat)
    cfg.model.backbone.drop_path_rate = 0.0  # it would leave out whole branches
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    for name, p in model.named_parameters():  # away from the zeros of the initialisation
        torch.nn.init.normal_(p, mean=float(p.ndim == 1 and name.endswith('weight')), std=0.1)
    data = DATASETS.build(cfg.train_dataloader.dataset)
    batch = model.data_preprocessor(default_collate([data[i] for i in range(6)]), training=True)
    model.train()
    loss = sum(model(**batch, mode='loss').values())
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    largest = {name: p.grad.abs().max() for name, p in model.named_parameters()}
    small = [name for name, value in largest.items() if value < 1e-6 * max(largest.values())]
    assert set(small) == NO_GRADIENT[kind]
