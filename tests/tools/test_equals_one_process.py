"""Two processes with one image each train as one process with two.

A detector with FSDP2; with ``SCALE_TESTS=all`` a segmentor, DDP and accumulation too.
"""

import json
import os

import pytest
import torch
from mmengine.config import Config

from internimage_mm.checkpoint import read_checkpoint
from internimage_mm.training import build_model

from .conftest import ROOT, run_tool
from .test_several_processes import succeed

ITERATIONS = 10
GROUP_NORM = dict(type='GN', num_groups=4)
# Options of train.py, and of how many iterations the gradients are added.
TRAININGS = {'DDP': ([], 1), 'FSDP2': (['--shard'], 1), 'accumulation': (['--shard'], 2)}
KINDS = ['detector', 'UPerNet']
LONG = os.environ.get('SCALE_TESTS') == 'all'


@pytest.fixture(autouse=True)
def training_hooks(monkeypatch):
    """The launched processes find the module of this name."""
    monkeypatch.setenv('PYTHONPATH', f'{ROOT / "tests"}:{os.environ.get("PYTHONPATH", "")}')


def quickstart_detector(detector_config):
    """Without batch norm, which sees only the images of its own process."""
    cfg = Config.fromfile(detector_config)
    quickstart = ROOT / 'configs/quickstart/mask-rcnn_internimage-nano_mini-coco.py'
    cfg.model = Config.fromfile(quickstart).model
    cfg.model.backbone.norm_layer = 'LN'
    cfg.model.neck.norm_cfg = GROUP_NORM
    # The losses of a process are means over its samples: here as many of each image.
    cfg.model.train_cfg.rpn.sampler.num = 32
    cfg.model.train_cfg.rcnn.sampler.num = 8
    return cfg


def upernet(segmentor_config):
    cfg = Config.fromfile(segmentor_config)
    cfg.model.decode_head.norm_cfg = cfg.model.auxiliary_head.norm_cfg = GROUP_NORM
    return cfg


def training_config(kind, iterations, detector_config, segmentor_config, folder):
    """A config of a model of this kind that trains without random numbers."""
    cfg = quickstart_detector(detector_config) if kind == 'detector' else upernet(segmentor_config)
    for step in cfg.train_dataloader.dataset.pipeline:
        if step['type'] == 'Resize':  # images of one batch are padded to the largest
            step.keep_ratio = False
    path, weights = folder / f'{kind}.py', folder / f'{kind}.pth'
    cfg.custom_imports.imports.append('training_hooks')
    cfg.custom_hooks = [dict(type='WithoutChance'), dict(type='RecordShares')]
    cfg.load_from = str(weights)
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg.max_iters = cfg.default_hooks.checkpoint.interval = iterations
    cfg.train_cfg.val_begin = 100  # none
    cfg.optim_wrapper.clip_grad = dict(max_norm=1.0)
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.002, momentum=0.9, weight_decay=0.01)
    cfg.param_scheduler = []
    cfg.dump(path)
    model = build_model(Config.fromfile(path))
    model.init_weights()
    for name, parameter in model.named_parameters():
        if 'offset' in name:  # by default on the pixels, where the gradient is not continuous
            torch.nn.init.uniform_(parameter, -0.3, 0.3)
    torch.save({'state_dict': model.state_dict()}, weights)
    return path


def results(folder):
    losses = json.loads((folder / 'losses.json').read_text())
    return losses, read_checkpoint(folder / f'iter_{ITERATIONS}.pth')['state_dict']


def largest_difference(left, right):
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def check_shares(folder, states):
    """Of weights, gradients and optimizer, which has ``states`` values for each weight."""
    shares = json.loads((folder / 'shares.json').read_text())
    for share in shares:
        whole = share.pop('whole model')
        print(f'{folder.name}, whole model {whole / 2**20:.1f} MiB:', end=' ')
        print(', '.join(f'{name} {size / 2**20:.2f}' for name, size in share.items()))
        limit = 1.05 * whole / len(shares)
        assert share['parameters'] <= limit
        assert share['gradients'] <= limit
        assert share['states'] <= states * limit
    assert len(shares) > 1


@pytest.mark.parametrize('kind', KINDS if LONG else ['detector'])
def test_training(tmp_path, detector_config, segmentor_config, kind):
    config = training_config(kind, ITERATIONS, detector_config, segmentor_config, tmp_path)
    start, expected = read_checkpoint(tmp_path / f'{kind}.pth')['state_dict'], {}
    for name in TRAININGS if LONG else ['FSDP2']:
        options, count = TRAININGS[name]
        accumulate = f'optim_wrapper.accumulative_counts={count}'
        if count not in expected:
            folder = tmp_path / f'one_{count}'
            run_tool('train', config, '--work-dir', folder, options=[accumulate])
            expected[count] = results(folder)
        succeed(
            'dist_train.sh', config, 2, *options, '--work-dir', tmp_path / name,
            '--cfg-options', accumulate, 'train_dataloader.batch_size=1',
        )  # fmt: skip
        losses, weights = results(tmp_path / name)
        losses_of_one, weights_of_one = expected[count]
        print(
            f'{kind}, {name}: loss {losses[-1]["loss"]:.6f} and {losses_of_one[-1]["loss"]:.6f}; '
            f'weights differ by {largest_difference(weights, weights_of_one):.1e}, and from those '
            f'before by {largest_difference(weights, start):.1e}'
        )
        assert losses == [pytest.approx(step, rel=1e-5, abs=1e-6) for step in losses_of_one]
        torch.testing.assert_close(weights, weights_of_one, rtol=1e-5, atol=1e-6)
        if '--shard' in options:
            check_shares(tmp_path / name, states=1)
