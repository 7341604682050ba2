"""The text of the CUDA kernels, run on the CPU by tests/ops/cuda_emulator, against the reference.

This shows that indices, barriers, arithmetic, gradients and borders are right; it says nothing of
speed. Warp barriers and shuffles are emulated; see emulator.h for what is checked on the way.
"""

import ctypes

import pytest
import torch
from compiling import EMULATED_CUDA, compile_cpp
from op_cases import (
    CASES,
    GOLDEN_TOLERANCES,
    NAMES,
    ODD_SHAPES,
    REORDERED,
    TOLERANCES,
    golden_case,
    golden_truth,
    random_inputs,
    relative_error,
    rounded,
    run,
)

from ops_dcnv3.geometry import num_points, output_size, pair

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # as in dcnv3_cuda.h
# More shapes, for what only these kernels distinguish.
SHAPES = [
    *ODD_SHAPES,
    pytest.param((1, 9, 13, 4, 16), dict(), id='16 channels'),
    pytest.param((2, 6, 5, 3, 32), dict(), id='32 channels'),
    pytest.param((1, 4, 5, 2, 8), dict(), id='8 channels'),
    pytest.param((1, 5, 4, 9, 4), dict(), id='4 channels, 9 groups'),
    pytest.param((1, 3, 4, 2, 24), dict(), id='idle lanes'),
    pytest.param((1, 2, 3, 1, 328), dict(), id='several sections'),
]


@pytest.fixture(scope='session')
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp('cuda_emulator') / 'libemulated.so'
    compile_cpp('-std=c++17', '-O1', '-fPIC', '-shared', '-o', path, *EMULATED_CUDA)
    loaded = ctypes.CDLL(str(path))
    loaded.emulated_workspace_bytes.restype = ctypes.c_int64
    return loaded


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def emulate(
    library,
    tensors: dict[str, torch.Tensor],
    options: dict,
    dtype: torch.dtype,
    *,
    ordered: bool = False,
    order: int = 0,
) -> dict[str, torch.Tensor]:
    """Output and gradients from the emulated kernels; offset and mask may be row-strided."""
    input, offset, mask, grad_output = (
        tensors[key].to(dtype) for key in ('input', 'offset', 'mask', 'grad_output')
    )
    sizes = [
        pair(name, options.get(name, default), minimum=0)
        for name, default in (('kernel_size', 3), ('stride', 1), ('padding', 1), ('dilation', 1))
    ]
    batch, height, width, channels = input.shape
    groups, scale = options['groups'], ctypes.c_double(options.get('offset_scale', 1.0))
    out_h, out_w = output_size(height, width, *sizes)
    assert offset.shape[3] == 2 * groups * num_points(sizes[0], options.get('remove_center', False))
    values = [
        *(batch, height, width, out_h, out_w, groups, channels // groups),
        *(value for size in sizes for value in size),
        *(offset.stride(2), mask.stride(2)),
        *(options.get('remove_center', False), options.get('mask_is_logits', False)),
    ]
    problem = (ctypes.c_int64 * 19)(*map(int, values))
    number = DTYPES.index(dtype)
    library.emulated_order(order)

    output = torch.empty(batch, out_h, out_w, channels, dtype=dtype)
    common = (problem, scale, number)
    points = tuple(map(pointer, (offset, mask)))
    assert library.emulated_forward(*common, pointer(input), *points, pointer(output)) == 0

    sums = torch.float64 if dtype == torch.float64 else torch.float32
    grad_input = torch.zeros(input.shape, dtype=sums)
    grad_offset = torch.empty(offset.shape, dtype=dtype)
    grad_mask = torch.empty(mask.shape, dtype=dtype)
    error = library.emulated_backward(
        *common,
        pointer(grad_output),
        pointer(input),
        *points,
        None if ordered else pointer(grad_input),
        pointer(grad_offset),
        pointer(grad_mask),
    )
    assert error == 0
    if ordered:
        grad_input.fill_(torch.nan)
        size = library.emulated_workspace_bytes(problem, number)
        workspace = torch.empty(size, dtype=torch.uint8)
        error = library.emulated_backward_input_ordered(
            *common, pointer(grad_output), *points, pointer(grad_input), pointer(workspace)
        )
        assert error == 0
    return dict(zip(NAMES, (output, grad_input.to(dtype), grad_offset, grad_mask), strict=True))


@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
@pytest.mark.parametrize('case', CASES)
def test_golden(library, case, dtype):
    tensors, options = golden_case(case)
    truth = golden_truth(tensors, options, dtype)
    tolerance = GOLDEN_TOLERANCES[dtype]
    for ordered in (False, True):
        result = emulate(library, tensors, options, dtype, ordered=ordered)
        for name in NAMES:
            assert relative_error(result[name], truth[name]) < tolerance, (name, ordered)


@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
@pytest.mark.parametrize('logits', [False, True], ids=['mask', 'logits'])
@pytest.mark.parametrize(('shape', 'options'), SHAPES)
def test_equals_float64(library, shape, options, logits, dtype):
    """Truth is the C++ backend in float64, itself held to the reference in test_values.py."""
    tensors = random_inputs(*shape, **options)
    options = {**options, 'groups': shape[3], 'mask_is_logits': logits}
    truth = run(rounded(tensors, dtype), {**options, 'backend': 'cpu'}, torch.float64)
    for ordered in (False, True):
        result = emulate(library, tensors, options, dtype, ordered=ordered)
        for name in NAMES:
            assert not result[name].isnan().any(), name
            assert relative_error(result[name], truth[name]) < TOLERANCES[dtype], (name, ordered)


@pytest.mark.parametrize('logits', [False, True], ids=['mask', 'logits'])
@pytest.mark.parametrize(
    ('shape', 'options'),
    [
        pytest.param((1, 4, 5, 2, 4), dict(kernel_size=9, padding=4), id='points in chunks'),
        pytest.param((1, 1, 2, 1, 140), dict(kernel_size=46, padding=23), id='and sections'),
    ],
)
def test_kernels_beyond_shared_memory(library, shape, options, logits):
    tensors = random_inputs(*shape, **options)
    options = {**options, 'groups': shape[3], 'mask_is_logits': logits}
    truth = run(rounded(tensors, torch.float32), {**options, 'backend': 'cpu'}, torch.float64)
    for ordered in (False, True):
        result = emulate(library, tensors, options, torch.float32, ordered=ordered)
        for name in NAMES:
            error = relative_error(result[name], truth[name])
            assert error < TOLERANCES[torch.float32], (name, ordered)


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
def test_order_of_lanes_does_not_matter(library, shape, options, logits, ordered):
    """A missing barrier would show: lanes run first to last, last to first and at random."""
    tensors = random_inputs(*shape, **options)
    options = {**options, 'groups': shape[3], 'mask_is_logits': logits}
    results = [
        emulate(library, tensors, options, torch.float32, ordered=ordered, order=order)
        for order in (0, 1, 2, 3)
    ]
    for result in results[1:]:
        for name in NAMES:
            if name == 'grad_input' and not ordered:  # atomics add in another order
                assert relative_error(result[name], results[0][name].double()) < REORDERED
            else:
                assert torch.equal(result[name], results[0][name]), name


@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
def test_views_and_alignment(library, dtype):
    """Slices of one linear layer's output, at odd elements, give what their copies give."""
    for groups, shift in ((2, 0), (1, 1), (3, 1)):
        tensors = random_inputs(2, 5, 6, groups, 16)
        points = groups * 9
        joined = torch.zeros(2, 5, 6, shift + 3 * points, dtype=dtype)
        offset, mask = joined[..., shift : shift + 2 * points], joined[..., shift + 2 * points :]
        offset.copy_(tensors['offset'])
        mask.copy_(tensors['mask'])
        expected = emulate(library, tensors, dict(groups=groups), dtype, ordered=True)
        views = {**tensors, 'offset': offset, 'mask': mask}
        result = emulate(library, views, dict(groups=groups), dtype, ordered=True)
        assert all(torch.equal(result[name], expected[name]) for name in NAMES)
        # An input whose channels do not start at a multiple of 16 bytes.
        shifted = torch.zeros(tensors['input'].numel() + 1, dtype=dtype)[1:]
        shifted = shifted.view_as(tensors['input']).copy_(tensors['input'])
        result = emulate(
            library, {**tensors, 'input': shifted}, dict(groups=groups), dtype, ordered=True
        )
        for name in NAMES:
            error = relative_error(result[name], expected[name].double())
            assert error < TOLERANCES[dtype] / 2, name


@pytest.mark.parametrize('ordered', [False, True], ids=['atomics', 'ordered'])
@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf'), 1e30, -1e30])
def test_wild_offsets_sample_nothing(library, value, dtype, ordered):
    tensors = random_inputs(2, 5, 6, 2, 8)
    wild = tensors['offset'].clone()
    wild[:, 1, 2, 18] = value  # point 0 of group 1
    silent = tensors['mask'].clone()
    silent[:, 1, 2, 9] = 0.0
    options = dict(groups=2)
    result = emulate(library, {**tensors, 'offset': wild}, options, dtype, ordered=ordered)
    expected = emulate(library, {**tensors, 'mask': silent}, options, dtype, ordered=ordered)
    assert torch.equal(result['output'], expected['output'])
    assert torch.equal(result['grad_input'], expected['grad_input'])
    for name in ('grad_offset', 'grad_mask'):
        assert result[name].isfinite().all()
    assert (result['grad_offset'][:, 1, 2, 18:20] == 0).all()
    assert (result['grad_mask'][:, 1, 2, 9] == 0).all()


def test_nan_pixel_reaches_only_what_samples_it(library):
    tensors = random_inputs(1, 6, 6, 1, 4)
    tensors['offset'].zero_()
    tensors['input'][0, 0, 0] = torch.nan
    output = emulate(library, tensors, dict(groups=1), torch.float32)['output']
    touched = output[0].isnan().any(-1)
    assert touched[:2, :2].all()
    assert not touched[2:].any() and not touched[:, 2:].any()


def test_infinite_and_nan_logits(library):
    tensors = random_inputs(1, 4, 5, 2, 8)
    tensors['mask'] = tensors['mask'] * 200 - 100
    tensors['mask'][..., 3] = -torch.inf
    options = dict(groups=2, mask_is_logits=True)
    tensors = rounded(tensors, torch.float32)
    truth = run(tensors, {**options, 'backend': 'reference'}, torch.float64)
    result = emulate(library, tensors, options, torch.float32)
    for name in NAMES:
        assert relative_error(result[name], truth[name]) < TOLERANCES[torch.float32], name
    nan = {**tensors, 'mask': tensors['mask'] * torch.nan}
    assert emulate(library, nan, options, torch.float32)['output'].isnan().all()


def test_sizes_beyond_the_kernels_are_refused(library):
    sizes = [1, 1 << 15, 1 << 15, 1 << 15, 1 << 15, 1, 16, 3, 3, 1, 1, 1, 1, 1, 1, 18, 9, 0, 0]
    problem = (ctypes.c_int64 * 19)(*sizes)
    # Refused before any of the null pointers is read; 801 is cudaErrorNotSupported.
    assert library.emulated_forward(problem, ctypes.c_double(1), 0, None, None, None, None) == 801
