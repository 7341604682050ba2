"""Two processes with one image each train as one process with two.

A detector with FSDP2; with ``SCALE_TESTS=all`` four kinds of models, with DDP and accumulation too,
and the memory of each process with large ones.
"""

import contextlib
import json
import os
import re
import threading
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from training_hooks import recorded_losses

from internimage_mm.checkpoint import read_checkpoint
from internimage_mm.training import build_model

from .conftest import ROOT, run_tool
from .test_inferencers import tiny_dino, tiny_mask2former
from .test_several_processes import save_weights, start, succeed

ITERATIONS = 10
GROUP_NORM = dict(type='GN', num_groups=4)
# Options of train.py, and of how many iterations the gradients are added.
TRAININGS = {'DDP': ([], 1), 'FSDP2': (['--shard'], 1), 'accumulation': (['--shard'], 2)}
KINDS = ['detector', 'UPerNet', 'DINO', 'Mask2Former']
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


def dino(detector_config):
    cfg = tiny_dino(detector_config)
    # With as many objects in each image: queries that fill up a batch are seen by the others.
    data = cfg.train_dataloader.dataset
    file = Path(data.data_root, data.ann_file)
    content = json.loads(file.read_text())
    first = {entry['image_id']: entry for entry in reversed(content['annotations'])}
    content['annotations'] = list(first.values())
    data.ann_file = str(Path(data.ann_file).with_name('one_object.json'))
    Path(data.data_root, data.ann_file).write_text(json.dumps(content))
    cfg.model.num_queries = 193  # everywhere: a choice may turn on the last bit
    cfg.model.dn_cfg = dict(
        label_noise_scale=1e-12, box_noise_scale=1e-12, group_cfg=dict(dynamic=False, num_groups=2)
    )
    return cfg


def mask2former(segmentor_config):
    cfg = tiny_mask2former(segmentor_config)
    # mmdet divides by the sum of the weights of the classes in the images of a process.
    cfg.model.decode_head.loss_cls.class_weight = [1.0] * (cfg.model.decode_head.num_classes + 1)
    return cfg


def training_config(kind, iterations, detector_config, segmentor_config, folder):
    """A config of a model of this kind that trains without random numbers."""
    cfg = {
        'detector': lambda: quickstart_detector(detector_config),
        'UPerNet': lambda: upernet(segmentor_config),
        'DINO': lambda: dino(detector_config),
        'Mask2Former': lambda: mask2former(segmentor_config),
    }[kind]()
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
    torch.manual_seed(0)
    model.init_weights()
    for name, parameter in model.named_parameters():
        if 'offset' in name:  # by default on the pixels, where the gradient is not continuous
            torch.nn.init.uniform_(parameter, -0.3, 0.3)
    torch.save({'state_dict': model.state_dict()}, weights)
    return path


def results(folder):
    checkpoint = read_checkpoint(folder / f'iter_{ITERATIONS}.pth')
    return recorded_losses(checkpoint), checkpoint['state_dict']


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
        # Of the total: GIoU is 1 minus a number near 1, and the points of masks are sorted.
        total = losses_of_one['loss'].abs()
        differences = {k: ((losses[k] - losses_of_one[k]).abs() / total).max() for k in losses}
        print(
            f'{kind}, {name}: loss {losses["loss"][0]:.6f} to {losses["loss"][-1]:.6f}, of which '
            f'the parts differ by {max(differences.values()):.1e}; weights differ by '
            f'{largest_difference(weights, weights_of_one):.1e}, and from those before by '
            f'{largest_difference(weights, start):.1e}'
        )
        assert losses.keys() == losses_of_one.keys() and len(total) == ITERATIONS
        assert max(differences.values()) < 1e-5
        torch.testing.assert_close(weights, weights_of_one, rtol=1e-5, atol=1e-6)
        if '--shard' in options:
            check_shares(tmp_path / name, states=1)


def large_model(segmentor_config, folder, channels, **backbone):
    cfg = upernet(segmentor_config)
    cfg.model.backbone = dict(type='InternImage', with_cp=True, **backbone)
    cfg.model.decode_head.in_channels = [channels * 2**i for i in range(4)]
    cfg.model.auxiliary_head.in_channels = channels * 4
    cfg.custom_imports.imports.append('training_hooks')
    cfg.custom_hooks = [dict(type='RecordShares')]
    cfg.train_dataloader.batch_size = cfg.train_cfg.max_iters = 1
    cfg.default_hooks.checkpoint.interval = cfg.train_cfg.val_begin = 100
    cfg.dump(folder / 'config.py')
    return folder / 'config.py'


def most_memory(launched):
    """Let a launcher's processes end; returns the most MiB that each had in no file, by rank."""
    most = {}

    def watch():
        while launched.poll() is None:
            with contextlib.suppress(OSError, TypeError):  # one has just ended
                children = f'/proc/{launched.pid}/task/{launched.pid}/children'
                for pid in Path(children).read_text().split():
                    rank = re.search(r'\0RANK=(\d)', Path(f'/proc/{pid}/environ').read_text())[1]
                    status = Path(f'/proc/{pid}/status').read_text()
                    now = int(re.search(r'RssAnon:\s*(\d+)', status)[1]) / 1024
                    most[rank] = max(most.get(rank, 0), now)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    errors = launched.communicate()[1]
    watcher.join()
    assert launched.returncode == 0, errors[-3000:]
    return most


if LONG:

    @pytest.mark.parametrize('processes', [2, 4])
    @pytest.mark.parametrize(('arch', 'channels'), [('small', 80), ('large', 160)])
    def test_shares_of_large_models(tmp_path, segmentor_config, arch, channels, processes):
        config = large_model(segmentor_config, tmp_path, channels, arch=arch)
        succeed('dist_train.sh', config, processes, '--shard', '--work-dir', tmp_path)
        check_shares(tmp_path, states=2)

    def test_loading_a_large_file(tmp_path, segmentor_config):
        """InternImage-G with fewer blocks, beside InternImage-T."""
        fewer = dict(depths=[1, 1, 8, 1], level2_post_norm_block_ids=[5])
        found = []
        for arch, channels, changes in (('tiny', 64, {}), ('giant', 512, fewer)):
            config = large_model(segmentor_config, tmp_path, channels, arch=arch, **changes)
            weights = tmp_path / f'{arch}.pth'
            save_weights(config, weights)
            options = ('custom_hooks.0.type=Stop', f'load_from={weights}')
            args = (2, '--shard', '--work-dir', tmp_path, '--cfg-options', *options)
            most = most_memory(start('dist_train.sh', config, *args))
            size = weights.stat().st_size / 2**20
            print(f'{arch}, {size:.0f} MiB in the file:', most)
            found.append(most)
        # The main process has the whole model and its share at most, the other twice its share.
        for rank, limit in (('0', 1.5 * size), ('1', size)):
            assert found[1][rank] - found[0][rank] < limit
