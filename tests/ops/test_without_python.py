"""A C++ program can load the operators; neither they nor the program need Python."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from compiling import compile_cpp, run
from torch.utils.cpp_extension import include_paths, library_paths

from ops_dcnv3 import dcnv3

SOURCE = Path(__file__).with_name('load_extension.cpp')


def wave(*sizes, step):
    """As in the program."""
    count = torch.Size(sizes).numel()
    return (torch.arange(count, dtype=torch.float64) * step).sin().view(sizes)


@pytest.mark.skipif(os.name == 'nt', reason='the program is for POSIX')
def test_program(tmp_path, monkeypatch):
    program = tmp_path / 'program'
    compile_cpp(
        *('-std=c++20', SOURCE, '-o', program),
        *(f'-isystem{path}' for path in include_paths()),
        *(f'-L{path}' for path in library_paths()),
        *('-ltorch_cpu', '-lc10', '-ldl'),
    )
    # An extension with CUDA kernels needs the CUDA runtime too, which torch has from pip.
    folders = [*library_paths(), *Path(torch.__file__).parents[1].glob('nvidia/*/lib')]
    folders += filter(None, [os.environ.get('LD_LIBRARY_PATH')])
    monkeypatch.setenv('LD_LIBRARY_PATH', ':'.join(map(str, folders)))
    extension = importlib.util.find_spec('ops_dcnv3._C').origin
    output = run(program, extension).stdout
    offset = wave(2, 4, 5, 36, step=1.3).requires_grad_()
    expected = dcnv3(
        wave(2, 4, 5, 6, step=0.7), offset, wave(2, 4, 5, 18, step=2.1), groups=2,
        offset_scale=1.5, mask_is_logits=True, backend='reference',
    )  # fmt: skip
    expected.sum().backward()
    values = torch.tensor([float(line) for line in output.split()], dtype=torch.float64)
    truth = torch.cat([expected.detach().flatten(), offset.grad.flatten()])
    torch.testing.assert_close(values, truth, rtol=1e-12, atol=1e-12)
