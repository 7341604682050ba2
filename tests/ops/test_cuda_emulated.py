"""What only the CUDA kernels have, shown on the CPU (see emulated.py); values: test_values.py."""

import ctypes

import pytest
import torch
from emulated import emulate, library
from op_cases import NAMES, REORDERED, TOLERANCES, random_inputs, relative_error


@pytest.mark.parametrize('ordered', [False, True], ids=['atomics', 'ordered'])
@pytest.mark.parametrize('logits', [False, True], ids=['mask', 'logits'])
@pytest.mark.parametrize(
    ('shape', 'options'),
    [
        pytest.param((2, 6, 9, 5, 16), dict(), id='shuffles'),
        # One lane a task, so that no shuffle does the work of a barrier.
        pytest.param((1, 5, 6, 3, 4), dict(), id='no shuffles'),
        pytest.param((1, 4, 5, 2, 4), dict(kernel_size=9, padding=4), id='chunks'),
    ],
)
def test_order_of_lanes_does_not_matter(shape, options, logits, ordered):
    """A missing barrier would show: lanes run first to last, last to first and at random."""
    tensors = random_inputs(*shape, **options)
    options = {**options, 'groups': shape[3], 'mask_is_logits': logits}
    expected, *results = (
        emulate(tensors, options, torch.float32, ordered=ordered, order=order)
        for order in (0, 1, 2, 3)
    )
    for result in results:
        for name, actual, truth in zip(NAMES, result, expected, strict=True):
            if name == 'grad_input' and not ordered:  # atomics add in another order
                assert relative_error(actual, truth.double()) < REORDERED
            else:
                assert torch.equal(actual, truth), name


@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
def test_views_and_alignment(dtype):
    """Slices of one linear layer's output, at odd elements, give what their copies give."""
    for groups, shift in ((2, 0), (1, 1), (3, 1)):
        tensors = random_inputs(2, 5, 6, groups, 16)
        points = groups * 9
        joined = torch.zeros(2, 5, 6, shift + 3 * points, dtype=dtype)
        offset, mask = joined[..., shift : shift + 2 * points], joined[..., shift + 2 * points :]
        offset.copy_(tensors['offset'])
        mask.copy_(tensors['mask'])
        expected = emulate(tensors, dict(groups=groups), dtype, ordered=True)
        views = {**tensors, 'offset': offset, 'mask': mask}
        result = emulate(views, dict(groups=groups), dtype, ordered=True)
        assert all(map(torch.equal, result, expected))
        # An input whose channels do not start at a multiple of 16 bytes.
        shifted = torch.zeros(tensors['input'].numel() + 1, dtype=dtype)[1:]
        shifted = shifted.view_as(tensors['input']).copy_(tensors['input'])
        result = emulate({**tensors, 'input': shifted}, dict(groups=groups), dtype, ordered=True)
        for actual, truth in zip(result, expected, strict=True):
            assert relative_error(actual, truth.double()) < TOLERANCES[dtype] / 2


def test_sizes_beyond_the_kernels_are_refused():
    sizes = [1, 1 << 15, 1 << 15, 1 << 15, 1 << 15, 1, 16, 3, 3, 1, 1, 1, 1, 1, 1, 18, 9, 0, 0]
    problem = (ctypes.c_int64 * 19)(*sizes)
    # Refused before any of the null pointers is read; 801 is cudaErrorNotSupported.
    assert library().emulated_forward(problem, ctypes.c_double(1), 0, None, None, None, None) == 801
