"""The C++ kernels, and the CUDA kernels in their emulator, under AddressSanitizer and UBSan."""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / 'ops_dcnv3' / 'csrc' / 'cpu'
CUDA = SOURCES.with_name('cuda')
EMULATOR = Path(__file__).with_name('cuda_emulator')


def build_and_run(tmp_path, rounds, *sources):
    """Compile sanitize.cpp with `sources`, flags among them, and run so many random problems."""
    compiler = os.environ.get('CXX') or shutil.which('g++') or shutil.which('clang++')
    assert compiler, 'the tests of the C++ kernels need g++ or clang++'
    build = [
        *compiler.split(),
        '-std=c++17',
        '-O0',
        '-g',
        '-fno-math-errno',
        '-fno-trapping-math',
        '-fsanitize=address,undefined,float-cast-overflow',
        '-fno-sanitize-recover=all',
        f'-I{SOURCES}',
        str(Path(__file__).with_name('sanitize.cpp')),
        *sources,
        '-o',
        str(tmp_path / 'sanitize'),
    ]
    compiled = subprocess.run(build, capture_output=True, text=True, timeout=580)
    assert compiled.returncode == 0, compiled.stderr[-4000:]
    result = subprocess.run(
        [str(tmp_path / 'sanitize'), str(rounds)], capture_output=True, text=True, timeout=580
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    compared, wrong = map(int, re.findall(r'(\d+) values compared, (\d+) wrong', result.stdout)[0])
    assert compared > 100_000 and wrong == 0


def test_every_instruction_set_under_sanitizers(tmp_path):
    x86 = platform.machine() in ('x86_64', 'AMD64')
    flags = ['-DDCNV3_X86_DISPATCH=1'] if x86 else []
    build_and_run(tmp_path, 60, *flags, *map(str, sorted(SOURCES.glob('kernels_*.cpp'))))


@pytest.mark.timeout(1200)
def test_emulated_cuda_kernels_under_sanitizers(tmp_path):
    build_and_run(
        tmp_path,
        3,
        '-DDCNV3_EMULATED_CUDA',
        '-D__CUDA_ARCH__=900',
        '-D__CUDACC_VER_MAJOR__=13',
        '-D__CUDACC_VER_MINOR__=0',
        f'-I{EMULATOR}',
        f'-I{CUDA}',
        str(EMULATOR / 'emulator.cpp'),
        str(SOURCES / 'kernels_baseline.cpp'),
        *('-x', 'c++'),
        *map(str, sorted(CUDA.glob('*.cu'))),
    )
