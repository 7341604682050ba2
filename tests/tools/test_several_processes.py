"""Several processes on a machine without GPU compute what one process does."""

import json
import os
import pickle
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from internimage_mm.checkpoint import CheckpointError, read_checkpoint
from internimage_mm.training import build_model

from .conftest import ROOT, error_of, load_tool, run_tool

# Group norm: batch norm sees only the images of its own process.
GROUP_NORM = """
_base_ = '{base}'
load_from = '{weights}'
norm_cfg = dict(type='GN', num_groups=4)
model = dict(
    backbone=dict(norm_layer='LN'),
    decode_head=dict(norm_cfg=norm_cfg), auxiliary_head=dict(norm_cfg=norm_cfg))
train_cfg = dict(max_iters=4)
default_hooks = dict(checkpoint=dict(interval=4))
optim_wrapper = dict(
    _delete_=True, type='OptimWrapper', accumulative_counts=2, clip_grad=dict(max_norm=1.0),
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.01))
"""
# Three images, which two processes cannot share evenly.
UNEVEN = """
_base_ = '{base}'
annotations = '{root}/annotations/instances_train.json'
test_dataloader = dict(dataset=dict(
    ann_file=annotations, data_prefix=dict(img='train/'), indices=3))
test_evaluator = dict(ann_file=annotations)
"""


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as free:
        return str(free.getsockname()[1])


def start(script, *args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **environment):
    """Start a launcher in ``tools``."""
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    usual = {'PATH': path, 'PORT': free_port(), 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen(
        ['bash', ROOT / 'tools' / script, *map(str, args)],
        env={**os.environ, **usual, **environment},
        stdout=stdout,
        stderr=stderr,
        text=True,
    )


def succeed(*args, **environment):
    """Run a launcher to its end; returns what it prints."""
    process = start(*args, **environment)
    out, errors = process.communicate()
    assert process.returncode == 0, errors[-3000:]
    return out


def save_weights(config, path):
    torch.save({'state_dict': build_model(Config.fromfile(config)).state_dict()}, path)


@pytest.fixture(scope='session')
def group_norm_config(tmp_path_factory, segmentor_config):
    folder = tmp_path_factory.mktemp('configs')
    path, weights = folder / 'group_norm.py', folder / 'weights.pth'
    path.write_text(GROUP_NORM.format(base=segmentor_config, weights=weights))
    save_weights(path, weights)
    return path


@pytest.fixture(scope='session')
def one_process(tmp_path_factory, group_norm_config):
    """The weights after a training by one process, two images at a time."""
    work_dir = tmp_path_factory.mktemp('one')
    run_tool('train', group_norm_config, '--work-dir', work_dir)
    return torch.load(work_dir / 'iter_4.pth', weights_only=False)['state_dict']


def test_training_equals_that_of_one_process(tmp_path, group_norm_config, one_process):
    succeed(
        'dist_train.sh', group_norm_config, 2, '--work-dir', tmp_path,
        '--cfg-options', 'train_dataloader.batch_size=1',
    )  # fmt: skip
    weights = torch.load(tmp_path / 'iter_4.pth', weights_only=False)['state_dict']
    torch.testing.assert_close(weights, one_process, rtol=1e-5, atol=1e-6)


def test_uneven_shares(tmp_path, detector_config, mini_coco):
    config, checkpoint = tmp_path / 'uneven.py', tmp_path / 'weights.pth'
    config.write_text(UNEVEN.format(base=detector_config, root=mini_coco))
    save_weights(config, checkpoint)
    outs = [tmp_path / 'one.pkl', tmp_path / 'two.pkl']
    expected = run_tool('test', config, checkpoint, '--work-dir', tmp_path / 'a', '--out', outs[0])
    args = ('--work-dir', tmp_path / 'b', '--out', outs[1])
    succeed('dist_test.sh', config, checkpoint, 2, *args)
    predictions = [pickle.loads(path.read_bytes()) for path in outs]
    assert len(predictions[0]) == len(predictions[1]) == 3
    for left, right in zip(*predictions, strict=True):
        assert left['img_id'] == right['img_id']
        torch.testing.assert_close(left['pred_instances'], right['pred_instances'], rtol=0, atol=0)
    logged = json.loads(next((tmp_path / 'b').glob('*/*.json')).read_text())
    assert expected.items() <= logged.items()


@pytest.fixture(scope='module')
def sharded_run(tmp_path_factory, group_norm_config):
    work_dir = tmp_path_factory.mktemp('sharded')
    succeed(
        'dist_train.sh', group_norm_config, 2, '--shard', '--work-dir', work_dir,
        '--cfg-options', 'train_dataloader.batch_size=1', 'model.backbone.with_cp=True',
        'default_hooks.checkpoint.interval=2', 'train_cfg.val_interval=4',
    )  # fmt: skip
    return work_dir


def test_sharded_training_equals_that_of_one_process(sharded_run, one_process):
    """With accumulation, clipping and recomputed blocks."""
    for name in ('iter_4.pth', 'final.pth'):  # the folder, and the ordinary file
        weights = read_checkpoint(sharded_run / name)['state_dict']
        torch.testing.assert_close(weights, one_process, rtol=1e-5, atol=1e-6)


def test_each_process_has_its_share(sharded_run):
    """Of weights and momenta, as each process writes what it has."""
    shares = [path.stat().st_size for path in (sharded_run / 'iter_4.pth').glob('*.distcp')]
    assert len(shares) == 2
    assert max(shares) < 0.55 * sum(shares)


def test_sharded_training_resumes_on_one_process(
    tmp_path, sharded_run, group_norm_config, one_process
):
    shutil.copytree(sharded_run / 'iter_2.pth', tmp_path / 'iter_2.pth')
    args = ('--shard', '--resume', '--work-dir', tmp_path)
    assert 'resumed epoch: 0, iter: 2' in succeed('dist_train.sh', group_norm_config, 1, *args)
    weights = read_checkpoint(tmp_path / 'final.pth')['state_dict']
    torch.testing.assert_close(weights, one_process, rtol=1e-5, atol=1e-6)


def test_folder_becomes_one_file(tmp_path, sharded_run, one_process):
    load_tool('convert_checkpoint').main([f'{sharded_run}/iter_4.pth', f'{tmp_path}/out.pth'])
    weights = torch.load(tmp_path / 'out.pth', weights_only=False)['state_dict']
    assert weights.keys() == one_process.keys()


def test_incomplete_folder(tmp_path, sharded_run, segmentor_config):
    folder = shutil.copytree(sharded_run / 'iter_4.pth', tmp_path / 'iter_4.pth')
    message = error_of('train', segmentor_config, '--resume', folder, '--work-dir', tmp_path)
    assert f'{folder} cannot be resumed from: it was saved with --shard' in message
    next(folder.glob('__1_*.distcp')).unlink()
    with pytest.raises(CheckpointError, match='iter_4.pth is incomplete'):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ('line', 'expected'),
    [
        ("launcher = 'none'", '--shard divides the model among several processes'),
        ("custom_hooks = [dict(type='EMAHook')]", '--shard cannot average the weights'),
        ('find_unused_parameters = True', 'find_unused_parameters is a setting of training'),
    ],
)
def test_cannot_be_sharded(monkeypatch, tmp_path, segmentor_config, line, expected):
    (tmp_path / 'config.py').write_text(f"_base_ = '{segmentor_config}'\n{line}\n")
    for name in ('WORLD_SIZE', 'RANK', 'LOCAL_RANK'):
        monkeypatch.setenv(name, '1')
    launcher = 'none' if 'launcher' in line else 'pytorch'
    args = (tmp_path / 'config.py', '--shard', '--launcher', launcher)
    assert expected in error_of('train', *args)


@pytest.fixture
def only_process(monkeypatch):
    """This process is the only one of a launcher; returns the arguments for sharded training."""
    place = dict(WORLD_SIZE='1', RANK='0', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1')
    for name, value in {**place, 'MASTER_PORT': free_port()}.items():
        monkeypatch.setenv(name, value)
    yield ('--shard', '--launcher', 'pytorch')
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_resumes_from_before_the_first_step(tmp_path, only_process, group_norm_config):
    """Gradients of two iterations are accumulated: after one, the optimizer has no state."""
    args = (group_norm_config, *only_process, '--work-dir', tmp_path)
    interval = 'default_hooks.checkpoint.interval=1'
    run_tool('train', *args, options=[interval, 'train_cfg.max_iters=1'])
    run_tool('train', *args, '--resume', options=[interval, 'train_cfg.max_iters=2'])
    checkpoint = read_checkpoint(tmp_path / 'iter_2.pth')
    assert len(checkpoint['message_hub']['log_scalars']['train/loss'].data[0]) == 2


def test_shards_cannot_be_resumed(
    tmp_path, only_process, group_norm_config, segmentor_run, sharded_run
):
    folder = shutil.copytree(sharded_run / 'iter_4.pth', tmp_path / 'iter_4.pth')
    next(folder.glob('__1_*.distcp')).unlink()
    for checkpoint, expected in (
        (segmentor_run / 'iter_2.pth', 'it was saved without --shard'),
        (folder, 'No such file or directory'),
    ):
        args = (*only_process, '--work-dir', tmp_path / 'run', '--resume', checkpoint)
        message = error_of('train', group_norm_config, *args)
        assert f'{checkpoint} cannot be resumed from: ' in message
        assert expected in message


@pytest.mark.parametrize('shard', [False, True])
def test_full_disk(tmp_path, only_process, segmentor_config, shard):
    """A limit on the size of files stands in for it."""
    args = (segmentor_config, '--work-dir', tmp_path, '--resume', *(only_process if shard else ()))
    run_tool('train', *args, options=['train_cfg.max_iters=1'])
    limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, hard))
    try:
        message = error_of('train', *args, options=['train_cfg.max_iters=2'])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    assert f'{tmp_path}/iter_2.pth' in message
    assert 'cannot be written: [Errno 27] File too large' in message
    assert [path.name for path in tmp_path.glob('iter_*')] == ['iter_1.pth']
    assert read_checkpoint(tmp_path / 'iter_1.pth')['meta']['iter'] == 1


def test_port_in_use(monkeypatch, segmentor_config):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = str(taken.getsockname()[1])
        errors = start('dist_train.sh', 'config.py', 2, PORT=port).communicate()[1]
        place = dict(SLURM_NTASKS='1', SLURM_PROCID='0', SLURM_LOCALID='0', MASTER_PORT=port)
        for name, value in {**place, 'MASTER_ADDR': '127.0.0.1'}.items():
            monkeypatch.setenv(name, value)
        message = error_of('train', segmentor_config, '--launcher', 'slurm')
    assert errors == f'error: port {port} is in use; set PORT to a free one\n'
    assert 'the processes cannot join: ' in message and 'MASTER_PORT=...' in message


def wait_for(process, text):
    printed = ''
    for line in process.stdout:
        printed += line
        if text in line:
            return printed
    raise AssertionError(process.stderr.read()[-3000:])


def test_sigterm_saves_and_exits(tmp_path, segmentor_config):
    """And SyncBN, which a CPU lacks, becomes batch norm."""
    options = (
        'train_cfg.max_iters=100000', 'default_hooks.checkpoint.interval=100000',
        'model.decode_head.norm_cfg.type=SyncBN', 'train_dataloader.num_workers=1',
    )  # fmt: skip
    args = ('--work-dir', tmp_path, '--cfg-options', *options)
    process = start('dist_train.sh', segmentor_config, 2, *args)
    printed = wait_for(process, 'Iter(train)')
    process.terminate()  # torchrun sends it to the data workers, too
    printed += process.communicate()[0]
    assert printed.count('SyncBN needs a GPU') == 1
    (saved,) = tmp_path.glob('iter_*.pth')
    assert f'SIGTERM: saved {saved.name}' in printed
    assert torch.load(saved, weights_only=False)['meta']['iter'] == int(saved.stem[5:])


def test_hung_process_is_named(tmp_path, segmentor_config):
    options = ('train_cfg.max_iters=100000', 'env_cfg.dist_cfg.timeout=20')
    args = ('--work-dir', tmp_path, '--cfg-options', *options)
    process = start('dist_train.sh', segmentor_config, 2, *args)
    wait_for(process, 'Iter(train)')
    workers = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    (hung,) = [pid for pid in workers if b'\0RANK=1\0' in Path(f'/proc/{pid}/environ').read_bytes()]
    os.kill(int(hung), signal.SIGSTOP)
    errors = next(line for line in process.stderr if line.startswith('error: '))
    os.kill(int(hung), signal.SIGKILL)  # as torchrun does after 30 seconds
    process.communicate()
    assert 'process 0 waited in vain for another one: [Rank 0]: Ranks 1 failed' in errors
    assert process.returncode != 0
