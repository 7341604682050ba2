"""The CUDA sources compile without a warning, for every architecture listed that nvcc knows.

So does their binding, and one of other sources is refused. Compiling shows nothing of the results;
those are in test_cuda_emulated.py and, on a GPU, test_cuda.py.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

SOURCES = Path(__file__).parents[2] / 'ops_dcnv3' / 'csrc' / 'cuda'
NVCC = shutil.which('nvcc')
ARCHITECTURES = (70, 75, 80, 86, 89, 90, 100, 120)
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
needs_nvcc = pytest.mark.skipif(NVCC is None, reason='no nvcc on this machine')


def run(*command):
    result = subprocess.run(command, capture_output=True, text=True, timeout=590)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return result.stdout + result.stderr


@needs_nvcc
@pytest.mark.timeout(600)
@pytest.mark.parametrize('source', sorted(p.name for p in SOURCES.glob('*.cu')))
def test_kernels_compile_without_warnings(source, tmp_path):
    known = {int(number) for number in re.findall(r'compute_(\d+)', run(NVCC, '--list-gpu-arch'))}
    targets = [number for number in ARCHITECTURES if number in known]
    assert {80, 90} <= set(targets)
    output = run(
        NVCC,
        '-std=c++17',
        '-O3',
        *TORCH_FLAGS,
        *(f'-gencode=arch=compute_{number},code=sm_{number}' for number in targets),
        *('-Werror', 'all-warnings', '-Xcompiler', '-Wall,-Wextra,-Werror'),
        *('-Xptxas', '-v', '-c', str(SOURCES / source), '-o', str(tmp_path / 'object.o')),
    )
    kernels = output.count('Compiling entry function')
    assert kernels % len(targets) == 0 and kernels // len(targets) >= 12
    spills = [int(number) for number in re.findall(r'(\d+) bytes spill stores', output)]
    assert len(spills) == kernels and max(spills) <= LARGEST_SPILL


def compile_binding(source, *options):
    """Compile a source that includes headers of torch and Python."""
    compiler = os.environ.get('CXX') or shutil.which('g++') or shutil.which('clang++')
    assert compiler, 'the tests of the CUDA binding need g++ or clang++'
    run(
        *compiler.split(),
        *('-std=c++20', '-Wall', '-Wextra', '-Werror', '-DPy_LIMITED_API=0x030A0000'),
        *options,
        *(f'-isystem{path}' for path in include_paths()),
        f'-isystem{sysconfig.get_paths()["include"]}',
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
    compile_binding(SOURCES / 'binding_cuda.cpp', '-fsyntax-only', f'-I{tmp_path}', cuda)


OLD_BINDING = """
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "register.h"

at::Tensor forward(const at::Tensor& input) { return input; }

TORCH_LIBRARY_IMPL(ops_dcnv3, CUDA, library) {
  dcnv3::registering([&] { library.impl("forward", &forward); });
}

DCNV3_PYTHON_MODULE(_C_cuda)
"""
LOAD_OLD_BINDING = """
import importlib.util, sys
import torch
finder = importlib.util.spec_from_file_location('ops_dcnv3._C_cuda', sys.argv[1])
class Finder:
    def find_spec(name, *_):
        return finder if name == 'ops_dcnv3._C_cuda' else None
sys.meta_path.insert(0, Finder)
torch.cuda.is_available = lambda: True
from ops_dcnv3 import available_backends
for name in ('cpu', 'cuda'):
    print(*available_backends(name)[name])
"""


def test_cuda_extension_of_other_sources_is_refused(tmp_path):
    """One that was not built again beside a newer ``_C``, whose functions have other arguments.

    PyTorch tells so in a text that begins with an empty line.
    """
    (tmp_path / 'old.cpp').write_text(OLD_BINDING)
    extension = tmp_path / '_C_cuda.abi3.so'
    libraries = '-Wl,--no-as-needed', '-ltorch_cpu', '-lc10', *(f'-L{p}' for p in library_paths())
    options = ('-fPIC', '-shared', f'-I{SOURCES.parent}', *libraries, '-o', str(extension))
    compile_binding(tmp_path / 'old.cpp', *options)
    cpu, cuda = run(sys.executable, '-c', LOAD_OLD_BINDING, str(extension)).splitlines()[-2:]
    assert cpu == 'True compiled C++ kernels'
    assert cuda.startswith('False the CUDA extension does not load beside torch')
    assert 'it was built from other sources (Mismatch in kernel C++ signatures)' in cuda
