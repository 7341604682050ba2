"""Builds of CUDA kernels and of mmcv's operators, and what `make` says a machine lacks."""

import importlib
import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import Distribution, Extension
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[1]


@pytest.fixture
def build(monkeypatch, tmp_path):
    """Runs build_ext without compiling anything; returns whether each try had CUDA sources."""
    nvcc = tmp_path / 'bin' / 'nvcc'
    nvcc.parent.mkdir()
    nvcc.write_text(
        '#!/bin/sh\n'
        'case $1 in --version) echo "tools, release 13.0, V13.0.88";;\n'
        '*) printf "compute_%s\\n" 75 80 87 90;; esac\n'
    )
    nvcc.chmod(0o755)
    keywords, tries = {}, []

    def compile_nothing(self):
        (extension,) = self.extensions
        tries.append(any(source.endswith('.cu') for source in extension.sources))
        if tries[-1]:
            raise RuntimeError('nvcc is broken')

    def run(wanted, torch_cuda='13.0', home=str(tmp_path), gpus=()):
        monkeypatch.setenv('OPS_DCNV3_CUDA', wanted)
        monkeypatch.setenv('TORCH_CUDA_ARCH_LIST', '')
        monkeypatch.setattr('setuptools.setup', keywords.update)
        monkeypatch.setattr('torch.version.cuda', torch_cuda)
        monkeypatch.setattr('torch.cuda.device_count', lambda: len(gpus))
        monkeypatch.setattr('torch.cuda.get_device_capability', gpus.__getitem__)
        monkeypatch.setattr(cpp_extension, 'CUDA_HOME', home)
        monkeypatch.setattr(cpp_extension.BuildExtension, 'build_extensions', compile_nothing)
        monkeypatch.chdir(ROOT)
        spec = importlib.util.spec_from_file_location('setup_under_test', ROOT / 'setup.py')
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        command = Distribution(keywords).get_command_obj('build_ext')
        command.ensure_finalized()
        command.build_extensions()
        return tries

    return run


def test_auto_goes_on_without_cuda_kernels(build):
    with pytest.warns(UserWarning, match=r'without its CUDA kernels \(nvcc is broken\)'):
        assert build('auto') == [True, False]


@pytest.mark.parametrize(
    ('machine', 'reason'),
    [
        (dict(home=None), 'no CUDA toolkit is found'),
        (dict(torch_cuda='12.6'), 'nvcc is of CUDA 13, but torch of CUDA 12.6'),
    ],
)
def test_toolkit_is_missing_or_does_not_fit(build, machine, reason):
    with pytest.warns(UserWarning, match=f'without its CUDA kernels .*{reason}') as warned:
        assert build('auto', **machine) == [False]
    assert '\n' not in str(warned[0].message)


@pytest.mark.parametrize(
    ('gpus', 'expected'),
    [
        ([], '7.5;8.0;9.0+PTX'),
        ([(9, 0), (8, 7)], '8.7;9.0+PTX'),
        ([(12, 0)], '9.0+PTX'),  # nvcc does not know it; the driver compiles PTX
    ],
)
def test_gpus_that_nvcc_compiles_for(build, gpus, expected):
    with pytest.raises(RuntimeError, match='nvcc is broken'):
        build('1', gpus=gpus)
    assert os.environ['TORCH_CUDA_ARCH_LIST'] == expected


def test_cuda_is_not_wanted(build):
    assert build('0') == [False]


def test_bad_value():
    result = subprocess.run(
        [sys.executable, 'setup.py', '--name'],
        cwd=ROOT,
        env={'OPS_DCNV3_CUDA': 'yes'},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "must be 0, 1 or auto, got 'yes'" in result.stderr


def test_mmcv_compiles_each_source_once_in_a_few_parts(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / 'requirements' / 'mmcv_build')
    monkeypatch.chdir(tmp_path)
    mmcv_build = importlib.import_module('mmcv_build')
    apart = [f'./csrc/pytorch/cpu/{name}' for name in mmcv_build.APART]
    others = ['./csrc/pytorch/cuda/nms.cu', './csrc/pytorch/cuda/cudabind.cpp']
    cpp = [*(f'./csrc/pytorch/{i}.cpp' for i in range(57)), *apart]
    extension = Extension('mmcv._ext', [*cpp, *others])
    for _ in range(2):  # setuptools calls its plugins more than once
        mmcv_build.join_sources(Distribution({'ext_modules': [extension]}))
    assert extension.sources[:2] == others
    parts = [Path(part).read_text() for part in extension.sources[2:]]
    included = [re.findall('#include "(.*)"', part) for part in parts]
    assert sorted(sum(included, [])) == sorted(str(tmp_path / path) for path in cpp)
    assert all(sum(str(tmp_path / path) in part for path in apart) <= 1 for part in included)
    assert len(parts) == mmcv_build.PARTS


def test_setup_of_mmcv_reads_its_version_on_any_python(tmp_path):
    (tmp_path / 'version.py').write_text("__version__ = '2.1.0'\n")
    code = (
        'def get_version():\n'
        '    version_file = "version.py"\n'
        '    with open(version_file) as file:\n'
        '        exec(compile(file.read(), version_file, "exec"))\n'
        '    return locals()["__version__"]\n'
        'print(get_version())\n'
    )
    environment = {**os.environ, 'PYTHONPATH': str(ROOT / 'requirements' / 'mmcv_build')}
    command = [sys.executable, '-c', code]
    printed = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)
    assert printed == '2.1.0\n'


@pytest.fixture
def build_mmcv(monkeypatch, tmp_path):
    """Runs mmcv_build for a pip that fails where it sees the GPU, having printed this."""

    def run(printed):
        folder = ROOT / 'requirements' / 'mmcv_build'
        build = runpy.run_path(str(folder / '__main__.py'))
        (tmp_path / 'printed').write_text(f'{printed}\n')
        pip = tmp_path / 'python'
        fails = f'[ -n "${{CUDA_VISIBLE_DEVICES-gpu}}" ] && cat {tmp_path}/printed && exit 1'
        pip.write_text(f'#!/bin/sh\n{fails}\nexit 0\n')
        pip.chmod(0o755)
        monkeypatch.setattr('sys.executable', str(pip))
        monkeypatch.setattr('torch.cuda.is_available', lambda: True)
        monkeypatch.setitem(build['install'].__globals__, 'LOG', tmp_path / 'log')
        build['main'](['mmcv==2.1.0'])

    return run


@pytest.mark.parametrize(
    ('printed', 'reason'),
    [
        (
            'OSError: CUDA_HOME environment variable is not set.',
            'OSError: CUDA_HOME environment variable is not set.',
        ),
        (
            '  RuntimeError: \n  The detected CUDA version (11.8) mismatches the version of\n'
            '  PyTorch (13.0).\n',
            'RuntimeError: The detected CUDA version (11.8) mismatches the version of '
            'PyTorch (13.0).',
        ),
        (
            "nvcc fatal   : Unsupported gpu architecture 'compute_120'\n"
            'RuntimeError: Error compiling objects for extension',
            "nvcc fatal : Unsupported gpu architecture 'compute_120'",
        ),
        (
            'RuntimeError: The current installed version of g++ (5.4.0) is less than (6.0.0)',
            'RuntimeError: The current installed version of g++ (5.4.0) is less than (6.0.0)',
        ),
    ],
    ids=['no nvcc', 'wrong nvcc', 'new GPU', 'old compiler'],
)
def test_mmcv_without_cuda_operators(build_mmcv, capsys, printed, reason):
    """Compiled for the CPU where it cannot be compiled for the GPU, which one line says."""
    build_mmcv(f'{printed}\n  error: subprocess-exited-with-error')
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert f'no CUDA operators ({reason}). Compiling those for the CPU' in lines[1]


def test_failed_download_does_not_lead_to_an_mmcv_for_the_cpu(build_mmcv):
    with pytest.raises(SystemExit, match=r'No space left on device\nmmcv==2.1.0 is not installed'):
        build_mmcv('ERROR: OSError: [Errno 28] No space left on device')


@pytest.mark.parametrize(
    ('compiler', 'message'),
    [('absent-c++', 'There is no C++ compiler (absent-c++)'), ('false', 'false knows no C++20')],
)
def test_make_says_what_the_machine_lacks(compiler, message):
    command = [sys.executable, str(ROOT / 'requirements' / 'check_machine.py')]
    environment = {**os.environ, 'CXX': compiler}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith(message)
    assert result.stderr.count('\n') == 1


@pytest.mark.parametrize(
    ('version', 'message'),
    [
        ((3, 9), 'is Python 3.9, but 3.10 to 3.14 is needed'),
        ((3, 15), 'is Python 3.15, but 3.10 to 3.14 is needed'),
        ((3, 14), 'is Python 3.14, on which mmengine 0.10.7 does not run: make STACK=onedl'),
    ],
)
def test_make_says_which_python_it_needs(monkeypatch, version, message):
    monkeypatch.setattr('sys.version_info', (*version, 0, 'final', 0))
    monkeypatch.setattr('sys.argv', ['check_machine.py', 'classic'])
    with pytest.raises(SystemExit, match=message):
        runpy.run_path(str(ROOT / 'requirements' / 'check_machine.py'))
