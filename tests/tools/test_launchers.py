"""The shell scripts hand their arguments on as the OpenMMLab ones do."""

import os
import subprocess

import pytest

from .conftest import ROOT

TOOLS = ROOT / 'tools'
SLURM = [
    '--gres=gpu:2', '--ntasks=4', '--ntasks-per-node=2', '--cpus-per-task=3',
    '--kill-on-bad-exit=1', '--exclusive', '--time=1', 'python', '-u',
]  # fmt: skip


@pytest.mark.parametrize(
    ('script', 'args', 'launcher', 'expected'),
    [
        (
            'dist_train.sh',
            ['c.py', '4'],
            'torchrun',
            ['--nproc_per_node=4', f'{TOOLS}/train.py', 'c.py', '--launcher', 'pytorch'],
        ),
        (
            'dist_test.sh',
            ['c.py', 'w.pth', '2'],
            'torchrun',
            ['--nproc_per_node=2', f'{TOOLS}/test.py', 'c.py', 'w.pth', '--launcher', 'pytorch'],
        ),
        (
            'slurm_train.sh',
            ['gpu', 'job', 'c.py', 'wd'],
            'srun',
            [*SLURM, f'{TOOLS}/train.py', 'c.py', '--work-dir', 'wd', '--launcher', 'slurm'],
        ),
        (
            'slurm_test.sh',
            ['gpu', 'job', 'c.py', 'w.pth'],
            'srun',
            [*SLURM, f'{TOOLS}/test.py', 'c.py', 'w.pth', '--launcher', 'slurm'],
        ),
    ],
)
def test_arguments(tmp_path, script, args, launcher, expected):
    fake = tmp_path / launcher
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    environment = {
        **os.environ,
        'PATH': f'{tmp_path}:{os.environ["PATH"]}',
        **dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.1', PORT='1234'),
        **dict(GPUS='4', GPUS_PER_NODE='2', CPUS_PER_TASK='3', SRUN_ARGS='--exclusive --time=1'),
    }
    result = subprocess.run(
        [TOOLS / script, *args, '--cfg-options', 'a=1 2'],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    got = result.stdout.splitlines()
    assert got[-len(expected) - 2 :] == [*expected, '--cfg-options', 'a=1 2']
    if launcher == 'torchrun':
        assert got[:4] == [
            '--nnodes=2', '--node_rank=1', '--master_addr=10.0.0.1', '--master_port=1234'
        ]  # fmt: skip
    else:
        assert got[:3] == ['-p', 'gpu', '--job-name=job']


@pytest.mark.parametrize(
    'script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh']
)
def test_too_few_arguments(script):
    assert subprocess.run([TOOLS / script], capture_output=True).returncode != 0
