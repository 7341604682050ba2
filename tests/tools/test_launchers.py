"""The shell scripts: one run of each, with a stand-in for what it starts."""

import os
import re
import subprocess
import sys

import pytest

from ops_dcnv3.benchmark.__main__ import make_parser

from .conftest import ROOT


def run_script(folder, stand_ins, *command):
    for name, text in stand_ins.items():
        (folder / name).write_text(f'#!/bin/sh\n{text}\n')
        (folder / name).chmod(0o755)
    path = f'{folder}:{os.environ["PATH"]}'
    return subprocess.run(
        [ROOT / 'tools' / command[0], *command[1:]],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, 'PATH': path, 'PYTHON': './python'},
    )


@pytest.mark.parametrize(
    ('script', 'args', 'launcher', 'expected'),
    [
        ('dist_train.sh', 'c.py 4', 'torchrun', '{}/train.py c.py --launcher pytorch'),
        ('dist_test.sh', 'c.py w.pth 2', 'torchrun', '{}/test.py c.py w.pth --launcher pytorch'),
        ('slurm_train.sh', 'gpu job c.py wd', 'srun', '{}/train.py c.py --work-dir wd --launcher'),
        ('slurm_test.sh', 'gpu job c.py w.pth', 'srun', '{}/test.py c.py w.pth --launcher slurm'),
    ],
)
def test_arguments_are_handed_on(tmp_path, script, args, launcher, expected):
    options = ['--cfg-options', 'a=1 2']
    result = run_script(tmp_path, {launcher: 'echo "$@"'}, script, *args.split(), *options)
    assert expected.format(ROOT / 'tools') in result.stdout
    assert result.stdout.endswith(' --cfg-options a=1 2\n')


def test_gpu_check(tmp_path):
    """A step that fails gives the exit status; the others run all the same."""
    python = 'echo "ran $*"; case "$*" in *test_triton*) exit 3;; esac'
    report = tmp_path / 'report.txt'
    result = run_script(
        tmp_path, {'python': python, 'nvidia-smi': ''}, 'gpu_check.sh', '--out', 'report.txt'
    )
    assert result.returncode == 3
    text = report.read_text()
    assert result.stdout.count('FAILED (3)') == 1
    assert text.split('## Summary\n\n')[1] in result.stdout
    commands = [line.split() for line in re.findall('^ran (.*)', text, re.MULTILINE)]
    tests = [command[-1] for command in commands if command[:2] == ['-m', 'pytest']]
    assert len(tests) == 6 and all((ROOT / name).is_file() for name in tests)
    benchmarks = [command[2:] for command in commands if 'ops_dcnv3.benchmark' in command]
    assert len(benchmarks) == 6
    assert all(make_parser().parse_args(arguments).device == 'cuda' for arguments in benchmarks)


def test_dry_run_of_gpu_check(tmp_path):
    """Every kind of step, for real and small."""
    # What differs from another step in its arguments only is not run.
    again = r'*test_values*|*test_operator*|*\ float16*|*float32*|*logits*'
    python = f'case "$*" in {again}) echo "$*";; *) exec {sys.executable} "$@";; esac'
    report = tmp_path / 'report.txt'
    result = run_script(tmp_path, {'python': python}, 'gpu_check.sh', '--cpu', '--out', report)
    assert result.returncode == 0, report.read_text()[-4000:]
    summary = report.read_text().split('## Summary\n\n')[1]
    assert summary.count('ok ') == 19
    assert 'cpu over reference' in summary and 'passed' in summary
    assert '1 steps in bfloat16 on cpu' in summary
