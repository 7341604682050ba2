"""A training killed with SIGKILL goes on from the newest complete checkpoint."""

import shutil
import signal
import subprocess
import sys

import pytest
import torch
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook

from internimage_mm.commands import load_config
from internimage_mm.training import InternImageRunner
from internimage_mm.training.resume import SaveThenRemoveHook, latest_checkpoint

from .conftest import ROOT, error_of, run_tool

# Kills its own process halfway through writing the third checkpoint.
KILLED_WHILE_WRITING = """
import os, signal, sys
from mmengine.fileio import LocalBackend

put, writes = LocalBackend.put, []

def put_half(self, obj, filepath):
    writes.append(filepath)
    if len(writes) == 3:
        put(self, obj[: len(obj) // 2], filepath)
        os.kill(os.getpid(), signal.SIGKILL)
    put(self, obj, filepath)

LocalBackend.put = put_half
sys.path.insert(0, '{tools}')
import train
train.main({args})
"""


def checkpoint(path):
    return torch.load(path, weights_only=False)


def names(work_dir):
    return sorted(p.name for p in work_dir.glob('*.pth'))


def test_killed_while_writing_a_checkpoint(tmp_path, segmentor_config):
    options = ['default_hooks.checkpoint.max_keep_ckpts=1', 'train_cfg.max_iters=5']
    killed, whole = tmp_path / 'killed', tmp_path / 'whole'
    args = [str(segmentor_config), '--work-dir', str(killed), '--cfg-options', *options]
    script = KILLED_WHILE_WRITING.format(tools=ROOT / 'tools', args=args)
    process = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    # Of what is there under a checkpoint's name, everything is complete.
    assert names(killed) == ['iter_2.pth']
    assert all(checkpoint(killed / name) for name in names(killed))

    run_tool('train', segmentor_config, '--work-dir', killed, '--resume', options=options)
    assert names(killed) == ['iter_5.pth']
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


KILLED_BEFORE_REMOVING = """
import os, signal, sys
from mmengine.fileio import LocalBackend

LocalBackend.remove = lambda self, path: os.kill(os.getpid(), signal.SIGKILL)
sys.path.insert(0, '{tools}')
import train
train.main({args})
"""


def test_killed_before_the_outdated_checkpoint_is_removed(tmp_path, segmentor_config):
    options = ['default_hooks.checkpoint.max_keep_ckpts=1', 'train_cfg.max_iters=3']
    args = [str(segmentor_config), '--work-dir', str(tmp_path), '--cfg-options', *options]
    script = KILLED_BEFORE_REMOVING.format(tools=ROOT / 'tools', args=args)
    process = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert names(tmp_path) == ['iter_1.pth', 'iter_2.pth']
    run_tool('train', segmentor_config, '--work-dir', tmp_path, '--resume', options=options)
    assert names(tmp_path) == ['iter_3.pth']


def test_outdated_folder_is_removed(tmp_path):
    """DeepSpeed's checkpoints are folders."""
    hook = SaveThenRemoveHook()
    hook.file_backend = LocalBackend()
    (tmp_path / 'iter_1.pth').mkdir()
    (tmp_path / 'iter_1.pth' / 'mp_rank_00_model_states.pt').touch()
    hook._remove(str(tmp_path / 'iter_1.pth'))
    assert names(tmp_path) == []
    hook._remove(str(tmp_path / 'iter_1.pth'))


@pytest.fixture(scope='module')
def finished(tmp_path_factory, segmentor_config):
    work_dir = tmp_path_factory.mktemp('three')
    run_tool('train', segmentor_config, '--work-dir', work_dir, options=['train_cfg.max_iters=3'])
    return work_dir


@pytest.fixture
def three_iterations(tmp_path, finished):
    """A training of three iterations that a test may change."""
    work_dir = shutil.copytree(finished, tmp_path / 'three')
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_3.pth'))
    return work_dir


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_truncated_newest_checkpoint(three_iterations, segmentor_config):
    """As a full disk or another tool than ours leaves it."""
    work_dir = three_iterations
    cut(work_dir / 'iter_3.pth')
    assert latest_checkpoint(work_dir) == str(work_dir / 'iter_2.pth')
    run_tool(
        'train', segmentor_config, '--work-dir', work_dir, '--resume',
        options=['train_cfg.max_iters=4'],
    )  # fmt: skip
    assert checkpoint(work_dir / 'iter_3.pth')['meta']['iter'] == 3
    assert checkpoint(work_dir / 'iter_4.pth')['meta']['iter'] == 4


def test_stale_or_damaged_pointer(three_iterations, monkeypatch):
    """Nor is any file loaded to find the newest."""
    work_dir = three_iterations
    monkeypatch.delattr('torch.load')
    for text in (str(work_dir / 'iter_1.pth'), str(work_dir / 'iter_99.pth'), ''):
        (work_dir / 'last_checkpoint').write_text(text)
        assert latest_checkpoint(work_dir) == str(work_dir / 'iter_3.pth')


def test_no_complete_checkpoint_is_an_error(three_iterations, segmentor_config):
    work_dir = three_iterations
    for name in names(work_dir):
        cut(work_dir / name)
    message = error_of('train', segmentor_config, '--work-dir', work_dir, '--resume')
    assert 'no complete checkpoint to resume from' in message
    assert 'iter_3.pth is truncated' in message


def test_nothing_to_resume_starts_anew(tmp_path, segmentor_config, capsys):
    (tmp_path / 'iter_1.pth').symlink_to('elsewhere')
    run_tool(
        'train', segmentor_config, '--work-dir', tmp_path, '--resume',
        options=['train_cfg.max_iters=1'],
    )  # fmt: skip
    assert 'no checkpoint yet, starting anew' in capsys.readouterr().out
    assert names(tmp_path) == ['iter_1.pth']
    # Written where the link points, as by every tool.
    assert (tmp_path / 'iter_1.pth').is_symlink()
    assert checkpoint(tmp_path / 'elsewhere')['meta']['iter'] == 1


def test_nothing_to_resume_keeps_load_from(three_iterations, segmentor_config):
    """A fine-tuning that is always started with --resume begins with its pre-trained weights."""
    pretrained, tuned = three_iterations / 'iter_3.pth', three_iterations / 'tuned'
    run_tool(
        'train', segmentor_config, '--work-dir', tuned, '--resume',
        options=['train_cfg.max_iters=1', f'load_from={pretrained}'],
    )  # fmt: skip
    log = next(tuned.glob('*/*.log')).read_text()
    assert f'Load checkpoint from {pretrained}' in log
    assert names(tuned) == ['iter_1.pth']


def test_resume_by_name(three_iterations, segmentor_config):
    work_dir = three_iterations
    run_tool(
        'train', segmentor_config, '--work-dir', work_dir / 'again', '--resume',
        work_dir / 'iter_1.pth', options=['train_cfg.max_iters=2'],
    )  # fmt: skip
    assert names(work_dir / 'again') == ['iter_2.pth']


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
