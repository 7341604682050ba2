"""tools/gpu_check.sh with a stand-in for Python: what it composes, and how failures show."""

import os
import subprocess

import pytest

from ops_dcnv3.benchmark.__main__ import make_parser

from .conftest import ROOT

# Notes its folder, environment and arguments, and fails where these hold $FAILING.
PYTHON = r"""#!/bin/sh
printf '%s\t' "$PWD" "${TRITON_INTERPRET-unset}" "$PYTHONPATH" "$@" >>"$COMMANDS"
echo >>"$COMMANDS"
case "$*" in *"$FAILING"*) exit 3 ;; esac
"""
TESTS = [f'tests/ops/test_{name}.py' for name in ('cuda', 'triton', 'values', 'operator')]


@pytest.fixture
def check(tmp_path):
    """Run the script; return its exit status, its report and what the stand-in noted."""
    for name, text in (('python', PYTHON), ('nvidia-smi', '#!/bin/sh\nexit ${SMI:-0}\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def check(*arguments, failing='none of them', smi=0):
        commands, report = tmp_path / 'commands', tmp_path / 'report.txt'
        commands.write_text('')
        report.unlink(missing_ok=True)
        environment = {
            **os.environ,
            **dict(PATH=f'{tmp_path}:{os.environ["PATH"]}', PYTHON=str(tmp_path / 'python')),
            **dict(COMMANDS=str(commands), FAILING=failing, SMI=str(smi), TRITON_INTERPRET='1'),
        }
        result = subprocess.run(
            [ROOT / 'tools' / 'gpu_check.sh', '--out', report, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment,
        )
        calls = [line.split('\t')[:-1] for line in commands.read_text().splitlines()]
        return result.returncode, report.read_text(), calls

    return check


def test_commands(tmp_path, check):
    options = ['--official', '--dcnv4']
    arguments, folders, against = [], [], {False: None, True: None}
    for option in options:
        arguments += [option, tmp_path]
        folders.append(str(tmp_path))
        if option == '--official':
            folders.append(f'{tmp_path}/functions')
            against[False] = ['dcnv3_func:DCNv3Function']
        else:
            against[True] = ['against:dcnv4']
    status, report, calls = check(*arguments)
    assert status == 0 and 'FAILED' not in report

    runs = []
    for _, _, path, *command in calls:
        if command[:2] == ['-m', 'ops_dcnv3.benchmark']:
            args = make_parser().parse_args(command[2:])
            assert args.device == 'cuda' and args.against == against[args.logits]
            assert path.split(':')[2:] == folders
            assert f'$ {tmp_path}/python {" ".join(command)}\n' in report
            runs.append((args.dtype, args.logits))
    dtypes = ('bfloat16', 'float16', 'float32')
    assert runs == [(dtype, logits) for dtype in dtypes for logits in (False, True)]

    assert all((ROOT / name).is_file() for name in TESTS)
    assert [call[-1] for call in calls if call[-1] in TESTS] == TESTS
    # The repository's own package has no CUDA extension, Triton's interpreter uses no GPU.
    after_build = calls[[call[3] for call in calls].index('setup.py') + 1 :]
    for folder, interpret, path, *_ in after_build:
        assert folder != str(ROOT) and interpret == 'unset'
        assert path.split(':')[0] == f'{folder}/lib'


def test_the_first_failure_is_the_exit_status(check):
    status, report, _ = check(failing='tests/ops/test_triton.py', smi=9)
    assert status == 9
    assert 'FAILED with status 9\n' in report and 'FAILED with status 3\n' in report
