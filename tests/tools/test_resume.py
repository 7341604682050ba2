"""A training killed with SIGKILL goes on from the newest complete checkpoint."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS

from internimage_mm.commands import load_config
from internimage_mm.training import InternImageRunner
from internimage_mm.training.resume import latest_checkpoint

from .conftest import ROOT, error_of, run_tool

TRAINING = """
import os, signal, sys
from mmengine.fileio import LocalBackend

put, writes = LocalBackend.put, []

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def put_two_and_a_half(self, obj, filepath):
    writes.append(filepath)
    if len(writes) == 3:
        put(self, obj[: len(obj) // 2], filepath)
        die()
    put(self, obj, filepath)

LocalBackend.{patch}
sys.path.insert(0, '{tools}')
import train
train.main({args})
"""


def train_and_die(patch, config, work_dir, options):
    args = [str(config), '--work-dir', str(work_dir), '--cfg-options', *options]
    script = TRAINING.format(patch=patch, tools=ROOT / 'tools', args=args)
    process = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr


def checkpoint(path):
    return torch.load(path, weights_only=False)


def names(work_dir):
    return sorted(p.name for p in work_dir.glob('*.pth'))


def test_killed_while_writing_a_checkpoint(tmp_path, segmentor_config):
    options = ['default_hooks.checkpoint.max_keep_ckpts=1', 'train_cfg.max_iters=5']
    killed, whole = tmp_path / 'killed', tmp_path / 'whole'
    train_and_die('put = put_two_and_a_half', segmentor_config, killed, options)
    # Of what is there under a checkpoint's name, everything is complete.
    assert names(killed) == ['iter_2.pth']
    assert checkpoint(killed / 'iter_2.pth')

    run_tool('train', segmentor_config, '--work-dir', killed, '--resume', options=options)
    assert names(killed) == ['iter_5.pth']
    assert not list(killed.glob('*.unfinished'))
    log = max(killed.glob('*/*.log'), key=lambda p: p.stat().st_mtime).read_text()
    assert 'resumed epoch: 0, iter: 2' in log
    resumed = checkpoint(killed / 'iter_5.pth')
    assert resumed['meta']['iter'] == 5
    history = resumed['message_hub']['log_scalars']['train/loss'].data[0]
    assert len(history) == 5

    # The same as if nothing had happened.
    run_tool('train', segmentor_config, '--work-dir', whole, options=options)
    undisturbed = checkpoint(whole / 'iter_5.pth')
    expected = undisturbed['message_hub']['log_scalars']['train/loss'].data[0]
    assert history == pytest.approx(expected, rel=1e-4)
    assert [g['lr'] for g in resumed['optimizer']['param_groups']] == pytest.approx(
        [g['lr'] for g in undisturbed['optimizer']['param_groups']]
    )


def test_killed_before_the_outdated_checkpoint_is_removed(tmp_path, segmentor_config):
    options = ['default_hooks.checkpoint.max_keep_ckpts=1', 'train_cfg.max_iters=3']
    train_and_die('remove = die', segmentor_config, tmp_path, options)
    assert names(tmp_path) == ['iter_1.pth', 'iter_2.pth']
    run_tool('train', segmentor_config, '--work-dir', tmp_path, '--resume', options=options)
    assert names(tmp_path) == ['iter_3.pth']


@pytest.fixture
def finished(tmp_path, segmentor_run):
    """A training of two iterations that a test may change."""
    work_dir = shutil.copytree(segmentor_run, tmp_path / 'finished')
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_2.pth'))
    return work_dir


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_truncated_newest_checkpoint(finished, segmentor_config):
    """As a full disk or another tool than ours leaves it."""
    cut(finished / 'iter_2.pth')
    assert latest_checkpoint(finished) == str(finished / 'iter_1.pth')
    run_tool(
        'train', segmentor_config, '--work-dir', finished, '--resume',
        options=['train_cfg.max_iters=3'],
    )  # fmt: skip
    assert checkpoint(finished / 'iter_2.pth')['meta']['iter'] == 2
    assert checkpoint(finished / 'iter_3.pth')['meta']['iter'] == 3


def test_stale_or_damaged_pointer(finished, monkeypatch):
    """Nor is any file loaded to find the newest."""
    monkeypatch.delattr('torch.load')
    for text in (str(finished / 'iter_1.pth'), str(finished / 'iter_99.pth'), ''):
        (finished / 'last_checkpoint').write_text(text)
        assert latest_checkpoint(finished) == str(finished / 'iter_2.pth')


def test_no_complete_checkpoint_is_an_error(finished, segmentor_config):
    for name in names(finished):
        cut(finished / name)
    message = error_of('train', segmentor_config, '--work-dir', finished, '--resume')
    assert 'no complete checkpoint to resume from' in message
    assert 'iter_2.pth is truncated' in message


def test_nothing_to_resume_starts_anew(tmp_path, segmentor_config, segmentor_run, capsys):
    """But with the load_from of a fine-tuning that is always started with --resume."""
    pretrained = segmentor_run / 'iter_2.pth'
    (tmp_path / 'iter_1.pth').symlink_to('elsewhere')
    run_tool(
        'train', segmentor_config, '--work-dir', tmp_path, '--resume',
        options=['train_cfg.max_iters=1', f'load_from={pretrained}'],
    )  # fmt: skip
    assert 'no checkpoint yet, starting anew' in capsys.readouterr().out
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert f'Load checkpoint from {pretrained}' in log
    assert names(tmp_path) == ['iter_1.pth']
    # Written where the link points, as by every tool.
    assert (tmp_path / 'iter_1.pth').is_symlink()
    assert checkpoint(tmp_path / 'elsewhere')['meta']['iter'] == 1


def test_resume_by_name(tmp_path, segmentor_config, segmentor_run):
    run_tool(
        'train', segmentor_config, '--work-dir', tmp_path, '--resume',
        segmentor_run / 'iter_1.pth', options=['train_cfg.max_iters=2'],
    )  # fmt: skip
    assert names(tmp_path) == ['iter_2.pth']


EPOCHS = """
_base_ = '{base}'
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=2, val_interval=1)
train_dataloader = dict(sampler=dict(type='DefaultSampler'))
log_processor = dict(by_epoch=True)
default_hooks = dict(
    checkpoint=dict(by_epoch=True, out_dir='{out_dir}', max_keep_ckpts=1, save_best='auto'))
"""


def test_checkpoints_of_epochs_in_another_folder(tmp_path, detector_config):
    """The hook's out_dir, epochs instead of iterations, and a best checkpoint."""
    work_dir, out_dir = tmp_path / 'run', tmp_path / 'elsewhere'
    config = tmp_path / 'epochs.py'
    config.write_text(EPOCHS.format(base=detector_config, out_dir=out_dir))
    run_tool('train', config, '--work-dir', work_dir)
    saved = out_dir / 'run'
    assert 'epoch_2.pth' in names(saved)
    assert 'epoch_1.pth' not in names(saved)
    assert latest_checkpoint(work_dir) == str(saved / 'epoch_2.pth')
    run_tool(
        'train', config, '--work-dir', work_dir, '--resume', options=['train_cfg.max_epochs=3']
    )
    assert checkpoint(saved / 'epoch_3.pth')['meta']['epoch'] == 3
    assert checkpoint(saved / 'epoch_3.pth')['meta']['iter'] == 12


class TerminateHook(Hook):
    """Sends SIGTERM to this process in the middle of the second epoch."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 5:
            os.kill(os.getpid(), signal.SIGTERM)


# Of all regions, none is drawn at random.
TERMINATED = (
    EPOCHS.replace("out_dir='{out_dir}', max_keep_ckpts=1, save_best='auto'", '')
    + """
custom_hooks = [dict(type='TerminateHook')]
sampler = dict(num=100000)
model = dict(train_cfg=dict(rpn=dict(sampler=sampler), rcnn=dict(sampler=sampler)))
"""
)


def test_sigterm_in_the_middle_of_an_epoch(tmp_path, monkeypatch, detector_config):
    monkeypatch.setitem(HOOKS.module_dict, 'TerminateHook', TerminateHook)
    config, interrupted, whole = (tmp_path / name for name in ('c.py', 'interrupted', 'whole'))
    config.write_text(TERMINATED.format(base=detector_config))
    with pytest.raises(SystemExit) as exit_info:
        run_tool('train', config, '--work-dir', interrupted)
    assert exit_info.value.code == 128 + signal.SIGTERM
    assert names(interrupted) == ['epoch_1.pth', 'iter_6.pth']
    options = ['custom_hooks=[]']
    run_tool('train', config, '--work-dir', interrupted, '--resume', options=options)
    run_tool('train', config, '--work-dir', whole, options=options)
    found, expected = (
        checkpoint(folder / 'epoch_2.pth')['message_hub']['log_scalars']['train/loss'].data[0]
        for folder in (interrupted, whole)
    )
    assert found == pytest.approx(expected, rel=1e-4)


def test_checkpoint_hook_that_is_switched_off_or_an_instance(tmp_path, segmentor_config):
    cfg = load_config(str(segmentor_config), work_dir=str(tmp_path))
    hook = CheckpointHook(interval=7)
    for i, (given, expected) in enumerate({None: [], hook: [hook]}.items()):
        cfg.experiment_name = cfg.visualizer.name = f'hook{i}'
        runner = InternImageRunner.from_cfg(cfg)
        runner._hooks = []
        runner.register_default_hooks(dict(checkpoint=given))
        found = [h for h in runner.hooks if isinstance(h, CheckpointHook)]
        assert found == expected
