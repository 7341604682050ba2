"""The CUDA sources and their binding compile without a warning; results: test_values.py."""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from compiling import CSRC, compile_cpp, run
from torch.utils.cpp_extension import include_paths

# The oldest, without vector atomics and native bfloat16, and one with both.
ARCHITECTURES = (75, 90)
# Those that PyTorch adds when it builds an extension.
TORCH_FLAGS = (
    '-D__CUDA_NO_HALF_OPERATORS__',
    '-D__CUDA_NO_HALF_CONVERSIONS__',
    '-D__CUDA_NO_BFLOAT16_CONVERSIONS__',
    '-D__CUDA_NO_HALF2_OPERATORS__',
    '--expt-relaxed-constexpr',
)
# Bytes that a kernel may keep in memory for want of registers. Measured with nvcc 13.0: 20 for the
# backward of halves with kernels other than 3x3 on sm_90, 8 or none elsewhere.
LARGEST_SPILL = 32


def find_nvcc():
    """Where pip puts it, in the version that the spills are measured with, or else on PATH."""
    nvidia = importlib.util.find_spec('nvidia')
    folders = [*nvidia.submodule_search_locations] if nvidia else []
    found = [path for folder in folders for path in Path(folder).glob('cu*/bin/nvcc')]
    return str(found[0]) if found else shutil.which('nvcc')


NVCC = find_nvcc()
# In CI it is there, so that nothing is skipped.
needs_nvcc = pytest.mark.skipif(
    NVCC is None and not os.environ.get('CI'),
    reason='no nvcc on this machine: pip install -r requirements/dev.txt',
)


@pytest.fixture(scope='module')
def host_compiler(tmp_path_factory):
    """A g++ that this nvcc works with."""
    source = tmp_path_factory.mktemp('nvcc') / 'empty.cu'
    source.write_text('')
    command = [NVCC, '-c', source, '-o', source.with_suffix('.o')]
    result = subprocess.run(command, capture_output=True, text=True)
    if 'unsupported GNU version' in result.stderr:
        pytest.skip('this g++ is newer than nvcc supports')


@needs_nvcc
@pytest.mark.timeout(600)
@pytest.mark.parametrize('source', sorted(p.name for p in CSRC.glob('cuda/*.cu')))
def test_kernels_compile_without_warnings(source, host_compiler, tmp_path):
    output = run(
        NVCC,
        '-std=c++17',
        '-O3',
        *TORCH_FLAGS,
        *(f'-gencode=arch=compute_{number},code=sm_{number}' for number in ARCHITECTURES),
        *('-Werror', 'all-warnings', '-Xcompiler', '-Wall,-Wextra,-Werror'),
        *('-Xptxas', '-v', '-c', CSRC / 'cuda' / source, '-o', tmp_path / 'object.o'),
    ).stderr
    kernels = output.count('Compiling entry function')
    assert kernels % len(ARCHITECTURES) == 0 and kernels // len(ARCHITECTURES) >= 12
    spills = [int(number) for number in re.findall(r'(\d+) bytes spill stores', output)]
    assert len(spills) == kernels and max(spills) <= LARGEST_SPILL


@needs_nvcc
def test_binding_compiles(tmp_path):
    """Against the headers of torch and CUDA. A torch without CUDA lacks one generated header."""
    generated = tmp_path / 'c10' / 'cuda' / 'impl'
    generated.mkdir(parents=True)
    if torch.version.cuda is None:
        (generated / 'cuda_cmake_macros.h').write_text('')
    (tmp_path / 'empty.cu').write_text('')
    steps = run(NVCC, '--dryrun', tmp_path / 'empty.cu').stderr
    toolkit = Path(steps.split('TOP=')[1].split()[0])
    compile_cpp(
        *('-std=c++20', '-Wall', '-Wextra', '-Werror', '-fsyntax-only', f'-I{tmp_path}'),
        *(f'-isystem{path}' for path in (toolkit / 'include', *include_paths())),
        CSRC / 'binding_cuda.cpp',
    )
