"""The C++ kernels, and the CUDA kernels in their emulator, under AddressSanitizer and UBSan.

``make sanitize`` runs more rounds: SANITIZE_FACTOR times as many. What runs is in sanitize.cpp.
"""

import os
import re
from pathlib import Path

import pytest
from compiling import CSRC, EMULATED_CUDA, compile_cpp, run

FACTOR = int(os.environ.get('SANITIZE_FACTOR', '1'))


def build_and_run(tmp_path, rounds, *sources):
    """Compile sanitize.cpp with `sources`, flags among them, and run so many random problems."""
    program = tmp_path / 'sanitize'
    compile_cpp(
        *('-std=c++17', '-O0', '-g', '-fno-math-errno', '-fno-trapping-math'),
        *('-fsanitize=address,undefined,float-cast-overflow', '-fno-sanitize-recover=all'),
        *(f'-I{CSRC / "cpu"}', '-o', program, Path(__file__).with_name('sanitize.cpp'), *sources),
    )
    output = run(program, str(FACTOR * rounds), timeout=580 * FACTOR).stdout
    found = re.findall(r'(\d+) values compared, (\d+) wrong', output)
    ((compared, wrong),) = [tuple(map(int, numbers)) for numbers in found]
    assert compared > 100_000 and wrong == 0
    print(f'\n{FACTOR * rounds} rounds clean.', *output.splitlines()[-2:])


@pytest.mark.timeout(1200 * FACTOR)
def test_every_instruction_set_under_sanitizers(tmp_path):
    build_and_run(tmp_path, 40, *sorted(CSRC.glob('cpu/kernels_*.cpp')))


@pytest.mark.timeout(1200 * FACTOR)
def test_emulated_cuda_kernels_under_sanitizers(tmp_path):
    baseline = CSRC / 'cpu' / 'kernels_baseline.cpp'
    build_and_run(tmp_path, 2, '-DDCNV3_EMULATED_CUDA', baseline, *EMULATED_CUDA)
