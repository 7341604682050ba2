"""Every family of segmentors trains: our config, made small, on generated data."""

import functools
import json
import math

import pytest
import torch
from golden_detseg import ROOT
from mmengine.config import Config
from tool_runner import run_tool

from internimage_mm.data import make_mini_ade20k

CONFIGS = {
    'upernet': 'ade20k/upernet_internimage-l_8xb2-160k_ade20k-640x640.py',
    'segformer': 'cityscapes/segformer_internimage-xl_8xb2-160k_mapillary2cityscapes-512x1024.py',
    'mask2former': 'ade20k/mask2former_internimage-h_16xb1-80k_cocostuff2ade20k-896x896.py',
}
BACKBONE = {'channels': 16, 'depths': [1, 1, 2, 1], 'groups': [1, 2, 4, 8], 'init_cfg': None}
CROP = (64, 64)


@pytest.fixture(scope='module')
def mini_ade20k(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'mini_ade20k'
    make_mini_ade20k(root, num_train=4, num_val=2, seed=0)
    return root


def small_config(name, root):
    cfg = Config.fromfile(ROOT / 'configs' / CONFIGS[name])
    data = Config.fromfile(ROOT / 'configs' / '_base_' / 'datasets' / 'ade20k.py')
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.dataset = data[f'{split}_dataloader'].dataset
        loader.dataset.data_root = str(root)
        loader.update(num_workers=0, persistent_workers=False)
        for transform in loader.dataset.pipeline:
            if transform.type in ('RandomResize', 'Resize'):
                transform.scale = (256, 64)
            elif transform.type == 'RandomCrop':
                transform.crop_size = CROP
    cfg.model.data_preprocessor.size = CROP
    options = {'backbone': dict(BACKBONE), 'decode_head': {'in_channels': [16, 32, 64, 128]}}
    if name == 'mask2former':
        options['backbone']['level2_post_norm_block_ids'] = [1]
        attention = {'embed_dims': 32, 'num_heads': 2}
        ffn = {'embed_dims': 32, 'feedforward_channels': 64}
        layer = {'self_attn_cfg': attention, 'ffn_cfg': ffn}
        options['decode_head'].update(
            feat_channels=32,
            out_channels=32,
            num_queries=10,
            train_cfg={'num_points': 100},
            positional_encoding={'num_feats': 16},
            pixel_decoder={
                'encoder': {'num_layers': 2, 'layer_cfg': layer},
                'positional_encoding': {'num_feats': 16},
            },
            transformer_decoder={
                'num_layers': 3,
                'layer_cfg': {**layer, 'cross_attn_cfg': attention},
            },
        )
    else:
        options['decode_head']['channels'] = 32
    if cfg.model.auxiliary_head:
        options['auxiliary_head'] = {'in_channels': 64, 'channels': 16}
    cfg.merge_from_dict(
        {
            'model': options,
            'load_from': None,
            # Without decay, a weight moves only if a gradient reaches it; Adam's first steps have
            # the size of the learning rate.
            'param_scheduler': [],
            'optim_wrapper': {'optimizer': {'lr': 1e-3, 'weight_decay': 0.0}},
            'train_cfg': {'max_iters': 2, 'val_interval': 2},
            'default_hooks': {
                'logger': {'interval': 1},
                'checkpoint': {'interval': 1, 'max_keep_ckpts': -1, 'save_best': None},
            },
            'randomness': {'seed': 0},
        }
    )
    return cfg


@pytest.fixture(scope='module')
def train(mini_ade20k, tmp_path_factory):
    """Train a family once; returns the folder of its run."""

    @functools.cache
    def run(name):
        cfg = small_config(name, mini_ade20k)
        # Drop path removes whole blocks from an iteration.
        cfg.model.backbone.drop_path_rate = 0.0
        folder = tmp_path_factory.mktemp(name)
        cfg.dump(folder / 'config.py')
        run_tool('train', folder / 'config.py', '--work-dir', folder / 'run')
        return folder / 'run'

    return run


@pytest.mark.parametrize('name', CONFIGS)
def test_two_iterations(name, train):
    run = train(name)
    (log,) = run.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    training = [line for line in lines if 'lr' in line]
    assert len(training) == 2
    losses = [v for line in training for k, v in line.items() if 'loss' in k]
    assert len(losses) >= 4
    assert all(math.isfinite(value) and value > 0 for value in losses)
    assert any('mIoU' in line for line in lines)

    first, second = (
        torch.load(run / f'iter_{i}.pth', weights_only=False)['state_dict'] for i in (1, 2)
    )
    still = {k for k, v in first.items() if v.equal(second[k])}
    assert still == set()


def test_starts_from_a_checkpoint_with_another_head(mini_ade20k, train, tmp_path):
    """As the official UPerNets for Cityscapes start from a SegFormer."""
    start = train('segformer') / 'iter_2.pth'
    upernet = small_config('upernet', mini_ade20k)
    upernet.load_from = str(start)
    upernet.model.decode_head.channels = 16
    upernet.optim_wrapper.optimizer.lr = 0.0
    upernet.dump(tmp_path / 'upernet.py')
    run_tool('train', tmp_path / 'upernet.py', '--work-dir', tmp_path / 'upernet')
    before, after = (
        torch.load(path, weights_only=False)['state_dict']
        for path in (start, tmp_path / 'upernet' / 'iter_1.pth')
    )
    same = {k for k, v in before.items() if k in after and v.equal(after[k])}
    assert {k for k in before if k.startswith('backbone.')} <= same
    # The heads share one name of one shape: a bias for each of the 150 classes.
    assert 'decode_head.conv_seg.bias' in same
    assert 'decode_head.conv_seg.weight' not in same
