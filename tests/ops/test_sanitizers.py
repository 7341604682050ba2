"""The C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer, without Python."""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parents[2] / 'ops_dcnv3' / 'csrc' / 'cpu'


def test_every_instruction_set_under_sanitizers(tmp_path):
    compiler = os.environ.get('CXX') or shutil.which('g++') or shutil.which('clang++')
    assert compiler, 'the tests of the C++ kernels need g++ or clang++'
    x86 = platform.machine() in ('x86_64', 'AMD64')
    build = [
        *compiler.split(),
        '-std=c++17',
        '-O1',
        '-g',
        '-fno-math-errno',
        '-fno-trapping-math',
        '-fsanitize=address,undefined,float-cast-overflow',
        '-fno-sanitize-recover=all',
        *(['-DDCNV3_X86_DISPATCH=1'] if x86 else []),
        f'-I{SOURCES}',
        str(Path(__file__).with_name('sanitize.cpp')),
        *map(str, sorted(SOURCES.glob('kernels_*.cpp'))),
        '-o',
        str(tmp_path / 'sanitize'),
    ]
    compiled = subprocess.run(build, capture_output=True, text=True, timeout=500)
    assert compiled.returncode == 0, compiled.stderr[-4000:]
    result = subprocess.run(
        [str(tmp_path / 'sanitize'), '60'], capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    compared, wrong = map(int, re.findall(r'(\d+) values compared, (\d+) wrong', result.stdout)[0])
    assert compared > 100_000 and wrong == 0
