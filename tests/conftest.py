import contextlib
import os
import sys

import pytest
import torch

if not torch.cuda.is_available():
    # Before anything imports triton: its interpreter runs the Triton kernels on CPU tensors.
    os.environ.setdefault('TRITON_INTERPRET', '1')


@pytest.fixture(autouse=True)
def no_default_scope():
    """The registry scope that one test sets must not reach the next one in its process."""
    if 'mmengine.registry' in sys.modules:  # the operator's tests run without mmengine
        from mmengine.registry import DefaultScope

        DefaultScope._instance_dict.clear()


@pytest.fixture
def quick_benchmark(monkeypatch):
    """Benchmarks without Triton's interpreter, and without what slows down this process for good.

    How the C library keeps and returns memory is changed in a process of its own, see
    test_memory_of_the_op.
    """
    from ops_dcnv3 import backends
    from ops_dcnv3.benchmark import measure

    for_gpus = backends.BACKENDS['triton']._replace(devices=('cuda',))
    monkeypatch.setitem(backends.BACKENDS, 'triton', for_gpus)
    monkeypatch.setattr(measure, 'COPY_BYTES', 2**20)
    monkeypatch.setattr(measure, 'peak_bytes', lambda call, device: None)
    monkeypatch.setattr(measure, 'freed_memory_kept', contextlib.nullcontext)
