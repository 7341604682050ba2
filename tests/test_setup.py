"""Where CUDA kernels do not compile, an install goes on without them and says why."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import Distribution
from torch.utils import cpp_extension

ROOT = Path(__file__).parents[1]


@pytest.fixture
def build(monkeypatch, tmp_path):
    """Runs build_ext without compiling anything; returns whether each try had CUDA sources."""
    nvcc = tmp_path / 'bin' / 'nvcc'
    nvcc.parent.mkdir()
    nvcc.write_text('#!/bin/sh\nprintf "compute_%s\\n" 75 80 87 90\n')
    nvcc.chmod(0o755)
    keywords, tries = {}, []

    def compile_nothing(self):
        (extension,) = self.extensions
        tries.append(any(source.endswith('.cu') for source in extension.sources))
        if tries[-1]:
            raise RuntimeError('nvcc is broken')

    def run(wanted):
        monkeypatch.setenv('OPS_DCNV3_CUDA', wanted)
        monkeypatch.setenv('TORCH_CUDA_ARCH_LIST', '')
        monkeypatch.setattr('setuptools.setup', keywords.update)
        monkeypatch.setattr('torch.version.cuda', '13.0')
        monkeypatch.setattr('torch.cuda.device_count', lambda: 0)
        monkeypatch.setattr(cpp_extension, 'CUDA_HOME', str(tmp_path))
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


def test_cuda_is_not_wanted(build):
    assert build('0') == [False]


def test_forced_fails_as_the_compiler_does(build):
    with pytest.raises(RuntimeError, match='nvcc is broken'):
        build('1')
    # The usual GPUs that nvcc knows, and PTX of the last.
    assert os.environ['TORCH_CUDA_ARCH_LIST'] == '7.5;8.0;9.0+PTX'


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
