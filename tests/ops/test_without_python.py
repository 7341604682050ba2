"""A C++ program can load the operators; neither they nor the program need Python."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

from ops_dcnv3 import dcnv3

SOURCE = Path(__file__).with_name('load_extension.cpp')


def wave(*sizes, step):
    """As in the program."""
    count = torch.Size(sizes).numel()
    return (torch.arange(count, dtype=torch.float64) * step).sin().view(sizes)


@pytest.mark.skipif(os.name == 'nt', reason='the program is for POSIX')
def test_program(tmp_path):
    compiler = os.environ.get('CXX') or shutil.which('g++') or shutil.which('clang++')
    assert compiler, 'this test needs g++ or clang++'
    program = tmp_path / 'program'
    libraries = [f'-L{path}' for path in library_paths()]
    libraries += [f'-Wl,-rpath,{path}' for path in library_paths()]
    subprocess.run(
        [
            *compiler.split(),
            *('-std=c++20', str(SOURCE), '-o', str(program)),
            *(f'-isystem{path}' for path in include_paths()),
            *libraries,
            *('-ltorch_cpu', '-lc10', '-ldl'),
        ],
        check=True,
        timeout=300,
    )
    extension = importlib.util.find_spec('ops_dcnv3._C').origin
    result = subprocess.run(
        [str(program), extension], capture_output=True, text=True, check=True, timeout=60
    )
    offset = wave(2, 4, 5, 36, step=1.3).requires_grad_()
    expected = dcnv3(
        wave(2, 4, 5, 6, step=0.7), offset, wave(2, 4, 5, 18, step=2.1), groups=2,
        offset_scale=1.5, mask_is_logits=True, backend='reference',
    )  # fmt: skip
    expected.sum().backward()
    values = torch.tensor([float(line) for line in result.stdout.split()], dtype=torch.float64)
    truth = torch.cat([expected.detach().flatten(), offset.grad.flatten()])
    torch.testing.assert_close(values, truth, rtol=1e-12, atol=1e-12)
