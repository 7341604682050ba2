"""The C++ kernels, and the CUDA kernels in their emulator, under AddressSanitizer and UBSan.

``make sanitize`` runs more rounds: SANITIZE_FACTOR times as many. What runs is in sanitize.cpp.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / 'ops_dcnv3' / 'csrc' / 'cpu'
CUDA = SOURCES.with_name('cuda')
EMULATOR = Path(__file__).with_name('cuda_emulator')
FACTOR = int(os.environ.get('SANITIZE_FACTOR', '1'))


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
        [str(tmp_path / 'sanitize'), str(FACTOR * rounds)],
        capture_output=True,
        text=True,
        timeout=580 * FACTOR,
    )
    # What a sanitizer found, and above it the round in which it did.
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[:8000]
    found = re.findall(r'(\d+) values compared, (\d+) wrong', result.stdout)
    ((compared, wrong),) = [tuple(map(int, numbers)) for numbers in found]
    assert compared > 100_000 and wrong == 0
    print(f'\n{FACTOR * rounds} rounds clean.', *result.stdout.splitlines()[-2:])


@pytest.mark.timeout(1200 * FACTOR)
def test_every_instruction_set_under_sanitizers(tmp_path):
    build_and_run(tmp_path, 40, *map(str, sorted(SOURCES.glob('kernels_*.cpp'))))


@pytest.mark.timeout(1200 * FACTOR)
def test_emulated_cuda_kernels_under_sanitizers(tmp_path):
    build_and_run(
        tmp_path,
        2,
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
