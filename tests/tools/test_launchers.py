"""The shell scripts hand their arguments on as the OpenMMLab ones do."""

import os
import subprocess

import pytest

from .conftest import ROOT


@pytest.mark.parametrize(
    ('script', 'args', 'launcher', 'expected'),
    [
        ('dist_train.sh', 'c.py 4', 'torchrun', '--nproc_per_node=4 {}/train.py c.py --launcher'),
        ('dist_test.sh', 'c.py w.pth 2', 'torchrun', '{}/test.py c.py w.pth --launcher pytorch'),
        ('slurm_train.sh', 'gpu job c.py wd', 'srun', '{}/train.py c.py --work-dir wd --launcher'),
        ('slurm_test.sh', 'gpu job c.py w.pth', 'srun', '{}/test.py c.py w.pth --launcher slurm'),
    ],
)
def test_smoke(tmp_path, script, args, launcher, expected):
    (tmp_path / launcher).write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / launcher).chmod(0o755)
    result = subprocess.run(
        [ROOT / 'tools' / script, *args.split(), '--cfg-options', 'a=1 2'],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}'},
    )
    assert expected.format(ROOT / 'tools') in result.stdout
    assert result.stdout.endswith(' --cfg-options a=1 2\n')
