"""The CUDA sources and their binding compile without a warning.

Results are tested in test_cuda_emulated.py and, on a GPU, in test_cuda.py.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

SOURCES = Path(__file__).parents[2] / 'ops_dcnv3' / 'csrc' / 'cuda'
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
# Bytes that a kernel may keep in memory for want of registers. Measured with nvcc 13.0: 48 for the
# backward of halves on sm_75, 8 or none elsewhere.
LARGEST_SPILL = 64


def find_nvcc():
    """On PATH, or where pip puts it (requirements/dev.txt)."""
    nvidia = importlib.util.find_spec('nvidia')
    folders = [*nvidia.submodule_search_locations] if nvidia else []
    found = [path for folder in folders for path in Path(folder).glob('cu*/bin/nvcc')]
    return shutil.which('nvcc') or (str(found[0]) if found else None)


NVCC = find_nvcc()
# In CI it is there, so that nothing is skipped.
needs_nvcc = pytest.mark.skipif(
    NVCC is None and not os.environ.get('CI'),
    reason='no nvcc on this machine: pip install -r requirements/dev.txt',
)


def run(*command):
    result = subprocess.run(command, capture_output=True, text=True, timeout=590)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return result.stdout + result.stderr


@needs_nvcc
@pytest.mark.timeout(600)
@pytest.mark.parametrize('source', sorted(p.name for p in SOURCES.glob('*.cu')))
def test_kernels_compile_without_warnings(source, tmp_path):
    output = run(
        NVCC,
        '-std=c++17',
        '-O3',
        *TORCH_FLAGS,
        *(f'-gencode=arch=compute_{number},code=sm_{number}' for number in ARCHITECTURES),
        *('-Werror', 'all-warnings', '-Xcompiler', '-Wall,-Wextra,-Werror'),
        *('-Xptxas', '-v', '-c', str(SOURCES / source), '-o', str(tmp_path / 'object.o')),
    )
    kernels = output.count('Compiling entry function')
    assert kernels % len(ARCHITECTURES) == 0 and kernels // len(ARCHITECTURES) >= 12
    spills = [int(number) for number in re.findall(r'(\d+) bytes spill stores', output)]
    assert len(spills) == kernels and max(spills) <= LARGEST_SPILL


def compile_binding(source, *options):
    """Compile a source that includes headers of torch."""
    compiler = os.environ.get('CXX') or shutil.which('g++') or shutil.which('clang++')
    assert compiler, 'the tests of the CUDA binding need g++ or clang++'
    run(
        *compiler.split(),
        *('-std=c++20', '-Wall', '-Wextra', '-Werror'),
        *options,
        *(f'-isystem{path}' for path in include_paths()),
        str(source),
    )


@needs_nvcc
def test_binding_compiles(tmp_path):
    """Against the headers of torch and CUDA. A torch without CUDA lacks one generated header."""
    generated = tmp_path / 'c10' / 'cuda' / 'impl'
    generated.mkdir(parents=True)
    if torch.version.cuda is None:
        (generated / 'cuda_cmake_macros.h').write_text('')
    (tmp_path / 'empty.cu').write_text('')
    toolkit = Path(run(NVCC, '--dryrun', str(tmp_path / 'empty.cu')).split('TOP=')[1].split()[0])
    cuda = f'-isystem{toolkit / "include"}'
    compile_binding(SOURCES.parent / 'binding_cuda.cpp', '-fsyntax-only', f'-I{tmp_path}', cuda)
