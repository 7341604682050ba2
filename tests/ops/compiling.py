"""Compiling C++ in tests, with $CXX, g++ or clang++."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

CSRC = Path(__file__).parents[2] / 'ops_dcnv3' / 'csrc'
EMULATOR = Path(__file__).with_name('cuda_emulator')
# The CUDA kernels in their emulator.
EMULATED_CUDA = (
    *(f'-I{EMULATOR}', f'-I{CSRC / "cuda"}', EMULATOR / 'emulator.cpp'),
    *('-x', 'c++', *sorted(CSRC.glob('cuda/*.cu'))),
)


def run(*command: str | Path, timeout: int = 580) -> subprocess.CompletedProcess:
    """Run a command, which must succeed."""
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=timeout)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def compile_cpp(*arguments: str | Path) -> None:
    compiler = os.environ.get('CXX') or shutil.which('g++') or shutil.which('clang++')
    assert compiler, 'this test needs g++ or clang++'
    run(*compiler.split(), *arguments)
